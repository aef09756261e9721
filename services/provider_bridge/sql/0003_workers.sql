-- Every worker that was made and not removed, and when it was last heard of. What it is stands in its stream.
CREATE TABLE workers (
    worker_id uuid PRIMARY KEY,
    created_at timestamptz NOT NULL,
    heard_at timestamptz,
    connected_at timestamptz,
    stream_at timestamptz,
    said jsonb
);

-- Every attempt that the provider `worker` was ever asked about. Its key keeps one attempt from two workers, the index
-- below it one worker from two runs, and `fence` holds the highest epoch that asked. Rows change with the events that
-- tell of it, in one transaction; spec and token are no events and go when the run has begun or ended.
CREATE TABLE worker_runs (
    attempt_id uuid PRIMARY KEY,
    fence bigint NOT NULL,
    worker_id uuid,
    job_id uuid,
    epoch bigint,
    word text CHECK (word IN ('assigned', 'running', 'ended', 'gone')),
    spec bytea,
    token bytea,
    max_run_s integer,
    price_micro_usd_per_hour bigint NOT NULL DEFAULT 0,
    taken_at timestamptz,
    started_at timestamptz,
    ended_at timestamptz,
    exit_code integer,
    last_words text NOT NULL DEFAULT '',
    CHECK ((worker_id IS NULL) = (word IS NULL))
);
CREATE UNIQUE INDEX worker_runs_alive ON worker_runs (worker_id) WHERE word IN ('assigned', 'running');
CREATE INDEX worker_runs_of_job ON worker_runs (job_id);
