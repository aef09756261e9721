-- name: take_lease
-- Ours if it is new, expired, or our own from an earlier life; the epoch rises above every one that was ever used.
INSERT INTO leases (attempt_id, epoch, owner, site, lease_until)
VALUES ($1, $2::bigint + 1, $3, $4, clock_timestamp() + make_interval(secs => $5))
ON CONFLICT (attempt_id) DO UPDATE
SET epoch = greatest(leases.epoch, $2::bigint) + 1,
    owner = excluded.owner,
    site = excluded.site,
    lease_until = clock_timestamp() + make_interval(secs => $5)
WHERE (leases.owner = excluded.owner OR leases.lease_until <= clock_timestamp())
    AND (leases.site IS NULL OR leases.site = excluded.site)
RETURNING epoch;

-- name: renew_leases
-- Those of ours that have not expired last longer; the others are lost and do not come back.
UPDATE leases SET lease_until = clock_timestamp() + make_interval(secs => $4)
FROM unnest($1::uuid[], $2::bigint[]) AS held (attempt_id, epoch)
WHERE leases.attempt_id = held.attempt_id
    AND leases.epoch = held.epoch
    AND leases.owner = $3
    AND leases.lease_until > clock_timestamp()
RETURNING leases.attempt_id;

-- name: release_leases
-- Ours expire now.
UPDATE leases SET lease_until = clock_timestamp()
FROM unnest($1::uuid[], $2::bigint[]) AS held (attempt_id, epoch)
WHERE leases.attempt_id = held.attempt_id AND leases.epoch = held.epoch AND leases.owner = $3;

-- name: lock_lease
-- True while the lease is ours; nobody can take it until the transaction ends.
SELECT true FROM leases
WHERE attempt_id = $1 AND epoch = $2 AND owner = $3 AND lease_until > clock_timestamp()
FOR UPDATE;

-- name: holds_lease
-- True if the lease is ours for at least so many more seconds.
SELECT true FROM leases
WHERE attempt_id = $1 AND epoch = $2 AND owner = $3 AND lease_until > clock_timestamp() + make_interval(secs => $4);

-- name: holds_event_of
-- True if the stream holds an event of one of these types.
SELECT true FROM log.events WHERE stream = $1 AND type = ANY ($2::text[]) LIMIT 1;

-- name: drop_lease
-- The attempt has ended: there is nothing to own.
DELETE FROM leases WHERE attempt_id = $1;

-- name: drop_ended_leases
-- The same for attempts whose owner did not live to do it.
DELETE FROM leases USING attempts
WHERE attempts.attempt_id = leases.attempt_id AND attempts.outcome IS NOT NULL AND NOT attempts.owes_release;

-- name: due_attempts
-- Attempts that have not ended or owe a machine's release, that this bridge can reach, and that nobody else owns now: from the read model, and
-- from the leases, in case the read model is behind.
SELECT a.attempt_id
FROM attempts a
LEFT JOIN leases l ON l.attempt_id = a.attempt_id
WHERE (a.outcome IS NULL OR a.owes_release)
    AND (
        l.attempt_id IS NULL
        OR ((l.owner = $1 OR l.lease_until <= clock_timestamp()) AND (l.site IS NULL OR l.site = ANY ($2::text[])))
    )
UNION
SELECT l.attempt_id
FROM leases l
WHERE (l.owner = $1 OR l.lease_until <= clock_timestamp()) AND (l.site IS NULL OR l.site = ANY ($2::text[]))
LIMIT $3;

-- name: live_attempts
-- Attempts at a provider that have not ended or owe a machine's release, the newest first.
SELECT attempt_id FROM attempts
WHERE provider = $1 AND (outcome IS NULL OR owes_release)
ORDER BY position DESC
LIMIT $2;

-- name: insert_attempt
-- A requested attempt.
INSERT INTO attempts (attempt_id, job_id, attempt_number, provider, phase, epoch, requested_at, position, pays_machine)
VALUES ($1, $2, $3, $4, 'requested', 0, $5, $6, $7)
ON CONFLICT (attempt_id) DO NOTHING;

-- name: change_attempt
-- What one event changes; NULL = nothing. A phase never goes back. $9: its machine may be there (true), or is gone.
UPDATE attempts
SET phase = greatest(phase, $2::attempt_phase),
    epoch = coalesce($3, epoch),
    owner = coalesce($4, owner),
    provider_ref = coalesce($5, provider_ref),
    outcome = coalesce(outcome, $6),
    started_at = coalesce(started_at, $7),
    ended_at = coalesce(ended_at, $8),
    owes_release = coalesce($9 AND pays_machine, owes_release),
    position = $10
WHERE attempt_id = $1 AND position < $10;

-- name: save_credential
-- Stores or replaces an encrypted credential; gives its id.
INSERT INTO credentials (provider, user_id, name, key_id, nonce, ciphertext, description, created_at, updated_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)
ON CONFLICT (provider, user_id, name) DO UPDATE
SET key_id = excluded.key_id,
    nonce = excluded.nonce,
    ciphertext = excluded.ciphertext,
    description = coalesce(excluded.description, credentials.description),
    updated_at = excluded.updated_at
RETURNING id;

-- name: reseal_credential
-- The same credential under another key, unless it was replaced meanwhile.
UPDATE credentials SET key_id = $3, nonce = $4, ciphertext = $5
WHERE id = $1 AND updated_at = $2
RETURNING id;

-- name: drop_credential
-- Forgets one; a row if there was one.
DELETE FROM credentials
WHERE provider = $1 AND user_id IS NOT DISTINCT FROM $2 AND name = $3
RETURNING id;

-- name: read_credentials
-- All of them, encrypted as they are.
SELECT id, provider, user_id, name, key_id, nonce, ciphertext, description, created_at, updated_at
FROM credentials
ORDER BY id;

-- name: attempt_of_ref
-- The newest attempt whose run the provider calls so.
SELECT attempt_id FROM attempts WHERE provider = $1 AND provider_ref = $2 ORDER BY position DESC LIMIT 1;
