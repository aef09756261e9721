-- Storage's own tables: packing work, read models of objects, and telemetry. search_path is storage, log.

CREATE TABLE pack_jobs (
    job_id uuid PRIMARY KEY,
    command bytea NOT NULL,                  -- JSON of PackDatasets
    envelope bytea NOT NULL,                 -- JSON of the command's envelope
    tries int NOT NULL DEFAULT 0,
    claimed_by uuid,
    claimed_until timestamptz,
    not_before timestamptz NOT NULL,
    last_error text,
    done_at timestamptz
);
CREATE INDEX pack_jobs_open ON pack_jobs (not_before) WHERE done_at IS NULL;

CREATE TABLE objects (
    bucket text NOT NULL,
    object_key text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    job_id uuid NOT NULL,
    attempt_id uuid,
    name text NOT NULL,
    size_bytes bigint NOT NULL,
    sha256 text NOT NULL,
    md5 text,
    content_type text NOT NULL,
    stored_at timestamptz NOT NULL,
    PRIMARY KEY (bucket, object_key)
);
CREATE INDEX objects_of_job ON objects (job_id, bucket, object_key);

CREATE TABLE datasets (
    sha256 text PRIMARY KEY,
    size_bytes bigint NOT NULL,
    file_count bigint NOT NULL,
    packed_at timestamptz NOT NULL
);

-- Telemetry. A job's row is the lock under which its lines get their cursors, so cursor order is commit order.
CREATE TABLE report_jobs (
    job_id uuid PRIMARY KEY,
    last_cursor bigint NOT NULL DEFAULT 0
);

-- An attempt keeps the day of its first line: all its lines live in that day's partition, whenever they arrive.
CREATE TABLE report_attempts (
    attempt_id uuid PRIMARY KEY,
    job_id uuid NOT NULL,
    day date NOT NULL,
    ack bigint NOT NULL DEFAULT 0,
    last_at timestamptz NOT NULL
);
CREATE INDEX report_attempts_by_day ON report_attempts (day, last_at);

CREATE TABLE reports (
    day date NOT NULL,
    job_id uuid NOT NULL,
    attempt_id uuid NOT NULL,
    seq bigint NOT NULL,
    cursor bigint NOT NULL,
    type text NOT NULL,
    ts timestamptz NOT NULL,
    line bytea NOT NULL,                     -- JSON of ReportLine as it was sent
    PRIMARY KEY (day, attempt_id, seq)
) PARTITION BY LIST (day);
CREATE INDEX reports_in_order ON reports (job_id, cursor);
CREATE INDEX reports_by_type ON reports (job_id, type, cursor);

-- Makes the partition of one day; a repeat and a race are harmless.
CREATE FUNCTION ensure_report_partition(wanted date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    partition_name text := 'reports_' || to_char(wanted, 'YYYYMMDD');
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('storage.reports partitions'));
    IF to_regclass('storage.' || partition_name) IS NULL THEN
        EXECUTE format('CREATE TABLE storage.%I PARTITION OF storage.reports FOR VALUES IN (%L)', partition_name, wanted);
    END IF;
END $$;

-- Drops every day before `keep_from` whose attempts have all been quiet since then; answers how many.
CREATE FUNCTION drop_report_partitions(keep_from date) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    old_name text;
    dropped int := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('storage.reports partitions'));
    FOR old_name IN
        SELECT child.relname
        FROM pg_inherits
        JOIN pg_class child ON child.oid = inhrelid
        WHERE inhparent = 'storage.reports'::regclass
          AND child.relname < 'reports_' || to_char(keep_from, 'YYYYMMDD')
          AND NOT EXISTS (
              SELECT FROM storage.report_attempts
              WHERE 'reports_' || to_char(day, 'YYYYMMDD') = child.relname AND last_at >= keep_from
          )
    LOOP
        EXECUTE format('DROP TABLE storage.%I', old_name);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END $$;
