-- The model registry: one row for each listed job that completed, folded from the same events as jobs_view.
CREATE TABLE models (
    job_id      uuid PRIMARY KEY,
    name        text NOT NULL,
    created_at  timestamptz NOT NULL,
    -- json, not jsonb: kept byte for byte, so that a rebuild can be compared with what was there.
    body        json NOT NULL
);
CREATE INDEX models_listed ON models (created_at DESC, job_id DESC);
CREATE INDEX models_named ON models (name, created_at DESC, job_id DESC);

-- The registry begins at the first event, and views learn what their config says: everything is folded again.
DELETE FROM jobs_view;
DELETE FROM attempts;
DELETE FROM job_sums;
DELETE FROM inbox WHERE durable = 'gateway__jobs_view';
UPDATE checkpoint SET position = 0 WHERE durable = 'gateway__jobs_view';
