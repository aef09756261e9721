-- Sums over jobs, so that a list's total and the metrics cost the same with ten jobs as with a million; and indexes for
-- lists of one status. Folded from the same events as jobs_view.
CREATE TABLE job_sums (
    day             date NOT NULL,  -- when its jobs were submitted, in UTC
    provider        text NOT NULL,
    status          text NOT NULL,
    visible         boolean NOT NULL,
    jobs            bigint NOT NULL,
    cost_micro_usd  bigint NOT NULL,
    timed_jobs      bigint NOT NULL,
    duration_ms     bigint NOT NULL,  -- of the timed jobs: those that started and have ended
    PRIMARY KEY (day, provider, status, visible)
);
CREATE INDEX jobs_view_of_status ON jobs_view (status, created_at DESC, job_id DESC) WHERE visible;

-- Without `position`, which changes with every event and made each update write every index.
DROP INDEX jobs_view_waiting;
CREATE INDEX jobs_view_waiting ON jobs_view (priority DESC, queued_at, job_id)
    WHERE visible AND phase IN ('unknown', 'submitted', 'queued');

-- The sums begin at the first event: everything is folded again from the log.
DELETE FROM jobs_view;
DELETE FROM attempts;
DELETE FROM inbox WHERE durable = 'gateway__jobs_view';
UPDATE checkpoint SET position = 0 WHERE durable = 'gateway__jobs_view';
