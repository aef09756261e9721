-- What can be had where, and how it went there before: what placements are chosen by. Folded from `provider` and
-- `attempt` events.
CREATE TABLE market_providers (
    provider text PRIMARY KEY,
    offers bytea NOT NULL DEFAULT '[]',
    suspended_until timestamptz,
    suspended_why text NOT NULL DEFAULT '',
    breaker_open_until timestamptz
);

CREATE TABLE market_attempts (
    attempt_id uuid PRIMARY KEY,
    provider text NOT NULL,
    hardware text NOT NULL,
    resumed_step integer NOT NULL,
    intended_at timestamptz,
    started_at timestamptz
);

CREATE TABLE market_records (
    provider text NOT NULL,
    hardware text NOT NULL,
    boots bigint NOT NULL DEFAULT 0,
    boot_s double precision NOT NULL DEFAULT 0,
    ended bigint NOT NULL DEFAULT 0,
    broke bigint NOT NULL DEFAULT 0,
    steps bigint NOT NULL DEFAULT 0,
    run_s double precision NOT NULL DEFAULT 0,
    PRIMARY KEY (provider, hardware)
);
