"""What the queries of the bridge do: leases by the database's clock, and the read model of attempts."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from services.provider_bridge.queries import QUERIES
from tests.sim.database import Row, Transaction, at_once
from tests.sim.twins import twin

FAMILY = "bridge"
_PHASES = ("requested", "starting", "accepted", "running", "ending", "ended")


def _is_ours(t: Transaction, row: Row | None, epoch: int, owner: str, for_s: float = 0.0) -> bool:
    if row is None or row["epoch"] != epoch or row["owner"] != owner:
        return False
    return row["lease_until"] > t.now() + timedelta(seconds=for_s)


@twin(QUERIES, FAMILY)
async def take_lease(
    t: Transaction, attempt_id: UUID, past: int, owner: str, site: str | None, lease_s: float
) -> list[Row]:
    """Ours if it is new, expired, or our own from an earlier life."""
    await t.lock("leases", attempt_id)
    row = t.get("leases", attempt_id)
    if row is not None:
        is_free = row["owner"] == owner or row["lease_until"] <= t.now()
        if not is_free or row["site"] not in {None, site}:
            return []
    epoch = max(row["epoch"] if row else 0, past) + 1
    until = t.now() + timedelta(seconds=lease_s)
    lease = {"attempt_id": attempt_id, "epoch": epoch, "owner": owner, "site": site, "lease_until": until}
    t.put("leases", attempt_id, lease)
    return [{"epoch": epoch}]


@twin(QUERIES, FAMILY)
async def renew_leases(
    t: Transaction, ids: Sequence[UUID], epochs: Sequence[int], owner: str, lease_s: float
) -> list[Row]:
    """Those that are still ours."""
    kept: list[Row] = []
    for attempt_id, epoch in zip(ids, epochs, strict=True):
        if not _is_ours(t, t.get("leases", attempt_id), epoch, owner):
            continue
        await t.lock("leases", attempt_id)
        if _is_ours(t, t.get("leases", attempt_id), epoch, owner):
            t.change("leases", attempt_id, lease_until=t.now() + timedelta(seconds=lease_s))
            kept.append({"attempt_id": attempt_id})
    return kept


@twin(QUERIES, FAMILY)
async def release_leases(t: Transaction, ids: Sequence[UUID], epochs: Sequence[int], owner: str) -> None:
    """They expire now."""
    for attempt_id, epoch in zip(ids, epochs, strict=True):
        await t.lock("leases", attempt_id)
        row = t.get("leases", attempt_id)
        if row is not None and row["epoch"] == epoch and row["owner"] == owner:
            t.change("leases", attempt_id, lease_until=t.now())


@twin(QUERIES, FAMILY)
async def lock_lease(t: Transaction, attempt_id: UUID, epoch: int, owner: str) -> list[Row]:
    """True while it is ours, and nobody takes it until we are done."""
    if not _is_ours(t, t.get("leases", attempt_id), epoch, owner):
        return []
    await t.lock("leases", attempt_id)
    return [{"held": True}] if _is_ours(t, t.get("leases", attempt_id), epoch, owner) else []


@twin(QUERIES, FAMILY)
def holds_lease(t: Transaction, attempt_id: UUID, epoch: int, owner: str, for_s: float) -> list[Row]:
    """True if it is ours for so much longer."""
    return [{"held": True}] if _is_ours(t, t.get("leases", attempt_id), epoch, owner, for_s) else []


@twin(QUERIES, FAMILY)
async def drop_lease(t: Transaction, attempt_id: UUID) -> None:
    """Nothing to own any more."""
    await t.lock("leases", attempt_id)
    t.drop("leases", attempt_id)


@twin(QUERIES, FAMILY)
async def drop_ended_leases(t: Transaction) -> None:
    """The same for every attempt that the read model knows to have ended."""
    for lease in t.rows("leases"):
        attempt = t.get("attempts", lease["attempt_id"])
        if attempt is not None and attempt["outcome"] is not None and not attempt["owes_release"]:
            await drop_lease(t, lease["attempt_id"])


@twin(QUERIES, FAMILY)
def due_attempts(t: Transaction, owner: str, sites: Sequence[str], limit: int) -> list[Row]:
    """What this bridge may drive now: from the read model, and from the leases in case that is behind."""

    def may_take(lease: Row) -> bool:
        is_free = lease["owner"] == owner or lease["lease_until"] <= t.now()
        return is_free and (lease["site"] is None or lease["site"] in sites)

    due: dict[UUID, None] = {}
    for attempt in t.rows("attempts"):
        lease = t.get("leases", attempt["attempt_id"])
        is_live = attempt["outcome"] is None or attempt["owes_release"]
        if is_live and (lease is None or may_take(lease)):
            due[attempt["attempt_id"]] = None
    due.update({lease["attempt_id"]: None for lease in t.rows("leases") if may_take(lease)})
    return [{"attempt_id": attempt_id} for attempt_id in list(due)[:limit]]


@twin(QUERIES, FAMILY)
def live_attempts(t: Transaction, provider: str, limit: int) -> list[Row]:
    """Attempts at a provider that have not ended or owe a machine's release, the newest first."""
    live = [one for one in t.rows("attempts") if one["provider"] == provider]
    live = [one for one in live if one["outcome"] is None or one["owes_release"]]
    newest = sorted(live, key=lambda one: one["position"], reverse=True)
    return [{"attempt_id": one["attempt_id"]} for one in newest[:limit]]


