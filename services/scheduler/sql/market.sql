-- name: save_offers
-- What a provider offers now.
INSERT INTO market_providers (provider, offers) VALUES ($1, $2)
ON CONFLICT (provider) DO UPDATE SET offers = excluded.offers

-- name: save_suspension
-- Nothing new is placed there until then; NULL: it is open again.
INSERT INTO market_providers (provider, suspended_until, suspended_why) VALUES ($1, $2, $3)
ON CONFLICT (provider) DO UPDATE
SET suspended_until = excluded.suspended_until, suspended_why = excluded.suspended_why

-- name: save_breaker
-- It does not answer until then; NULL: it does.
INSERT INTO market_providers (provider, breaker_open_until) VALUES ($1, $2)
ON CONFLICT (provider) DO UPDATE SET breaker_open_until = excluded.breaker_open_until

-- name: note_attempt
-- An attempt was asked for there.
INSERT INTO market_attempts (attempt_id, provider, hardware, resumed_step) VALUES ($1, $2, $3, $4)
ON CONFLICT (attempt_id) DO NOTHING

-- name: note_intent
-- Its machine was called for.
UPDATE market_attempts SET intended_at = $2 WHERE attempt_id = $1

-- name: note_start
-- Its trainer said hello.
UPDATE market_attempts SET started_at = $2 WHERE attempt_id = $1
RETURNING provider, hardware, resumed_step, intended_at, started_at

-- name: forget_attempt
-- It has ended.
DELETE FROM market_attempts WHERE attempt_id = $1
RETURNING provider, hardware, resumed_step, intended_at, started_at

-- name: add_to_record
-- One more observation of that hardware.
INSERT INTO market_records (provider, hardware, boots, boot_s, ended, broke, steps, run_s)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (provider, hardware) DO UPDATE
SET boots = market_records.boots + excluded.boots,
    boot_s = market_records.boot_s + excluded.boot_s,
    ended = market_records.ended + excluded.ended,
    broke = market_records.broke + excluded.broke,
    steps = market_records.steps + excluded.steps,
    run_s = market_records.run_s + excluded.run_s

-- name: read_providers
-- All that ever offered anything.
SELECT provider, offers, suspended_until, suspended_why, breaker_open_until FROM market_providers ORDER BY provider

-- name: read_records
-- How attempts went.
SELECT provider, hardware, boots, boot_s, ended, broke, steps, run_s FROM market_records
