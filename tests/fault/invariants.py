"""The promises that no fault may break, asked of a running system after it has come to rest.

`check_history` is pure and serves any log, the simulation's too; `check` adds what only a real system can show:
inboxes, parked rows, machines, and read models against a fresh fold.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import psutil

from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import DURABLES, SERVICES, Durable
from shared.eventstore.rows import recorded
from shared.messaging.inbox import KEEP_POSITIONS
from tests.fault import rules
from tests.fault.ledger_oracle import ledger
from tests.fault.rules import Run, facts_of

REST_S = 60.0
"""How long the durables may take to reach the log's head."""
REBUILD_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A system at rest and what it was asked to do.

    `since` is a position up to which it was checked before: the log, the inboxes and the ledger are looked at from
    there on. Rebuilding refolds the whole log, so a long run may ask for it now and then only.
    """

    superuser_dsn: str
    gateway_url: str
    bridge_state_dir: Path
    job_ids: list[UUID]
    since: int = 0
    in_all: int = 5
    per_user: int = 2
    parked: frozenset[tuple[str, int]] = frozenset()
    """(durable, position) of the events that the test wants to be parked."""
    rebuild: bool = True


async def check(observed: Observed) -> list[str]:
    """Every violation in words; empty when all promises hold."""
    async with _connected(observed.superuser_dsn) as connection:
        behind = await _rest(connection)
        rows = await connection.fetch(
            "SELECT * FROM log.events WHERE global_position > $1 ORDER BY global_position", observed.since
        )
        history = [recorded(row) for row in rows]
        found = behind + check_history(
            history,
            must_end=observed.job_ids,
            since=observed.since,
            in_all=observed.in_all,
            per_user=observed.per_user,
        )
        facts = facts_of(history)
        runs = await asyncio.to_thread(runs_below, observed.bridge_state_dir)
        recent = {fact.owner_id for fact in facts if fact.category == "attempt"}
        found += rules.runs_owned(facts, [run for run in runs if not _is_old(run, recent, observed)])
        for durable in DURABLES:
            found += await _inbox(connection, durable, history, observed.since)
        found += await _parked(connection, observed.parked)
        total = await connection.fetchval("SELECT coalesce(sum(amount_micro_usd), 0) FROM billing.balances")
        found += [f"the balances sum to {total}"] if total else []
    return found + (await _rebuilt(observed.gateway_url) if observed.rebuild else [])


def check_history(
    history: Sequence[RecordedEvent],
    *,
    must_end: Collection[UUID] = (),
    since: int = 0,
    in_all: int = 5,
    per_user: int = 2,
) -> list[str]:
    """What must hold of the events alone."""
    facts = facts_of(history)
    return [
        *rules.gapless(history, since),
        *rules.one_end(facts, must_end),
        *rules.cancelled_starts_nothing(facts),
        *rules.one_live_attempt(facts),
        *rules.slots_kept(facts, in_all=in_all, per_user=per_user),
        *rules.one_job_per_key(facts),
        *ledger(facts),
    ]


def runs_below(state_dir: Path) -> list[Run]:
    """Every machine that the local provider started, from what the runners wrote down and from what lives."""
    living = _living(state_dir)
    runs: list[Run] = []
    for folder in sorted((state_dir / "attempts").glob("*-*")):
        attempt_id = UUID(folder.name)
        lines = (folder / "starts.jsonl").read_text().splitlines() if (folder / "starts.jsonl").exists() else []
        for start in map(json.loads, lines):
            alive = living.get(attempt_id, set()) & {start["trainer_pid"]}
            runs.append(_run(attempt_id, start["started_at"], alive=bool(alive)))
        noted = {json.loads(line)["trainer_pid"] for line in lines}
        for pid in living.get(attempt_id, set()) - noted:
            with suppress(psutil.NoSuchProcess):  # it has ended since
                born = datetime.fromtimestamp(psutil.Process(pid).create_time()).astimezone()
                runs.append(Run(attempt_id=attempt_id, started_at=born, alive=True))
    return runs


def _run(attempt_id: UUID, started_at: str, *, alive: bool) -> Run:
    return Run(attempt_id=attempt_id, started_at=datetime.fromisoformat(started_at), alive=alive)


def _living(state_dir: Path) -> dict[UUID, set[int]]:
    """Attempt -> the trainer processes that live for it; a trainer's own children are not counted."""
    folder = f"{state_dir / 'attempts'}/"
    found: dict[int, UUID] = {}
    parents: dict[int, int] = {}
    for process in psutil.process_iter(["cmdline", "ppid"]):
        parts: list[str] = process.info["cmdline"] or []
        # The runner's own argument is the folder itself; what lies in it is an argument of the trainer alone.
        inside = [part.removeprefix(folder) for part in parts if part.startswith(folder)]
        named = [part.partition("/")[0] for part in inside if "/" in part]
        if named:
            found[process.pid] = UUID(named[0])
            parents[process.pid] = process.info["ppid"]
    living: dict[UUID, set[int]] = {}
    for pid, attempt_id in found.items():
        if parents[pid] not in found:
            living.setdefault(attempt_id, set()).add(pid)
    return living


