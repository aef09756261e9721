-- The account that a job's money is kept on. Claimed before the reservation is written, so that two replicas at a
-- month's end choose the same account. Not a projection: the log wins where the two differ.
CREATE TABLE job_accounts (
    job_id uuid PRIMARY KEY,
    stream text NOT NULL,
    month text NOT NULL
);

-- The ledger, folded from `account` events.
CREATE TABLE accounts (
    stream text PRIMARY KEY,
    owner text NOT NULL,
    month text NOT NULL,
    floor_micro_usd bigint
);
CREATE INDEX accounts_by_owner ON accounts (owner, month);

CREATE TABLE ledger_entries (
    position bigint NOT NULL,
    line integer NOT NULL,
    stream text NOT NULL,
    job_id uuid NOT NULL,
    type text NOT NULL,
    ledger_account text NOT NULL,
    amount_micro_usd bigint NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (position, line)
);
CREATE INDEX ledger_entries_by_job ON ledger_entries (job_id, position, line);

CREATE TABLE balances (
    stream text NOT NULL,
    ledger_account text NOT NULL,
    amount_micro_usd bigint NOT NULL,
    PRIMARY KEY (stream, ledger_account)
);

CREATE TABLE job_costs (
    job_id uuid PRIMARY KEY,
    stream text NOT NULL,
    reserved_micro_usd bigint NOT NULL,
    price_micro_usd_per_hour bigint NOT NULL,
    metered_seconds bigint NOT NULL DEFAULT 0,
    metered_micro_usd bigint NOT NULL DEFAULT 0,
    captured_micro_usd bigint NOT NULL DEFAULT 0,
    released_micro_usd bigint NOT NULL DEFAULT 0,
    settled_at timestamptz
);
