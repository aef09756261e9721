"""Credentials that were given to us by API: encrypted rows of the bridge's own schema."""

from datetime import datetime

import asyncpg
import msgspec

from services.provider_bridge.outbound.credential_key import CredentialKey, OtherKey, Sealed
from services.provider_bridge.queries import QUERIES
from shared.eventstore.outages import unavailable_on_outage
from shared.settings import Secret


class StoredCredential(msgspec.Struct, frozen=True, kw_only=True):
    """One of them. `value` None: it cannot be decrypted here, see `problem`."""

    id: int
    provider: str
    user_id: str | None
    name: str
    value: Secret | None
    problem: str | None
    description: str | None
    created_at: datetime
    updated_at: datetime


class Credentials:
    """Stores, lists and forgets. Raises Unavailable when Postgres is away."""

    def __init__(self, pool: asyncpg.Pool, key: CredentialKey) -> None:
        self._pool = pool
        self._key = key

    def fingerprint(self, value: Secret) -> str:
        """What may be said of a secret in public."""
        return self._key.fingerprint(value.reveal())

    async def save(
        self, provider: str, user_id: str | None, name: str, value: Secret, *, description: str | None, at: datetime
    ) -> int:
        """Stores the value, in place of an older one; gives its id."""
        sealed = self._key.seal(value.reveal(), _owner(provider, user_id, name))
        with unavailable_on_outage("store credential"):
            return await self._pool.fetchval(
                QUERIES.save_credential,
                provider,
                user_id,
                name,
                sealed.key_id,
                sealed.nonce,
                sealed.ciphertext,
                description,
                at,
            )

    async def drop(self, provider: str, user_id: str | None, name: str) -> bool:
        """Forgets it; False if there was none."""
        with unavailable_on_outage("forget credential"):
            return await self._pool.fetchval(QUERIES.drop_credential, provider, user_id, name) is not None

    async def reseal(self, stored: StoredCredential) -> bool:
        """Encrypts a credential anew under the present key; False if it was replaced or forgotten meanwhile."""
        if stored.value is None:
            return False
        sealed = self._key.seal(stored.value.reveal(), _owner(stored.provider, stored.user_id, stored.name))
        with unavailable_on_outage("seal credential"):
            changed = await self._pool.fetchval(
                QUERIES.reseal_credential, stored.id, stored.updated_at, sealed.key_id, sealed.nonce, sealed.ciphertext
            )
        return changed is not None

    async def all(self) -> list[StoredCredential]:
        """Every one, in the order in which they came."""
        with unavailable_on_outage("read credentials"):
            rows = await self._pool.fetch(QUERIES.read_credentials)
        return [self._opened(row) for row in rows]

    def _opened(self, row: asyncpg.Record) -> StoredCredential:
        sealed = Sealed(key_id=row["key_id"], nonce=row["nonce"], ciphertext=row["ciphertext"])
        value, problem = None, None
        try:
            value = self._key.open(sealed, _owner(row["provider"], row["user_id"], row["name"]))
        except OtherKey:
            problem = (
                f"{row['name']} was stored under another key ({sealed.key_id}; ours is {self._key.key_id}): give every "
                "bridge the same TUNEWRIGHT_CREDENTIAL_KEY, or store it again"
            )
        return StoredCredential(
            id=row["id"],
            provider=row["provider"],
            user_id=row["user_id"],
            name=row["name"],
            value=value,
            problem=problem,
            description=row["description"],
            created_at=row["created_at"],
            updated_at=row["updated_at"],
        )


def _owner(provider: str, user_id: str | None, name: str) -> str:
    """What a ciphertext is bound to: moved to another row, it opens nothing."""
    return msgspec.json.encode([provider, user_id, name]).decode()
