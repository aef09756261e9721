-- append_batch with less work for the usual batch: same arguments, answers, order and hashes as in 0002. Where every
-- command brings one event and wins, no hash waits for another of its batch, and one statement makes all rows.

create function log.event_hash(
    previous bytea, at_position bigint, event_id uuid, stream text, version int, type text, data bytea, meta bytea,
    correlation_id uuid, recorded_us bigint
)
returns bytea language sql stable as $$
-- The same bytes as shared/eventstore/hashing.py; a test holds them together. Without settings of its own and not called
-- immutable (convert_to is not), so that the server puts it in its caller's place.
select sha256(
    int4send(octet_length(previous)) || previous || int8send(at_position) || uuid_send(event_id)
    || int4send(octet_length(stream)) || convert_to(stream, 'UTF8') || int4send(version)
    || int4send(octet_length(type)) || convert_to(type, 'UTF8')
    || int4send(octet_length(data)) || data || int4send(octet_length(meta)) || meta
    || uuid_send(correlation_id) || int8send(recorded_us)
)
$$;
revoke all on function log.event_hash from public;

create or replace function log.append_batch(
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
    foreign_category text;
    log_position bigint;
    moment timestamptz;
    moment_us bigint;
    heads int[];         -- of each command's stream, before this batch
    heads_after int[];
    head_hashes bytea[];
    has_rivals boolean;  -- whether two commands are for one stream
    wins boolean[];      -- null without rivals: then whoever expects the right version wins
    chain bytea;
    event_no int := 0;
    -- one entry for each event, null for those of losers
    positions bigint[];
    commands int[];
    versions int[];
    hashes bytea[];
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'append_batch needs read committed: an older snapshot does not show the streams'' heads'
            using errcode = 'invalid_transaction_state';
    end if;
    select split_part(s, '-', 1) into foreign_category
    from unnest(streams) as s
    where split_part(s, '-', 1) <> all (array(select w.category from log.category_writer w where w.role = session_user))
    limit 1;
    if found then
        raise exception '% may not append to category %', session_user, foreign_category
            using errcode = 'insufficient_privilege';
    end if;

    -- A statement of its own: only the next one gets a snapshot that shows what the lock's last holder committed.
    perform pg_advisory_xact_lock(7305808869232664);

    select
        array_agg(coalesce(h.stream_version, 0) order by c.n), array_agg(coalesce(h.hash, '') order by c.n),
        count(distinct c.stream) < count(*),
        coalesce((select e.global_position from log.events e order by e.global_position desc limit 1), 0),
        greatest(
            (select e.recorded_at from log.events e order by e.global_position desc limit 1), clock_timestamp()
        )
    into heads, head_hashes, has_rivals, log_position, moment
    from unnest(streams) with ordinality as c (stream, n)
    left join lateral (
        select e.stream_version, e.hash from log.events e
        where e.stream = c.stream order by e.stream_version desc limit 1
    ) as h on true;
    moment_us := extract(epoch from moment) * 1000000;

    if heads = expected_versions and not has_rivals and cardinality(event_ids) = cardinality(streams)
        and event_counts = array_fill(1, array[cardinality(streams)]) then
        return query
        insert into log.events as e (
            global_position, event_id, stream, stream_version, type, data, meta, correlation_id, recorded_at, hash
        )
        select
            log_position + c.n, c.event_id, c.stream, c.head + 1, c.type, c.data, c.meta, c.correlation_id, moment,
            log.event_hash(
                c.head_hash, log_position + c.n, c.event_id, c.stream, c.head + 1, c.type, c.data, c.meta,
                c.correlation_id, moment_us
            )
        from unnest(head_hashes, event_ids, streams, heads, types, datas, metas, correlation_ids)
            with ordinality as c (head_hash, event_id, stream, head, type, data, meta, correlation_id, n)
        returning (e.global_position - log_position)::int, e.global_position, e.global_position, e.stream_version;
        perform pg_notify('log_appended', '');
        return;
    end if;

    heads_after := heads;
    positions := array_fill(null::bigint, array[cardinality(event_ids)]);
    commands := positions;
    versions := positions;
    hashes := array_fill(null::bytea, array[cardinality(event_ids)]);
    if has_rivals then
        select
            array_agg(q.win order by q.n),
            array_agg(coalesce(q.head_after, q.head) order by q.n)
        into wins, heads_after
        from (
            select
                r.n, r.head, r.win,
                max(r.head + r.event_count) filter (where r.win) over (partition by r.stream) as head_after
            from (
                select
                    c.n, c.stream, c.head, c.event_count,
                    c.expected = c.head
                    and row_number() over (partition by c.stream, c.expected = c.head order by c.n) = 1 as win
                from unnest(streams, expected_versions, event_counts, heads)
                    with ordinality as c (stream, expected, event_count, head, n)
            ) as r
        ) as q;
    end if;

    for c in 1..cardinality(streams) loop
        command_no := c;
        version := heads_after[c];
        first_position := null;
        last_position := null;
        if coalesce(wins[c], version = expected_versions[c]) then
            first_position := log_position + 1;
            version := heads[c];
            chain := head_hashes[c];
            for e in event_no + 1..event_no + event_counts[c] loop
                log_position := log_position + 1;
                version := version + 1;
                chain := log.event_hash(
                    chain, log_position, event_ids[e], streams[c], version, types[e], datas[e], metas[e],
                    correlation_ids[c], moment_us
                );
                positions[e] := log_position;
                commands[e] := c;
                versions[e] := version;
                hashes[e] := chain;
            end loop;
            last_position := log_position;
        end if;
        event_no := event_no + event_counts[c];
        return next;
    end loop;
    if event_no <> cardinality(event_ids) or 1 > any (event_counts) then
        raise exception 'append_batch needs at least one event for each command, and as many as it says'
            using errcode = 'invalid_parameter_value';
    end if;

    insert into log.events (
        global_position, event_id, stream, stream_version, type, data, meta, correlation_id, recorded_at, hash
    )
    select
        n.position, n.event_id, streams[n.command], n.version, n.type, n.data, n.meta, correlation_ids[n.command],
        moment, n.hash
    from unnest(positions, commands, event_ids, versions, types, datas, metas, hashes)
        as n (position, command, event_id, version, type, data, meta, hash)
    where n.position is not null;
    if found then
        perform pg_notify('log_appended', '');
    end if;
end
$$;
