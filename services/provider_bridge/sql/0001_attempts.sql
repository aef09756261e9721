-- Who may act on an attempt, until when. Not a projection: the clock of Postgres decides, and the log holds the epochs.
CREATE TABLE leases (
    attempt_id uuid PRIMARY KEY,
    epoch bigint NOT NULL CHECK (epoch > 0),
    owner text NOT NULL,
    site text,
    lease_until timestamptz NOT NULL
);

CREATE TYPE attempt_phase AS ENUM ('requested', 'starting', 'accepted', 'running', 'ending', 'ended');

-- Every attempt as its events tell it: where the reconciler looks for work.
CREATE TABLE attempts (
    attempt_id uuid PRIMARY KEY,
    job_id uuid NOT NULL,
    attempt_number integer NOT NULL,
    provider text NOT NULL,
    phase attempt_phase NOT NULL,
    epoch bigint NOT NULL,
    owner text,
    provider_ref text,
    outcome text,
    requested_at timestamptz NOT NULL,
    started_at timestamptz,
    ended_at timestamptz,
    position bigint NOT NULL
);
CREATE INDEX attempts_live ON attempts (position) WHERE outcome IS NULL;
