-- ---- the store ------------------------------------------------------------------------------------------------------

-- name: append_batch
-- Appends a batch of commands; one row per command: positions, or none and the stream's head.
select command_no, first_position, last_position, version
from log.append_batch($1, $2, $3, $4, $5, $6, $7, $8)

-- name: read_stream
-- One stream in version order.
select global_position, event_id, stream, stream_version, type, data, meta, correlation_id, recorded_at, hash
from log.events
where stream = $1 and stream_version > $2
order by stream_version

-- name: read_all
-- A page of the whole log.
select global_position, event_id, stream, stream_version, type, data, meta, correlation_id, recorded_at, hash
from log.events
where global_position > $1 and global_position <= $2
order by global_position
limit $3

-- name: read_categories
-- A page of some categories: each is read by its own index, so a rare one costs no scan.
select e.*
from unnest($4::text[]) as c (category)
cross join lateral (
    select global_position, event_id, stream, stream_version, type, data, meta, correlation_id, recorded_at, hash
    from log.events
    where category = c.category and global_position > $1 and global_position <= $2
    order by global_position
    limit $3
) as e
order by e.global_position
limit $3

-- name: replay_all
-- A page of the whole log as three values, for folds of a long past: the last position, the streams, a JSON array.
select
    max(e.global_position) as last_position,
    string_agg(e.stream, ',' order by e.global_position) as streams,
    '['::bytea || string_agg(e.data, ','::bytea order by e.global_position) || ']'::bytea as payloads
from (
    select global_position, stream, data from log.events
    where global_position > $1 and global_position <= $2
    order by global_position
    limit $3
) as e

-- name: replay_category
-- The same of one category.
select
    max(e.global_position) as last_position,
    string_agg(e.stream, ',' order by e.global_position) as streams,
    '['::bytea || string_agg(e.data, ','::bytea order by e.global_position) || ']'::bytea as payloads
from (
    select global_position, stream, data from log.events
    where category = $4 and global_position > $1 and global_position <= $2
    order by global_position
    limit $3
) as e

-- name: replay_types
-- The stored types and payloads of a page that holds a type which is not current.
select type, data from log.events
where ($3::text is null or category = $3) and global_position > $1 and global_position <= $2
order by global_position

-- name: read_correlated
-- Everything that happened because of one thing.
select global_position, event_id, stream, stream_version, type, data, meta, correlation_id, recorded_at, hash
from log.events
where correlation_id = $1 and global_position <= $2
order by global_position

-- name: head
-- The highest committed position.
select coalesce(max(global_position), 0) from log.events

-- name: position_at
-- The highest position recorded at or before a moment.
select log.position_at($1)

-- name: store_id
-- The identity of this log; a database made anew has another one.
select store_id from log.store_meta

-- ---- migrate: statements with names in them are written by the server's format(), which quotes them -----------------

-- name: lock_migrations
-- One migration at a time, until the connection ends.
select pg_advisory_lock(7305808869232665)

-- name: role_exists
-- Whether the server has a role.
select exists (select from pg_roles where rolname = $1)

-- name: create_role
-- A role without rights; set_password makes it one that can log in.
select format('create role %I', $1::text)

-- name: is_superuser
-- Whether the migrating account may act as anybody.
select rolsuper from pg_roles where rolname = current_user

-- name: grant_membership
-- Lets an account that is not a superuser act as a role it has made.
select format('grant %I to %I', $1::text, current_user)

-- name: set_password
-- Lets a role log in with this password.
select format('alter role %I login password %L', $1::text, $2::text)

-- name: database_exists
-- Whether the server has a database.
select exists (select from pg_database where datname = $1)

-- name: create_database
-- An empty database.
select format('create database %I', $1::text)

-- name: close_database
-- Nobody connects, makes temporary tables or uses schema public unless told.
select format(
    'revoke all on database %I from public; revoke all on schema public from public', $1::text
)

-- name: open_database
-- A role may connect.
select format('grant connect on database %2$I to %1$I', $1::text, $2::text)

