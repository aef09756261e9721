"""Idempotency keys: claimed before anything is asked of anybody, for one user, one body and one job, for 24 hours."""

from datetime import datetime, timedelta
from uuid import UUID

import asyncpg
import msgspec

from services.gateway.projections.jobs import QUERIES, TIMEOUT_S
from shared.eventstore.outages import unavailable_on_outage
from shared.problems import Rejected

LIFETIME = timedelta(hours=24)


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The job that a key stands for; `hit` when an earlier request made the claim."""

    job_id: UUID
    hit: bool


class IdempotencyKeys:
    """The claims, in the gateway's own table. Raises Unavailable when Postgres is away: fails closed."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def standing(self, user_id: str, key: str, body_sha256: bytes, now: datetime) -> UUID | None:
        """The job of a claim that stands, or None. Raises `idempotency_key_reused` for another body."""
        with unavailable_on_outage("read"):
            row = await self._pool.fetchrow(QUERIES.claim_of, user_id, key, now, timeout=TIMEOUT_S)
        if row is None:
            return None
        job_id = UUID(int=row["job_id"].int)
        if row["body_sha256"] != body_sha256:
            detail = "this idempotency key was used for another request in the last 24 hours"
            raise Rejected("idempotency_key_reused", detail, idempotency_key=key, job_id=str(job_id))
        return job_id

    async def claim(self, user_id: str, key: str, body_sha256: bytes, *, job_id: UUID, now: datetime) -> Claim:
        """Claims the key for `job_id`, or finds the claim that stands. Raises `idempotency_key_reused`."""
        while True:
            with unavailable_on_outage("claim"):
                arguments = (user_id, key, body_sha256, job_id, now, now + LIFETIME)
                mine = await self._pool.fetchval(QUERIES.claim_key, *arguments, timeout=TIMEOUT_S)
            if mine is not None:
                return Claim(job_id=job_id, hit=False)
            theirs = await self.standing(user_id, key, body_sha256, now)
            # None: the other claim was forgotten between the two statements; the next insert settles it.
            if theirs is not None:
                return Claim(job_id=theirs, hit=True)

    async def forget_expired(self, now: datetime) -> None:
        """Removes claims that no repeat can find any more."""
        with unavailable_on_outage("forget"):
            await self._pool.execute(QUERIES.forget_expired_claims, now, timeout=TIMEOUT_S)
