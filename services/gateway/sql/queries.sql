-- name: view_for_update
-- The stored view of one job, locked until the projection has written the next one.
SELECT view FROM jobs_view WHERE job_id = $1 FOR UPDATE;

-- name: put_view
-- Stores the view that one more event led to.
INSERT INTO jobs_view (job_id, user_id, provider, status, phase, priority, created_at, queued_at, visible, position, view)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (job_id) DO UPDATE SET
    user_id = excluded.user_id, provider = excluded.provider, status = excluded.status, phase = excluded.phase,
    priority = excluded.priority, created_at = excluded.created_at, queued_at = excluded.queued_at,
    visible = excluded.visible, position = excluded.position, view = excluded.view;

-- name: put_attempt
-- Stores the attempt that one more event led to.
INSERT INTO attempts (attempt_id, job_id, token_sha256, state, view)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (attempt_id) DO UPDATE SET
    job_id = excluded.job_id, token_sha256 = excluded.token_sha256, state = excluded.state, view = excluded.view;

-- name: view_of
-- One job's view.
SELECT view FROM jobs_view WHERE job_id = $1;

-- name: list_views
-- One page of the listed jobs, newest first; a NULL filter lets everything through.
SELECT view FROM jobs_view
WHERE visible
  AND ($1::text IS NULL OR status = $1)
  AND ($2::text IS NULL OR provider = $2)
  AND ($3::boolean IS NULL OR (provider = 'local') = $3)
ORDER BY created_at DESC, job_id DESC
LIMIT $4 OFFSET $5;

-- name: count_views
-- How many jobs the same filters let through, whatever the page.
SELECT count(*) FROM jobs_view
WHERE visible
  AND ($1::text IS NULL OR status = $1)
  AND ($2::text IS NULL OR provider = $2)
  AND ($3::boolean IS NULL OR (provider = 'local') = $3);

-- name: waiting_order
-- Where the given waiting jobs stand: queued ones by priority, time and position, then those not queued yet.
SELECT job_id, place FROM (
    SELECT job_id, row_number() OVER (ORDER BY priority DESC, queued_at NULLS LAST, position, job_id) AS place
    FROM jobs_view
    WHERE visible AND phase IN ('unknown', 'submitted', 'queued')
) AS waiting
WHERE job_id = ANY($1::uuid[]);

-- name: count_active
-- Jobs that have not ended.
SELECT count(*) FROM jobs_view WHERE visible AND status IN ('pending', 'uploading', 'queued', 'running');

-- name: attempts_of_job
-- Every attempt of one job.
SELECT view FROM attempts WHERE job_id = $1;

-- name: attempts_by_token
-- The attempts (one) whose trainer's token has this digest.
SELECT view FROM attempts WHERE token_sha256 = $1;

-- name: claim_key
-- Claims an idempotency key for a new job; returns nothing when somebody's claim still stands.
INSERT INTO idempotency (user_id, key, body_sha256, job_id, claimed_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (user_id, key) DO UPDATE SET
    body_sha256 = excluded.body_sha256, job_id = excluded.job_id,
    claimed_at = excluded.claimed_at, expires_at = excluded.expires_at
WHERE idempotency.expires_at <= excluded.claimed_at
RETURNING job_id;

-- name: claim_of
-- The standing claim of a key at a moment.
SELECT body_sha256, job_id FROM idempotency WHERE user_id = $1 AND key = $2 AND expires_at > $3;

-- name: forget_expired_claims
-- Removes claims nobody can repeat any more, a bounded number at a time.
DELETE FROM idempotency WHERE ctid IN (SELECT ctid FROM idempotency WHERE expires_at <= $1 LIMIT 1000);

-- name: alive
-- Answers when Postgres does.
SELECT 1;