@twin(QUERIES, FAMILY)
def insert_attempt(
    t: Transaction,
    attempt_id: UUID,
    job_id: UUID,
    attempt_number: int,
    provider: str,
    requested_at: datetime,
    position: int,
    pays_machine: bool,  # noqa: FBT001 - the query's order
) -> None:
    """A requested attempt."""
    if t.get("attempts", attempt_id) is None:
        row = {"attempt_id": attempt_id, "job_id": job_id, "attempt_number": attempt_number, "provider": provider}
        empty = {"owner": None, "provider_ref": None, "outcome": None, "started_at": None, "ended_at": None}
        about = {"phase": "requested", "epoch": 0, "requested_at": requested_at, "position": position}
        machine = {"pays_machine": pays_machine, "owes_release": False}
        t.put("attempts", attempt_id, {**row, **empty, **about, **machine})


@twin(QUERIES, FAMILY)
def change_attempt(t: Transaction, attempt_id: UUID, *values: Any) -> None:
    """What one event changes; None = nothing. A phase never goes back."""
    phase, epoch, owner, provider_ref, outcome, started_at, ended_at, has_machine, position = values
    row = t.get("attempts", attempt_id)
    if row is None or row["position"] >= position:
        return
    later = phase is not None and _PHASES.index(phase) > _PHASES.index(row["phase"])
    t.change(
        "attempts",
        attempt_id,
        phase=phase if later else row["phase"],
        epoch=row["epoch"] if epoch is None else epoch,
        owner=row["owner"] if owner is None else owner,
        provider_ref=row["provider_ref"] if provider_ref is None else provider_ref,
        outcome=outcome if row["outcome"] is None else row["outcome"],
        started_at=started_at if row["started_at"] is None else row["started_at"],
        ended_at=ended_at if row["ended_at"] is None else row["ended_at"],
        owes_release=row["owes_release"] if has_machine is None else has_machine and row["pays_machine"],
        position=position,
    )


@twin(QUERIES, FAMILY)
def holds_event_of(t: Transaction, stream: str, types: Sequence[str]) -> list[Row]:
    """Whether the stream holds such an event: asked under the append lock, so nothing comes in between."""
    held = at_once(t.database.log.read_stream(stream))
    return [{"holds": True}] if any(event.type in types for event in held) else []
