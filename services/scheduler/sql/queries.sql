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

-- name: save_job
-- The row as the fold says.
INSERT INTO jobs (
    job_id, user_id, provider, priority, phase, position, queued_at, not_before, attempt_number, wait_reason
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
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
