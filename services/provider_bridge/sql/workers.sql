-- name: insert_worker
-- A worker was made.
INSERT INTO workers (worker_id, created_at) VALUES ($1, $2) ON CONFLICT (worker_id) DO NOTHING;

-- name: delete_worker
-- A worker was removed.
DELETE FROM workers WHERE worker_id = $1;

-- name: hear_worker
-- A sign of life; NULL = what it said last stays.
INSERT INTO workers (worker_id, created_at, heard_at, said) VALUES ($1, $2, $2, $3)
ON CONFLICT (worker_id) DO UPDATE
SET heard_at = greatest(workers.heard_at, excluded.heard_at), said = coalesce(excluded.said, workers.said);

-- name: connect_worker
-- It has registered.
UPDATE workers SET connected_at = $2 WHERE worker_id = $1;

-- name: see_stream
-- Its stream is open.
UPDATE workers SET stream_at = $2 WHERE worker_id = $1;

-- name: all_workers
-- Every worker, the oldest first.
SELECT worker_id, created_at, heard_at, connected_at, stream_at, said::text AS said FROM workers ORDER BY created_at, worker_id;

-- name: raise_run_fence
-- Shuts out every lower epoch; no row if a higher one has done that to us. The row is ours until the transaction ends.
INSERT INTO worker_runs (attempt_id, fence) VALUES ($1, $2)
ON CONFLICT (attempt_id) DO UPDATE SET fence = excluded.fence WHERE worker_runs.fence <= excluded.fence
RETURNING attempt_id, worker_id, word, taken_at, started_at, ended_at, exit_code, last_words;

-- name: assign_run
-- The attempt's run is that worker's.
UPDATE worker_runs
SET worker_id = $2, job_id = $3, epoch = $4, word = 'assigned', spec = $5, token = $6, max_run_s = $7,
    price_micro_usd_per_hour = $8
WHERE attempt_id = $1 AND worker_id IS NULL;

-- name: take_run
-- The worker is told of it now: from here on its cancel goes by way of the worker.
UPDATE worker_runs SET taken_at = coalesce(taken_at, $2)
WHERE attempt_id = $1 AND word IN ('assigned', 'running')
RETURNING job_id, epoch, spec, token, max_run_s;

-- name: begin_run
-- Its trainer was started: the worker has what it needs.
UPDATE worker_runs SET word = 'running', started_at = coalesce(started_at, $2), token = NULL
WHERE attempt_id = $1 AND word = 'assigned';

-- name: end_run
-- It is over. With $6 only if the worker was never told of it; a row says that it was done.
UPDATE worker_runs
SET word = $2, exit_code = $3, ended_at = $4, last_words = $5, spec = NULL, token = NULL
WHERE attempt_id = $1 AND word IN ('assigned', 'running') AND (taken_at IS NULL OR NOT $6::boolean)
RETURNING attempt_id;

-- name: read_run
-- One run, or the row of an attempt that never had one.
SELECT attempt_id, worker_id, word, taken_at, started_at, ended_at, exit_code, last_words
FROM worker_runs WHERE attempt_id = $1;

-- name: run_of_job
-- The run that a worker had last for a job.
SELECT attempt_id, worker_id, word FROM worker_runs
WHERE job_id = $1
ORDER BY (worker_id = $2) DESC, attempt_id DESC
LIMIT 1;

-- name: living_runs
-- Every run that is some worker's now, under the epoch that may end it.
SELECT attempt_id, fence AS epoch, started_at, price_micro_usd_per_hour FROM worker_runs WHERE word IN ('assigned', 'running');
