-- name: views_for_update
-- The stored views of some jobs, locked until the projection has written the next ones.
SELECT view FROM jobs_view WHERE job_id = ANY($1::uuid[]) ORDER BY job_id FOR UPDATE;

-- name: put_views
-- Stores the views that a page of events led to.
INSERT INTO jobs_view (job_id, user_id, provider, status, phase, priority, created_at, queued_at, visible, position, view)
SELECT job_id, user_id, provider, status, phase, priority, created_at, queued_at, visible, position, view::json
FROM unnest(
    $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::int[], $7::timestamptz[], $8::timestamptz[],
    $9::boolean[], $10::bigint[], $11::text[]
) AS r (job_id, user_id, provider, status, phase, priority, created_at, queued_at, visible, position, view)
ON CONFLICT (job_id) DO UPDATE SET
    user_id = excluded.user_id, provider = excluded.provider, status = excluded.status, phase = excluded.phase,
    priority = excluded.priority, created_at = excluded.created_at, queued_at = excluded.queued_at,
    visible = excluded.visible, position = excluded.position, view = excluded.view;

-- name: put_attempts
-- Stores the attempts that a page of events led to.
INSERT INTO attempts (attempt_id, job_id, token_sha256, state, view)
SELECT attempt_id, job_id, token_sha256, state, view::json
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[]) AS r (attempt_id, job_id, token_sha256, state, view)
ON CONFLICT (attempt_id) DO UPDATE SET
    job_id = excluded.job_id, token_sha256 = excluded.token_sha256, state = excluded.state, view = excluded.view;

-- name: put_models
-- Stores the models of jobs that completed.
INSERT INTO models (job_id, name, created_at, body)
SELECT job_id, name, created_at, body::json
FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::text[]) AS r (job_id, name, created_at, body)
ON CONFLICT (job_id) DO UPDATE SET name = excluded.name, created_at = excluded.created_at, body = excluded.body;

-- name: drop_models
-- Removes the models of jobs that were deleted.
DELETE FROM models WHERE job_id = ANY($1::uuid[]);

-- name: list_models
-- Models, newest first.
SELECT body FROM models ORDER BY created_at DESC, job_id DESC LIMIT $1 OFFSET $2;

-- name: count_models
-- How many models there are.
SELECT count(*) FROM models;

-- name: model_of_job
-- The model that one job made.
SELECT body FROM models WHERE job_id = $1;

-- name: model_named
-- The newest model of a name.
SELECT body FROM models WHERE name = $1 ORDER BY created_at DESC, job_id DESC LIMIT 1;

-- name: add_to_sums
-- Moves jobs from one sum to another: what they were is taken away, what they are is added.
INSERT INTO job_sums AS s (day, provider, status, visible, jobs, cost_micro_usd, timed_jobs, duration_ms)
SELECT * FROM unnest(
    $1::date[], $2::text[], $3::text[], $4::boolean[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[]
)
ON CONFLICT (day, provider, status, visible) DO UPDATE SET
    jobs = s.jobs + excluded.jobs, cost_micro_usd = s.cost_micro_usd + excluded.cost_micro_usd,
    timed_jobs = s.timed_jobs + excluded.timed_jobs, duration_ms = s.duration_ms + excluded.duration_ms;

-- name: drop_empty_sums
-- Removes those of these sums that nothing is left in.
DELETE FROM job_sums s
USING unnest($1::date[], $2::text[], $3::text[], $4::boolean[]) AS k (day, provider, status, visible)
WHERE (s.day, s.provider, s.status, s.visible) = (k.day, k.provider, k.status, k.visible) AND s.jobs = 0;

-- name: read_sums
-- The sums of jobs submitted on a day or later.
SELECT day, provider, status, visible, jobs, cost_micro_usd, timed_jobs, duration_ms
FROM job_sums WHERE day >= $1
ORDER BY day, provider, status, visible;

-- name: view_of
-- One job's view.
SELECT view FROM jobs_view WHERE job_id = $1;

-- name: views_of
-- The views of some jobs.
SELECT view FROM jobs_view WHERE job_id = ANY($1::uuid[]);

-- name: list_all
-- One page of the listed jobs, newest first: of each its id and how far it is folded, 24 bytes; and how many all pages hold.
SELECT
    (SELECT coalesce(string_agg(uuid_send(job_id) || int8send(position), ''::bytea ORDER BY created_at DESC, job_id DESC),
                     ''::bytea)
     FROM (
        SELECT job_id, position, created_at FROM jobs_view
        WHERE visible
        ORDER BY created_at DESC, job_id DESC
        LIMIT $1 OFFSET $2
     ) AS page) AS listed,
    (SELECT coalesce(sum(jobs), 0)::bigint FROM job_sums WHERE visible) AS total;

-- name: list_of_status
-- The same of one status; a NULL filter lets everything through.
SELECT
    (SELECT coalesce(string_agg(uuid_send(job_id) || int8send(position), ''::bytea ORDER BY created_at DESC, job_id DESC),
                     ''::bytea)
     FROM (
        SELECT job_id, position, created_at FROM jobs_view
        WHERE visible
          AND status = $3
          AND ($4::text IS NULL OR provider = $4)
          AND ($5::boolean IS NULL OR (provider = 'local') = $5)
        ORDER BY created_at DESC, job_id DESC
        LIMIT $1 OFFSET $2
     ) AS page) AS listed,
    (SELECT coalesce(sum(jobs), 0)::bigint FROM job_sums
     WHERE visible
       AND status = $3
       AND ($4::text IS NULL OR provider = $4)
       AND ($5::boolean IS NULL OR (provider = 'local') = $5)) AS total;

-- name: list_of_provider
-- The same of any status.
SELECT
    (SELECT coalesce(string_agg(uuid_send(job_id) || int8send(position), ''::bytea ORDER BY created_at DESC, job_id DESC),
                     ''::bytea)
     FROM (
        SELECT job_id, position, created_at FROM jobs_view
        WHERE visible
          AND ($3::text IS NULL OR provider = $3)
          AND ($4::boolean IS NULL OR (provider = 'local') = $4)
        ORDER BY created_at DESC, job_id DESC
        LIMIT $1 OFFSET $2
     ) AS page) AS listed,
    (SELECT coalesce(sum(jobs), 0)::bigint FROM job_sums
     WHERE visible
       AND ($3::text IS NULL OR provider = $3)
       AND ($4::boolean IS NULL OR (provider = 'local') = $4)) AS total;

-- name: waiting_order
-- The ids of the waiting jobs, 16 bytes each, as they stand: queued ones by priority and time, then the others.
SELECT coalesce(string_agg(uuid_send(job_id), ''::bytea ORDER BY priority DESC, queued_at, job_id), ''::bytea)
FROM jobs_view
WHERE visible AND phase IN ('unknown', 'submitted', 'queued');

-- name: count_active
-- Jobs that have not ended.
SELECT coalesce(sum(jobs), 0)::bigint FROM job_sums
WHERE visible AND status IN ('pending', 'uploading', 'queued', 'running');

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
