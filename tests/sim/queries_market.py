"""What the queries of the scheduler's market do: plain rows, one writer."""

from datetime import datetime
from typing import Any
from uuid import UUID

from services.scheduler.projections.market import QUERIES
from tests.sim.database import Row, Transaction
from tests.sim.twins import twin

FAMILY = "market"
_SUMS = ("boots", "boot_s", "ended", "broke", "steps", "run_s")
_SHOWN = ("provider", "hardware", "resumed_step", "intended_at", "started_at")


def _merge(t: Transaction, provider: str, **values: Any) -> None:
    empty = {"offers": b"[]", "suspended_until": None, "suspended_why": "", "breaker_open_until": None}
    known = t.get("market_providers", provider) or {"provider": provider, **empty}
    t.put("market_providers", provider, {**known, **values})


@twin(QUERIES, FAMILY)
def save_offers(t: Transaction, provider: str, offers: bytes) -> None:
    """What it offers."""
    _merge(t, provider, offers=offers)


@twin(QUERIES, FAMILY)
def save_suspension(t: Transaction, provider: str, until: datetime | None, why: str) -> None:
    """Nothing new until then."""
    _merge(t, provider, suspended_until=until, suspended_why=why)


@twin(QUERIES, FAMILY)
def save_breaker(t: Transaction, provider: str, until: datetime | None) -> None:
    """No answer until then."""
    _merge(t, provider, breaker_open_until=until)


@twin(QUERIES, FAMILY)
def note_attempt(t: Transaction, attempt_id: UUID, provider: str, hardware: str, resumed_step: int) -> None:
    """An attempt was asked for there."""
    if t.get("market_attempts", attempt_id) is None:
        about = {"provider": provider, "hardware": hardware, "resumed_step": resumed_step}
        t.put(
            "market_attempts",
            attempt_id,
            {"attempt_id": attempt_id, **about, "intended_at": None, "started_at": None},
        )


@twin(QUERIES, FAMILY)
def note_intent(t: Transaction, attempt_id: UUID, at: datetime) -> None:
    """Its machine was called for."""
    if t.get("market_attempts", attempt_id) is not None:
        t.change("market_attempts", attempt_id, intended_at=at)


@twin(QUERIES, FAMILY)
def note_start(t: Transaction, attempt_id: UUID, at: datetime) -> list[Row]:
    """Its trainer said hello."""
    if t.get("market_attempts", attempt_id) is None:
        return []
    t.change("market_attempts", attempt_id, started_at=at)
    row = t.get("market_attempts", attempt_id) or {}
    return [{name: row[name] for name in _SHOWN}]


@twin(QUERIES, FAMILY)
def forget_attempt(t: Transaction, attempt_id: UUID) -> list[Row]:
    """It has ended."""
    row = t.get("market_attempts", attempt_id)
    if row is None:
        return []
    t.drop("market_attempts", attempt_id)
    return [{name: row[name] for name in _SHOWN}]


@twin(QUERIES, FAMILY)
def add_to_record(t: Transaction, provider: str, hardware: str, *seen: float) -> None:
    """One more observation."""
    key = (provider, hardware)
    known = t.get("market_records", key) or {"provider": provider, "hardware": hardware, **dict.fromkeys(_SUMS, 0)}
    sums = {name: known[name] + value for name, value in zip(_SUMS, seen, strict=True)}
    t.put("market_records", key, {**known, **sums})


@twin(QUERIES, FAMILY)
def read_providers(t: Transaction) -> list[Row]:
    """All of them."""
    return sorted(t.rows("market_providers"), key=lambda row: row["provider"])


@twin(QUERIES, FAMILY)
def read_records(t: Transaction) -> list[Row]:
    """All of them."""
    return list(t.rows("market_records"))
