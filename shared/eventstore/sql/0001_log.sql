-- The log. Applied as role log_owner, who owns everything here and cannot log in. PostgreSQL 15 or later.

create table log.store_meta (
    one_row boolean primary key default true check (one_row),
    store_id uuid not null,
    schema_version int not null,
    created_at timestamptz not null default clock_timestamp()
);

create table log.category_writer (
    category text primary key check (category ~ '^[a-z_]+$'),
    role name not null
);

create table log.events (
    -- Without gaps: append_batch gives positions under one lock, so a missing one is a dropped event.
    global_position bigint primary key check (global_position > 0),
    event_id uuid not null unique,
    stream text not null check (stream ~ '^[a-z_]+-[A-Za-z0-9_-]+$'),
    category text not null generated always as (split_part(stream, '-', 1)) stored,
    stream_version int not null check (stream_version > 0),
    type text not null check (type ~ '^[a-z_]+\.[a-z_]+\.v[0-9]+$'),
    data bytea not null,
    meta bytea not null,
    correlation_id uuid not null,
    recorded_at timestamptz not null,
    hash bytea not null check (octet_length(hash) = 32),
    unique (stream, stream_version),
    check (split_part(type, '.', 1) = split_part(stream, '-', 1))
);
create index events_by_category on log.events (category, global_position);
create index events_by_correlation on log.events (correlation_id, global_position);

create view log.readable as
select
    global_position, event_id, stream, category, stream_version, type,
    convert_from(data, 'UTF8')::jsonb as data,
    convert_from(meta, 'UTF8')::jsonb as meta,
    correlation_id, recorded_at, encode(hash, 'hex') as hash
from log.events;
comment on view log.readable is 'The log for people in psql: payloads as jsonb.';

-- A running hash over the global order, written by the relay: each seal covers its range and the seal before it.
create table log.seals (
    from_position bigint not null unique check (from_position > 0),
    to_position bigint primary key check (to_position >= from_position),
    event_count int not null check (event_count > 0),
    hash bytea not null check (octet_length(hash) = 32),
    sealed_at timestamptz not null default clock_timestamp()
);

create table log.relay_checkpoint (
    one_row boolean primary key default true check (one_row),
    position bigint not null check (position >= 0),
    updated_at timestamptz not null default clock_timestamp()
);

create function log.refuse_change() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception '% on log.% is refused: the log is append-only', tg_op, tg_table_name
        using errcode = 'insufficient_privilege';
end
$$;

create trigger append_only before update or delete or truncate on log.events
for each statement execute function log.refuse_change();
create trigger append_only before update or delete or truncate on log.seals
for each statement execute function log.refuse_change();
-- ALWAYS: session_replication_role does not switch them off either.
alter table log.events enable always trigger append_only;
alter table log.seals enable always trigger append_only;

