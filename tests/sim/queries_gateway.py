"""What the gateway's queries on idempotency keys do. Its views are kept by the pure fold: see gateway.py."""

from datetime import datetime
from uuid import UUID

from services.gateway.projections.jobs import QUERIES
from tests.sim.database import Row, Transaction
from tests.sim.twins import twin

FAMILY = "gateway"


@twin(QUERIES, FAMILY)
async def claim_key(
    t: Transaction, user_id: str, key: str, body_sha256: bytes, job_id: UUID, now: datetime, until: datetime
) -> list[Row]:
    """The job id if the claim is ours; nothing when another stands."""
    await t.lock("idempotency", (user_id, key))
    known = t.get("idempotency", (user_id, key))
    if known is not None and known["expires_at"] > now:
        return []
    t.put("idempotency", (user_id, key), {"body_sha256": body_sha256, "job_id": job_id, "expires_at": until})
    return [{"job_id": job_id}]


@twin(QUERIES, FAMILY)
def claim_of(t: Transaction, user_id: str, key: str, now: datetime) -> list[Row]:
    """The claim that stands."""
    known = t.get("idempotency", (user_id, key))
    if known is None or known["expires_at"] <= now:
        return []
    return [{"body_sha256": known["body_sha256"], "job_id": known["job_id"]}]


@twin(QUERIES, FAMILY)
def forget_expired_claims(t: Transaction, now: datetime) -> None:
    """Removes claims that have run out."""
    for key, row in list(t.database.table(t.schema, "idempotency").items()):
        if row["expires_at"] <= now:
            t.drop("idempotency", key)
