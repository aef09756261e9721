-- The jobs that have not ended, as the queue sees them. Folded from `job` events inside the dispatch transaction,
-- whose position is the checkpoint row `scheduler__queue`.
CREATE TABLE jobs (
    job_id uuid PRIMARY KEY,
    user_id text NOT NULL,
    provider text NOT NULL,
    priority integer NOT NULL,
    phase text NOT NULL CHECK (phase IN ('preparing', 'queued', 'holding', 'completing')),
    position bigint NOT NULL,
    queued_at timestamptz,
    not_before timestamptz,
    attempt_number integer NOT NULL,
    wait_reason text
);