create function log.append_batch(
    -- one entry for each command
    streams text[], expected_versions int[], correlation_ids uuid[], event_counts int[],
    -- one entry for each event, in the order of the commands
    event_ids uuid[], types text[], datas bytea[], metas bytea[]
)
returns table (command_no int, first_position bigint, last_position bigint, version int)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan  -- planning anew would cost small batches more than the work itself
as $$
-- Commits each command's events, all or none, if its stream is still at the expected version; the first such command
-- of a stream wins. A loser's row has no positions and the version its stream has after this batch.
-- Position order is commit order, because the lock is held until the transaction ends.
declare
    command_count constant int := cardinality(streams);
    heads int[];          -- of each command's stream, before this batch
    heads_after int[];
    head_hashes bytea[];
    wins boolean[];
    log_position bigint;
    moment timestamptz;
    moment_bytes bytea;
    foreign_category text;
    stream_bytes bytea;
    chain bytea;
    event_no int := 0;
    version_now int;
    -- one entry for each event, null for those of losers
    positions bigint[] := array_fill(null::bigint, array[cardinality(event_ids)]);
    versions int[] := array_fill(null::int, array[cardinality(event_ids)]);
    hashes bytea[] := array_fill(null::bytea, array[cardinality(event_ids)]);
    event_streams text[] := array_fill(null::text, array[cardinality(event_ids)]);
    event_correlations uuid[] := array_fill(null::uuid, array[cardinality(event_ids)]);
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'append_batch needs read committed: an older snapshot does not show the streams'' heads'
            using errcode = 'invalid_transaction_state';
    end if;
    if cardinality(event_ids) <> (select sum(n) from unnest(event_counts) as n) or 1 > any (event_counts) then
        raise exception 'append_batch needs at least one event for each command, and as many as it says'
            using errcode = 'invalid_parameter_value';
    end if;
    select split_part(s, '-', 1) into foreign_category
    from unnest(streams) as s
    where not exists (
        select from log.category_writer w where w.category = split_part(s, '-', 1) and w.role = session_user
    )
    limit 1;
    if found then
        raise exception '% may not append to category %', session_user, foreign_category
            using errcode = 'insufficient_privilege';
    end if;

    -- A statement of its own: only the next one gets a snapshot that shows what the lock's last holder committed.
    perform pg_advisory_xact_lock(7305808869232664);

    select e.global_position, greatest(e.recorded_at, clock_timestamp()) into log_position, moment
    from log.events e order by e.global_position desc limit 1;
    log_position := coalesce(log_position, 0);
    moment := coalesce(moment, clock_timestamp());
    moment_bytes := int8send((extract(epoch from moment) * 1000000)::bigint);

    select
        array_agg(r.head order by r.n), array_agg(r.head_hash order by r.n), array_agg(r.win order by r.n),
        array_agg(r.head_after order by r.n)
    into heads, head_hashes, wins, heads_after
    from (
        select
            q.n, q.head, q.head_hash, q.win,
            coalesce(max(q.head + q.event_count) filter (where q.win) over (partition by q.stream), q.head) as head_after
        from (
            select
                c.n, c.stream, c.event_count, coalesce(h.stream_version, 0) as head, coalesce(h.hash, '') as head_hash,
                c.expected = coalesce(h.stream_version, 0)
                and row_number() over (
                    partition by c.stream, c.expected = coalesce(h.stream_version, 0) order by c.n
                ) = 1 as win
            from unnest(streams, expected_versions, event_counts) with ordinality as c (stream, expected, event_count, n)
            left join lateral (
                select e.stream_version, e.hash from log.events e
                where e.stream = c.stream order by e.stream_version desc limit 1
            ) as h on true
        ) as q
    ) as r;

    for c in 1..command_count loop
        command_no := c;
        first_position := null;
        last_position := null;
        version := heads_after[c];
        if wins[c] then
            first_position := log_position + 1;
            version_now := heads[c];
            chain := head_hashes[c];
            stream_bytes := convert_to(streams[c], 'UTF8');
            stream_bytes := int4send(octet_length(stream_bytes)) || stream_bytes;
            for e in event_no + 1..event_no + event_counts[c] loop
                log_position := log_position + 1;
                version_now := version_now + 1;
                -- The same bytes as shared/eventstore/hashing.py; a test holds them together.
                chain := sha256(
                    int4send(octet_length(chain)) || chain || int8send(log_position) || uuid_send(event_ids[e])
                    || stream_bytes || int4send(version_now)
                    || int4send(octet_length(types[e])) || convert_to(types[e], 'UTF8')
                    || int4send(octet_length(datas[e])) || datas[e]
                    || int4send(octet_length(metas[e])) || metas[e]
                    || uuid_send(correlation_ids[c]) || moment_bytes
                );
                positions[e] := log_position;
                versions[e] := version_now;
                hashes[e] := chain;
                event_streams[e] := streams[c];
                event_correlations[e] := correlation_ids[c];
            end loop;
            last_position := log_position;
        end if;
        event_no := event_no + event_counts[c];
        return next;
    end loop;

    insert into log.events (
        global_position, event_id, stream, stream_version, type, data, meta, correlation_id, recorded_at, hash
    )
    select n.position, n.event_id, n.stream, n.version, n.type, n.data, n.meta, n.correlation_id, moment, n.hash
    from unnest(positions, event_ids, event_streams, versions, types, datas, metas, event_correlations, hashes)
        as n (position, event_id, stream, version, type, data, meta, correlation_id, hash)
    where n.position is not null;
    if found then
        perform pg_notify('log_appended', '');
    end if;
end
$$;

create function log.position_at(moment timestamptz) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
-- The highest position recorded at or before the moment, 0 if none. Times never fall along the log: a binary search.
declare
    low bigint := 0;     -- recorded at or before the moment, or 0
    high bigint := (select coalesce(max(e.global_position), 0) from log.events e);
    middle bigint;
begin
    while low < high loop
        middle := (low + high + 1) / 2;
        if (select e.recorded_at <= moment from log.events e
            where e.global_position >= middle order by e.global_position limit 1) then
            low := middle;
        else
            high := middle - 1;
        end if;
    end loop;
    return low;
end
$$;

revoke all on all tables in schema log from public;
revoke all on all functions in schema log from public;
