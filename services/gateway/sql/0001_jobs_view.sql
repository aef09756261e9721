-- Jobs as clients see them, the attempts that may report, and the idempotency keys that were claimed.

CREATE TABLE jobs_view (
    job_id      uuid PRIMARY KEY,
    user_id     text NOT NULL,
    provider    text NOT NULL,
    status      text NOT NULL,
    phase       text NOT NULL,
    priority    int NOT NULL,
    created_at  timestamptz,
    queued_at   timestamptz,
    visible     boolean NOT NULL,
    position    bigint NOT NULL,
    -- json, not jsonb: kept byte for byte, so that a rebuild can be compared with what was there.
    view        json NOT NULL
);
CREATE INDEX jobs_view_listed ON jobs_view (created_at DESC, job_id DESC) WHERE visible;
CREATE INDEX jobs_view_waiting ON jobs_view (priority DESC, queued_at, position)
    WHERE visible AND phase IN ('unknown', 'submitted', 'queued');

CREATE TABLE attempts (
    attempt_id    uuid PRIMARY KEY,
    job_id        uuid NOT NULL,
    token_sha256  text,
    state         text NOT NULL,
    view          json NOT NULL
);
CREATE INDEX attempts_of_job ON attempts (job_id);
CREATE INDEX attempts_by_token ON attempts (token_sha256);

-- No projection: a row is a claim that was made here, and is never refolded.
CREATE TABLE idempotency (
    user_id      text NOT NULL,
    key          text NOT NULL,
    body_sha256  bytea NOT NULL,
    job_id       uuid NOT NULL,
    claimed_at   timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    PRIMARY KEY (user_id, key)
);
CREATE INDEX idempotency_expiry ON idempotency (expires_at);