def _is_old(run: Run, recent: Collection[UUID], observed: Observed) -> bool:
    """Whether an earlier check has seen this run: nothing of its attempt stands in the part that is looked at."""
    return observed.since > 0 and run.attempt_id not in recent and not run.alive


@asynccontextmanager
async def _connected(dsn: str) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn, timeout=30, command_timeout=60)
    try:
        yield connection
    finally:
        await connection.close()


async def _rest(connection: asyncpg.Connection) -> list[str]:
    """Waits until every durable has handled what the log holds; names those that do not get there."""
    deadline = time.monotonic() + REST_S
    while behind := await _behind(connection):
        if time.monotonic() > deadline:
            return [f"{text} after {REST_S:g} s" for text in behind]
        await asyncio.sleep(0.02)  # the pace of asking
    return []


async def _behind(connection: asyncpg.Connection) -> list[str]:
    """One look at one moment: what a durable brings about while the others are asked is still to be handled by them."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await _behind_now(connection)


async def _behind_now(connection: asyncpg.Connection) -> list[str]:
    rows = await connection.fetch("SELECT category, max(global_position) AS head FROM log.events GROUP BY category")
    heads = {row["category"]: row["head"] for row in rows}
    found: list[str] = []
    for durable in DURABLES:
        head = max((heads.get(category, 0) for category in durable.categories), default=0)
        reached = await _checkpoint(connection, durable)
        found += [f"{durable.name} is at {reached}, the log at {head}"] if reached < head else []
    return found


async def _checkpoint(connection: asyncpg.Connection, durable: Durable) -> int:
    await _enter(connection, durable.service)
    return await connection.fetchval("SELECT position FROM checkpoint WHERE durable = $1", durable.name) or 0


async def _enter(connection: asyncpg.Connection, schema: str) -> None:
    await connection.execute("SELECT set_config('search_path', $1, false)", schema)


async def _inbox(
    connection: asyncpg.Connection, durable: Durable, history: Sequence[RecordedEvent], since: int
) -> list[str]:
    checkpoint = await _checkpoint(connection, durable)
    horizon = max(since, checkpoint - KEEP_POSITIONS)
    rows = await connection.fetch(
        "SELECT event_id, position FROM inbox WHERE durable = $1 AND position > $2", durable.name, horizon
    )
    inbox = {UUID(int=row["event_id"].int): row["position"] for row in rows}
    seen = [one for one in history if one.global_position > horizon]
    return rules.handled_once(durable, seen, inbox, checkpoint)


async def _parked(connection: asyncpg.Connection, wanted: frozenset[tuple[str, int]]) -> list[str]:
    parked: dict[tuple[str, int], str] = {}
    for service in SERVICES:
        await _enter(connection, service)
        rows = await connection.fetch("SELECT durable, position, type, reason FROM parked")
        parked |= {(row["durable"], row["position"]): f"{row['type']}: {row['reason']}" for row in rows}
    found = [f"{place[0]} parked position {place[1]}: {parked[place]}" for place in sorted(parked.keys() - wanted)]
    return found + [f"{durable} did not park position {place}" for durable, place in sorted(wanted - parked.keys())]


async def _rebuilt(gateway_url: str) -> list[str]:
    async with httpx.AsyncClient(base_url=gateway_url, timeout=REBUILD_S) as client:
        answer = await client.post("/api/v1/admin/rebuild")
    if not answer.is_success:
        return [f"the rebuild answered {answer.status_code}: {answer.text}"]
    return unequal(answer.json())


def unequal(report: dict[str, Any]) -> list[str]:
    """The read models that a rebuild found different, and the services that did not answer."""
    found: list[str] = []
    for service, answer in report["services"].items():
        found += [f"{service} did not rebuild: {answer['error']}"] if "error" in answer else []
        found += [
            f"{service}.{one['name']} is not what the log folds to"
            for one in answer.get("projections", [])
            if not one["equal"]
        ]
    return found
