-- name: claim_account
-- The first who asks decides on which account a job's money is kept.
INSERT INTO job_accounts (job_id, stream, month) VALUES ($1, $2, $3) ON CONFLICT (job_id) DO NOTHING

-- name: read_claim
-- What was decided.
SELECT stream, month FROM job_accounts WHERE job_id = $1

-- name: open_account
-- One owner's ledger for one month.
INSERT INTO accounts (stream, owner, month, floor_micro_usd) VALUES ($1, $2, $3, $4)

-- name: add_entry
-- One posting.
INSERT INTO ledger_entries (position, line, stream, job_id, type, ledger_account, amount_micro_usd, at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)

-- name: add_to_balance
-- The running sum of a ledger account.
INSERT INTO balances (stream, ledger_account, amount_micro_usd) VALUES ($1, $2, $3)
ON CONFLICT (stream, ledger_account) DO UPDATE
SET amount_micro_usd = balances.amount_micro_usd + excluded.amount_micro_usd

-- name: add_job
-- A job has a reservation.
INSERT INTO job_costs (job_id, stream, reserved_micro_usd, price_micro_usd_per_hour) VALUES ($1, $2, $3, $4)

-- name: add_usage
-- One attempt's machine time.
UPDATE job_costs SET metered_seconds = metered_seconds + $2, metered_micro_usd = metered_micro_usd + $3
WHERE job_id = $1

-- name: capture_job
-- What the job cost.
UPDATE job_costs SET captured_micro_usd = $2, settled_at = $3 WHERE job_id = $1

-- name: charge_late
-- What it turned out to have cost besides.
UPDATE job_costs SET captured_micro_usd = captured_micro_usd + $2 WHERE job_id = $1

-- name: release_job
-- What the job gave back.
UPDATE job_costs SET released_micro_usd = $2 WHERE job_id = $1

-- name: read_job_cost
-- What a job cost.
SELECT reserved_micro_usd, metered_micro_usd, captured_micro_usd, released_micro_usd FROM job_costs WHERE job_id = $1

-- name: read_job_entries
-- A job's postings in the order in which they were made.
SELECT position, type, ledger_account, amount_micro_usd, at FROM ledger_entries WHERE job_id = $1
ORDER BY position, line