-- name: create_schema
-- A schema and its owner.
select format('create schema if not exists %I authorization %I', $1::text, $2::text)

-- name: set_search_path
-- A service finds its own tables, then the log's.
select format('alter role %1$I in database %2$I set search_path = %1$I, log', $1::text, $2::text)

-- name: create_bookkeeping
-- Which files were applied, and what they said.
create table if not exists log.migrations (
    scope text not null,
    name text not null,
    sha256 text not null,
    applied_at timestamptz not null default clock_timestamp(),
    primary key (scope, name)
)

-- name: applied_sha256
-- What an applied file said; nothing if it was not applied.
select sha256 from log.migrations where scope = $1 and name = $2

-- name: remember_applied
-- Notes a file as applied.
insert into log.migrations (scope, name, sha256) values ($1, $2, $3)

-- name: act_as
-- For the rest of the transaction: another role and its schemas.
select set_config('role', $1, true), set_config('search_path', $2, true)

-- name: set_store
-- Gives a new log its identity; an existing one keeps it.
insert into log.store_meta (store_id, schema_version) values ($1, $2)
on conflict (one_row) do update set schema_version = excluded.schema_version

-- name: set_writers
-- The one role that may append to each category.
insert into log.category_writer (category, role) select * from unnest($1::text[], $2::text[])
on conflict (category) do update set role = excluded.role

-- name: grant_reading
-- What everyone who logs in may do with the log: read it.
select format(
    'grant usage on schema log to %1$I;
     grant select on log.events, log.readable, log.store_meta to %1$I;
     grant execute on function log.position_at(timestamptz) to %1$I',
    $1::text
)

-- name: grant_appending
-- Append, through the function alone.
select format('grant execute on function log.append_batch to %I', $1::text)

-- name: revoke_appending
-- A service that owns no category appends nothing.
select format('revoke execute on function log.append_batch from %I', $1::text)

-- name: grant_relaying
-- The relay seals the order and remembers how far it has published.
select format(
    'grant select, insert on log.seals to %1$I; grant select, insert, update on log.relay_checkpoint to %1$I',
    $1::text
)

-- name: grant_verifying
-- The inspector reads what verify needs.
select format('grant select on log.seals, log.relay_checkpoint, log.category_writer, log.migrations to %I', $1::text)

-- name: grant_inspection
-- The inspector sees how far a service has read and what it has parked, none of its read models.
select format(
    'grant usage on schema %1$I to %2$I; grant select on %1$I.checkpoint, %1$I.parked to %2$I', $1::text, $2::text
)

-- ---- the relay ------------------------------------------------------------------------------------------------------

-- name: try_lead
-- One relay publishes at a time: true if this connection is it, until it ends.
select pg_try_advisory_lock(7305808869232666)

-- name: event_at
-- The event at one position, to compare with what JetStream holds.
select event_id from log.events where global_position = $1

-- name: previous_in_category
-- The last position of a category before another position, 0 if there is none.
select coalesce(max(global_position), 0) from log.events where category = $1 and global_position < $2

-- name: published_position
-- Up to where the relay had published when it last said so; nothing before the first time.
select position from log.relay_checkpoint

-- name: remember_published
-- Everything up to here is in JetStream.
insert into log.relay_checkpoint (position) values ($1)
on conflict (one_row) do update set position = excluded.position, updated_at = clock_timestamp()

-- name: last_seal
-- Where the sealed part of the log ends, and the running hash there.
select to_position, hash from log.seals order by to_position desc limit 1

-- name: hashes_after
-- The next events' hashes, in order.
select global_position, hash from log.events where global_position > $1 order by global_position limit $2

-- name: add_seal
-- Seals a range; refused if another relay has sealed it.
insert into log.seals (from_position, to_position, event_count, hash) values ($1, $2, $3, $4)

-- ---- verify ---------------------------------------------------------------------------------------------------------

-- name: all_seals
-- Every seal, in order.
select from_position, to_position, event_count, hash from log.seals order by to_position
