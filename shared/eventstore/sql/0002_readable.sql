-- A text in an event may hold U+0000, which jsonb cannot: people are shown U+FFFD in its place, and all other events.

create or replace view log.readable as
select
    global_position, event_id, stream, category, stream_version, type,
    replace(convert_from(data, 'UTF8'), '\u0000', '\ufffd')::jsonb as data,
    replace(convert_from(meta, 'UTF8'), '\u0000', '\ufffd')::jsonb as meta,
    correlation_id, recorded_at, encode(hash, 'hex') as hash
from log.events;
