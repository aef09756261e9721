-- Keys of providers that were given to us by API, encrypted. The log holds their names and fingerprints, never them.
-- user_id NULL = for everybody. key_id says under which of our keys a row was encrypted.
CREATE TABLE credentials (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    provider text NOT NULL,
    user_id text,
    name text NOT NULL,
    key_id text NOT NULL,
    nonce bytea NOT NULL,
    ciphertext bytea NOT NULL,
    description text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    UNIQUE NULLS NOT DISTINCT (provider, user_id, name)
);
