-- name: enqueue_pack_job
-- Remembers that a job's datasets are to be packed; a repeat changes nothing.
INSERT INTO pack_jobs (job_id, command, envelope, not_before) VALUES ($1, $2, $3, $4)
ON CONFLICT (job_id) DO NOTHING;

-- name: claim_pack_job
-- Takes the job that has waited longest and that nobody works on; $1 worker, $2 now, $3 end of the claim.
UPDATE pack_jobs SET claimed_by = $1, claimed_until = $3, tries = tries + 1
WHERE job_id = (
    SELECT job_id FROM pack_jobs
    WHERE done_at IS NULL AND not_before <= $2 AND (claimed_until IS NULL OR claimed_until <= $2)
    ORDER BY not_before, job_id
    LIMIT 1
    FOR UPDATE SKIP LOCKED
)
RETURNING command, envelope, tries;

-- name: renew_pack_claim
-- Keeps a claim alive; no row comes back when somebody else has it.
UPDATE pack_jobs SET claimed_until = $3 WHERE job_id = $1 AND claimed_by = $2 RETURNING job_id;

-- name: release_pack_claim
-- Gives a job back, to be tried again at $3 for the reason $4; a try that was not the job's fault ($5) is not counted.
UPDATE pack_jobs
SET claimed_by = NULL, claimed_until = NULL, not_before = $3, last_error = $4, tries = tries - $5
WHERE job_id = $1 AND claimed_by = $2;

-- name: finish_pack_job
-- The result is in the log; nothing is left to do.
UPDATE pack_jobs SET done_at = $2, claimed_by = NULL, claimed_until = NULL WHERE job_id = $1;

-- name: upsert_object
-- The newest content of an object key.
INSERT INTO objects (
    bucket, object_key, version, job_id, attempt_id, name, size_bytes, sha256, md5, content_type, stored_at
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (bucket, object_key) DO UPDATE SET
    version = excluded.version, job_id = excluded.job_id, attempt_id = excluded.attempt_id, name = excluded.name,
    size_bytes = excluded.size_bytes, sha256 = excluded.sha256, md5 = excluded.md5,
    content_type = excluded.content_type, stored_at = excluded.stored_at
WHERE objects.version < excluded.version;

-- name: insert_dataset
-- A packed dataset, by its content; the first job that packed it dates it.
INSERT INTO datasets (sha256, size_bytes, file_count, packed_at) VALUES ($1, $2, $3, $4)
ON CONFLICT (sha256) DO NOTHING;

-- name: list_buckets
-- Size, count and newest change of each bucket that has something in it.
SELECT bucket, sum(size_bytes)::bigint AS size_bytes, count(*) AS file_count, max(stored_at) AS last_modified
FROM objects GROUP BY bucket
UNION ALL
SELECT 'datasets', sum(size_bytes)::bigint, count(*), max(packed_at) FROM datasets HAVING count(*) > 0
ORDER BY bucket;

-- name: list_objects
-- Objects of a bucket by key; $2 begins their keys, $3 one job or null, $4 the key to go on after, $5 how many.
SELECT object_key, job_id, attempt_id, name, size_bytes, sha256, md5, content_type, stored_at
FROM objects
WHERE bucket = $1 AND starts_with(object_key, $2) AND ($3::uuid IS NULL OR job_id = $3) AND object_key > $4
ORDER BY object_key
LIMIT $5;

-- name: list_datasets
-- Packed datasets by digest; $1 begins the digest, $2 the digest to go on after, $3 how many.
SELECT sha256, size_bytes, packed_at FROM datasets
WHERE starts_with(sha256, $1) AND sha256 COLLATE "C" > $2
ORDER BY sha256 COLLATE "C"
LIMIT $3;

-- name: lock_report_job
-- Holds the job until commit and answers its last cursor.
INSERT INTO report_jobs (job_id) VALUES ($1)
ON CONFLICT (job_id) DO UPDATE SET last_cursor = report_jobs.last_cursor
RETURNING last_cursor;

-- name: open_report_attempt
-- The attempt's day and ack, made at its first line; $3 today, $4 now.
INSERT INTO report_attempts (attempt_id, job_id, day, last_at) VALUES ($1, $2, $3, $4)
ON CONFLICT (attempt_id) DO UPDATE SET last_at = greatest(report_attempts.last_at, excluded.last_at)
RETURNING job_id, day, ack;

-- name: insert_reports
-- Stores the lines that are new and gives them the next cursors in order of seq; answers what was stored.
INSERT INTO reports (day, job_id, attempt_id, seq, cursor, type, ts, line)
SELECT $1::date, $2::uuid, $3::uuid, fresh.seq, $4::bigint + row_number() OVER (ORDER BY fresh.seq), fresh.type, fresh.ts, fresh.line
FROM unnest($5::bigint[], $6::text[], $7::timestamptz[], $8::bytea[]) AS fresh (seq, type, ts, line)
WHERE fresh.seq > $9::bigint
  AND NOT EXISTS (SELECT FROM reports WHERE day = $1 AND attempt_id = $3 AND seq = fresh.seq)
ON CONFLICT DO NOTHING
RETURNING cursor, type;

-- name: contiguous_ack
-- The highest seq up to which the attempt has no gap, starting from the ack it had ($3).
SELECT coalesce(max(seq), $3::bigint) AS ack
FROM (
    SELECT seq, seq - row_number() OVER (ORDER BY seq) AS offset_of_run
    FROM reports WHERE day = $1 AND attempt_id = $2 AND seq > $3
) AS later
WHERE offset_of_run = $3;

-- name: save_report_ack
-- What the attempt may be told.
UPDATE report_attempts SET ack = $2 WHERE attempt_id = $1;

-- name: save_report_cursor
-- Where the job's next line goes on.
UPDATE report_jobs SET last_cursor = $2 WHERE job_id = $1;

-- name: read_reports_after
-- Lines of a job after a cursor in order; no types means all; stops before $5 bytes but never before the first line.
SELECT cursor, line FROM (
    SELECT cursor, line, sum(octet_length(line)) OVER (ORDER BY cursor) AS bytes_so_far
    FROM (
        SELECT cursor, line FROM reports
        WHERE job_id = $1 AND cursor > $2 AND (cardinality($3::text[]) = 0 OR type = ANY ($3))
        ORDER BY cursor LIMIT $4
    ) AS page
) AS sized
WHERE bytes_so_far <= $5 OR bytes_so_far = octet_length(line)
ORDER BY cursor;

-- name: read_reports_tail
-- The last lines of a job after a cursor, in order; otherwise like read_reports_after.
SELECT cursor, line FROM (
    SELECT cursor, line, sum(octet_length(line)) OVER (ORDER BY cursor DESC) AS bytes_so_far
    FROM (
        SELECT cursor, line FROM reports
        WHERE job_id = $1 AND cursor > $2 AND (cardinality($3::text[]) = 0 OR type = ANY ($3))
        ORDER BY cursor DESC LIMIT $4
    ) AS page
) AS sized
WHERE bytes_so_far <= $5 OR bytes_so_far = octet_length(line)
ORDER BY cursor;

-- name: ensure_report_partition
-- A place for the lines of attempts whose first line comes on that day.
SELECT ensure_report_partition($1);

-- name: drop_report_partitions
-- Forgets days before $1 whose attempts are all quiet.
SELECT drop_report_partitions($1);

-- name: report_attempt_day
-- The day whose partition holds the attempt's lines.
SELECT day FROM report_attempts WHERE attempt_id = $1;
