-- The tables and functions that every service's schema has. Applied by migrate in the service's own search_path.

-- Event ids that a durable has handled: what makes a redelivery harmless.
CREATE TABLE IF NOT EXISTS inbox (
    durable text NOT NULL,
    event_id uuid NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (durable, event_id)
);
CREATE INDEX IF NOT EXISTS inbox_by_position ON inbox (durable, position);

-- Up to here a durable has handled every event of its categories; its row lock keeps rebuild and consumer apart.
CREATE TABLE IF NOT EXISTS checkpoint (
    durable text PRIMARY KEY,
    position bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Events given up after the last try, until somebody replays them.
CREATE TABLE IF NOT EXISTS parked (
    durable text NOT NULL,
    position bigint NOT NULL,
    event_id uuid NOT NULL,
    type text NOT NULL,
    stream text NOT NULL,
    reason text NOT NULL,
    parked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (durable, position)
);

-- Every row of a table as text, in the order of its primary key: the same rows give the same lines on any machine.
CREATE OR REPLACE FUNCTION table_lines(wanted text) RETURNS SETOF text
LANGUAGE plpgsql STABLE
SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'iso_8601' SET bytea_output = 'hex'
SET extra_float_digits = 1
AS $$
DECLARE
    keys text;
BEGIN
    SELECT string_agg(format('t.%I::text COLLATE "C"', a.attname), ', ' ORDER BY k.place)
    INTO keys
    FROM pg_index i
    CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE i.indrelid = wanted::regclass AND i.indisprimary;
    IF keys IS NULL THEN
        RAISE EXCEPTION 'projection table % has no primary key', wanted;
    END IF;
    RETURN QUERY EXECUTE format('SELECT t::text FROM %s t ORDER BY %s', wanted::regclass, keys);
END
$$;

-- Empties a table without shutting its readers out, as TRUNCATE would.
CREATE OR REPLACE FUNCTION table_clear(wanted text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    EXECUTE format('DELETE FROM %s', wanted::regclass);
END
$$;
