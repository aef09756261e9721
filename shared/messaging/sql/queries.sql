-- name: try_lock
-- Takes the durable's session lock, if nobody has it: one active replica.
SELECT pg_try_advisory_lock(hashtextextended($1, 0));

-- name: ensure_checkpoint
-- Gives the durable its row, at the beginning of the log.
INSERT INTO checkpoint (durable, position) VALUES ($1, 0) ON CONFLICT (durable) DO NOTHING;

-- name: read_checkpoint
-- Up to where the durable has handled everything.
SELECT position FROM checkpoint WHERE durable = $1;

-- name: lock_checkpoint
-- The same, and nobody else commits an event of this durable until our transaction ends.
SELECT position FROM checkpoint WHERE durable = $1 FOR UPDATE;

-- name: raise_checkpoint
-- Nothing of the durable's categories lies between its checkpoint and this position.
UPDATE checkpoint SET position = $2, updated_at = clock_timestamp() WHERE durable = $1 AND position < $2;

-- name: claim_events
-- Puts events in the inbox and raises the checkpoint; gives back those that were not handled before.
WITH raised AS (
    UPDATE checkpoint
    SET position = greatest(position, (SELECT max(p) FROM unnest($3::bigint[]) AS p)), updated_at = clock_timestamp()
    WHERE durable = $1
)
INSERT INTO inbox (durable, event_id, position)
SELECT $1, e.event_id, e.position FROM unnest($2::uuid[], $3::bigint[]) AS e (event_id, position)
ON CONFLICT (durable, event_id) DO NOTHING
RETURNING event_id;

-- name: already_handled
-- Which of these events the durable has handled.
SELECT event_id FROM inbox WHERE durable = $1 AND event_id = ANY($2::uuid[]);

-- name: prune_inbox
-- Forgets events so far below the checkpoint that no redelivery of them is listened to.
DELETE FROM inbox WHERE durable = $1 AND position < $2;

-- name: park_event
-- Gives an event up, with the reason.
INSERT INTO parked (durable, position, event_id, type, stream, reason) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (durable, position) DO UPDATE SET reason = excluded.reason, parked_at = clock_timestamp();

-- name: list_parked
-- What was given up, oldest first.
SELECT durable, position, type, stream, reason, parked_at FROM parked ORDER BY durable, position LIMIT 1000;

-- name: parked_positions
-- Where a refold must not trip again.
SELECT position FROM parked WHERE durable = $1;

-- name: has_parked
-- Whether the event waits to be replayed.
SELECT true FROM parked WHERE durable = $1 AND position = $2;

-- name: take_parked
-- Ends the parking of an event that was handled after all.
DELETE FROM parked WHERE durable = $1 AND position = $2 RETURNING event_id;

-- name: table_lines
-- The rows of a projection's table as text in primary-key order.
SELECT line FROM table_lines($1) AS line;

-- name: table_clear
-- Empties a projection's table.
SELECT table_clear($1);
