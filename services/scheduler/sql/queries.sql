-- name: ensure_checkpoint
-- Gives the queue its row, at the beginning of the log.
INSERT INTO checkpoint (durable, position) VALUES ($1, 0) ON CONFLICT (durable) DO NOTHING

-- name: lock_queue
-- One dispatcher at a time, whatever the number of replicas: the row stays locked until the transaction ends.
SELECT position FROM checkpoint WHERE durable = $1 FOR UPDATE

-- name: raise_checkpoint
-- Up to here the queue's rows are folded.
UPDATE checkpoint SET position = $2, updated_at = clock_timestamp() WHERE durable = $1

-- name: read_jobs
-- Those of these jobs that live.
SELECT job_id, user_id, provider, priority, phase, position, queued_at, not_before, attempt_number, wait_reason
FROM jobs WHERE job_id = ANY($1::uuid[])

-- name: read_queue
-- Every job that waits or holds a slot.
SELECT job_id, user_id, provider, priority, phase, position, queued_at, not_before, attempt_number, wait_reason
FROM jobs WHERE phase IN ('queued', 'holding')

-- name: read_holding
-- Every job that holds a slot.
SELECT job_id, user_id, provider, priority, phase, position, queued_at, not_before, attempt_number, wait_reason
FROM jobs WHERE phase = 'holding'

-- name: read_next
-- Who runs next at $1 if $2 slots are free in all, $3/$4 of these users, $5 of every other user: in queue order.
SELECT job_id, user_id, provider, priority, phase, position, queued_at, not_before, attempt_number, wait_reason
FROM (
    SELECT j.*, row_number() OVER (PARTITION BY j.user_id ORDER BY j.priority DESC, j.queued_at, j.position) AS turn
    FROM jobs j
    WHERE j.phase = 'queued' AND j.queued_at IS NOT NULL AND (j.not_before IS NULL OR j.not_before <= $1)
) AS ready
LEFT JOIN unnest($3::text[], $4::int[]) AS u (known_user, free) ON u.known_user = ready.user_id
WHERE turn <= coalesce(u.free, $5::int)
ORDER BY priority DESC, queued_at, position
LIMIT $2

-- name: read_mistold
-- Who waits for another reason than they were last told, the first $2 in queue order; $3/$4/$5 as slots are given out.
SELECT j.job_id, j.user_id, j.provider, j.priority, j.phase, j.position, j.queued_at, j.not_before, j.attempt_number, j.wait_reason
FROM jobs j
LEFT JOIN unnest($3::text[], $4::int[]) AS u (known_user, free) ON u.known_user = j.user_id
WHERE j.phase = 'queued' AND j.queued_at IS NOT NULL AND j.job_id <> ALL ($6::uuid[])
  AND j.wait_reason IS DISTINCT FROM CASE
      WHEN j.not_before > $1 THEN 'retry_delay'
      WHEN coalesce(u.free, $5::int) <= 0 THEN 'user_limit'
      ELSE 'global_limit'
  END
ORDER BY j.priority DESC, j.queued_at, j.position
LIMIT $2

-- name: next_due
-- When the first delayed job may run.
SELECT min(not_before) FROM jobs WHERE phase = 'queued' AND not_before > $1

-- name: save_jobs
-- The rows as the fold says.
INSERT INTO jobs (
    job_id, user_id, provider, priority, phase, position, queued_at, not_before, attempt_number, wait_reason
)
SELECT * FROM unnest(
    $1::uuid[], $2::text[], $3::text[], $4::int[], $5::text[], $6::bigint[], $7::timestamptz[], $8::timestamptz[],
    $9::int[], $10::text[]
)
ON CONFLICT (job_id) DO UPDATE SET
    phase = excluded.phase,
    position = excluded.position,
    queued_at = excluded.queued_at,
    not_before = excluded.not_before,
    attempt_number = excluded.attempt_number,
    wait_reason = excluded.wait_reason

-- name: drop_jobs
-- These jobs have ended: the queue forgets them, the log does not.
DELETE FROM jobs WHERE job_id = ANY($1::uuid[])


-- name: live_history
-- Up to a position of the log: those events ($2: types) of the jobs that had not ended ($3: types) there.
SELECT
    global_position, event_id, stream, stream_version, type, data, meta, correlation_id, recorded_at, hash
FROM log.events e
WHERE category = 'job' AND global_position <= $1 AND type = ANY($2::text[])
AND NOT EXISTS (
    SELECT FROM log.events ended
    WHERE ended.stream = e.stream AND ended.type = ANY($3::text[]) AND ended.global_position <= $1
)
ORDER BY global_position
