"""What the queries of billing do: whose account a job is on, and the ledger's rows."""

from datetime import datetime
from uuid import UUID

from services.billing.projections.ledger import QUERIES
from tests.sim.database import Row, Transaction
from tests.sim.twins import twin

FAMILY = "billing"


@twin(QUERIES, FAMILY)
async def claim_account(t: Transaction, job_id: UUID, stream: str, month: str) -> None:
    """The first who asks decides."""
    await t.lock("job_accounts", job_id)
    if t.get("job_accounts", job_id) is None:
        t.put("job_accounts", job_id, {"stream": stream, "month": month})


@twin(QUERIES, FAMILY)
def read_claim(t: Transaction, job_id: UUID) -> list[Row]:
    """What was decided."""
    row = t.get("job_accounts", job_id)
    return [row] if row else []


@twin(QUERIES, FAMILY)
def open_account(t: Transaction, stream: str, owner: str, month: str, floor_micro_usd: int | None) -> None:
    """One owner's month; a second one of the same stream is a bug."""
    if t.get("accounts", stream) is not None:
        raise AssertionError(f"account {stream} is opened twice")
    t.put("accounts", stream, {"owner": owner, "month": month, "floor_micro_usd": floor_micro_usd})


@twin(QUERIES, FAMILY)
def add_entry(  # noqa: PLR0913, PLR0917 - the query's parameters
    t: Transaction,
    position: int,
    line: int,
    stream: str,
    job_id: UUID,
    type_: str,
    ledger_account: str,
    amount_micro_usd: int,
    at: datetime,
) -> None:
    """One posting; a second one in the same place is a bug."""
    if t.get("ledger_entries", (position, line)) is not None:
        raise AssertionError(f"posting {position}/{line} is written twice")
    row = {"position": position, "line": line, "stream": stream, "job_id": job_id, "type": type_, "at": at}
    t.put(
        "ledger_entries",
        (position, line),
        {**row, "ledger_account": ledger_account, "amount_micro_usd": amount_micro_usd},
    )


@twin(QUERIES, FAMILY)
async def add_to_balance(t: Transaction, stream: str, ledger_account: str, amount_micro_usd: int) -> None:
    """The running sum."""
    key = (stream, ledger_account)
    await t.lock("balances", key)
    row = t.get("balances", key)
    before = row["amount_micro_usd"] if row else 0
    t.put("balances", key, {"stream": stream, "amount_micro_usd": before + amount_micro_usd})


@twin(QUERIES, FAMILY)
def add_job(t: Transaction, job_id: UUID, stream: str, reserved_micro_usd: int, price_micro_usd_per_hour: int) -> None:
    """A job has a reservation; a second one is a bug."""
    if t.get("job_costs", job_id) is not None:
        raise AssertionError(f"job {job_id} is reserved for twice")
    money = {"reserved_micro_usd": reserved_micro_usd, "price_micro_usd_per_hour": price_micro_usd_per_hour}
    sums = {"metered_seconds": 0, "metered_micro_usd": 0, "captured_micro_usd": 0, "released_micro_usd": 0}
    t.put("job_costs", job_id, {"stream": stream, **money, **sums, "settled_at": None})


@twin(QUERIES, FAMILY)
def add_usage(t: Transaction, job_id: UUID, seconds: int, amount_micro_usd: int) -> None:
    """One attempt's machine time."""
    row = t.get("job_costs", job_id)
    if row is not None:
        metered = row["metered_micro_usd"] + amount_micro_usd
        t.change("job_costs", job_id, metered_seconds=row["metered_seconds"] + seconds, metered_micro_usd=metered)


@twin(QUERIES, FAMILY)
def capture_job(t: Transaction, job_id: UUID, amount_micro_usd: int, at: datetime) -> None:
    """What it cost."""
    t.change("job_costs", job_id, captured_micro_usd=amount_micro_usd, settled_at=at)


@twin(QUERIES, FAMILY)
def charge_late(t: Transaction, job_id: UUID, amount_micro_usd: int) -> None:
    """What it turned out to have cost besides."""
    row = t.get("job_costs", job_id)
    if row is not None:
        t.change("job_costs", job_id, captured_micro_usd=row["captured_micro_usd"] + amount_micro_usd)


@twin(QUERIES, FAMILY)
def release_job(t: Transaction, job_id: UUID, amount_micro_usd: int) -> None:
    """What it gave back."""
    t.change("job_costs", job_id, released_micro_usd=amount_micro_usd)
