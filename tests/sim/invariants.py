"""What must hold once a seed has come to rest. The rules over histories are those of the fault harness."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from uuid import UUID

from services.billing.projections import ledger
from services.gateway.domain.views import JobView, fold_job
from services.provider_bridge.projections import attempts
from services.scheduler.projections import market
from services.storage.projections import objects
from shared.contracts import catalogue
from shared.contracts.attempt import AttemptAccepted, AttemptLeased, AttemptStartIntended
from shared.contracts.envelope import RecordedEvent
from shared.contracts.job import JobCancelled, JobCancelRequested, JobCompleted, JobFailed
from shared.contracts.subjects import (
    BILLING_LEDGER,
    BRIDGE_ATTEMPTS,
    DURABLES,
    SCHEDULER_MARKET,
    STORAGE_OBJECTS,
    Durable,
)
from tests.fault.invariants import check_history
from tests.sim.connection import MemoryConnection
from tests.sim.database import Database, at_once
from tests.sim.gateway import VIEWS
from tests.sim.process import Process
from tests.sim.system import System
from tests.sim.workload import Person
from tests.support.whatif import decided_again

_PROJECTIONS: Sequence[tuple[Durable, Any, tuple[str, ...]]] = (
    (BILLING_LEDGER, ledger.project, ledger.TABLES),
    (SCHEDULER_MARKET, market.project, market.TABLES),
    (BRIDGE_ATTEMPTS, attempts.project, ("attempts",)),
    (STORAGE_OBJECTS, objects.project, objects.TABLES),
)


def violations(system: System, people: Sequence[Person]) -> list[str]:
    """Every broken promise in words."""
    history = system.log.events
    limits = system.setup.limits
    accepted = {job_id for person in people for job_id in person.answers}
    return [
        *system.bugs,
        *check_history(history, must_end=accepted, in_all=limits.in_all, per_user=limits.per_user),
        *_answers(people),
        *_cancels(history),
        *_machines(system),
        *_epochs(history),
        *_inboxes(system),
        *_stream(system),
        *_views(system),
        *_reports(system),
        *_tables(system),
        *_decisions(history),
    ]


def _decisions(history: Sequence[RecordedEvent]) -> list[str]:
    """What-if takes every decision again and gets the same, whatever struck between what a round saw and wrote."""
    decisions = decided_again(history)
    difference = decisions.first_difference
    if difference is None and decisions.reproduced == decisions.recorded:
        return []
    return [f"{decisions.reproduced} of {decisions.recorded} decisions are reproduced; first difference {difference}"]


def _answers(people: Sequence[Person]) -> list[str]:
    return [
        f"key-{person.number} was answered with {len(person.answers)} jobs: {sorted(map(str, person.answers))}"
        for person in people
        if len(person.answers) != 1 and not person.refusals
    ]


def _cancels(history: Sequence[RecordedEvent]) -> list[str]:
    """A job whose cancel was recorded ends cancelled, whatever its run did."""
    asked: set[str] = set()
    found: list[str] = []
    for recorded in history:
        event = catalogue.decode(recorded)
        if isinstance(event, JobCancelRequested | JobCancelled):
            asked.add(recorded.stream)
        elif isinstance(event, JobCompleted | JobFailed) and recorded.stream in asked:
            found.append(f"{recorded.stream} was cancelled and ended with {recorded.type}")
    return found


def _machines(system: System) -> list[str]:
    """At most one machine of an attempt lives at any moment, and each was intended under its own token and epoch."""
    found: list[str] = []
    of_attempt: defaultdict[UUID, list[tuple[float, float | None, str]]] = defaultdict(list)
    for machine in system.cloud.machines:
        of_attempt[machine.tag.attempt_id].append((machine.started_s, machine.ended_s, machine.ref))
    for attempt_id, lives in of_attempt.items():
        for (_, ended_s, ref), (began_s, _, other) in pairwise(lives):
            if ended_s is None or ended_s > began_s:
                found.append(f"attempt {attempt_id} had two machines at once: {ref} and {other}")
    return found + system.cloud.unowned


def _epochs(history: Sequence[RecordedEvent]) -> list[str]:
    """Whoever writes under a lease writes under the attempt's present epoch."""
    found: list[str] = []
    present: dict[str, int] = {}
    for recorded in history:
        if recorded.category != "attempt":
            continue
        event = catalogue.decode(recorded)
        if isinstance(event, AttemptLeased):
            if event.epoch <= present.get(recorded.stream, 0):
                found.append(f"{recorded.stream}: epoch {event.epoch} was leased twice")
            present[recorded.stream] = event.epoch
        elif not isinstance(event, AttemptStartIntended | AttemptAccepted):
            continue
        elif event.epoch != present.get(recorded.stream):
            found.append(f"{recorded.stream}: {recorded.type} at {recorded.global_position} under a stale epoch")
    return found


def _inboxes(system: System) -> list[str]:
    """Each durable has handled every event of its categories, and nothing was given up."""
    found: list[str] = []
    for durable in DURABLES:
        tables = system.database.schema(durable.service)
        handled = sorted(row["position"] for row in tables["inbox"].values() if row["durable"] == durable.name)
        due = [event.global_position for event in system.log.events if event.category in durable.categories]
        if handled != due:
            missing, extra = sorted(set(due) - set(handled)), sorted(set(handled) - set(due))
            found.append(f"{durable.name} did not handle {missing} and handled {extra} besides")
        found += [
            f"{durable.name} parked {row['type']} at {row['position']}: {row['reason']}"
            for row in tables["parked"].values()
            if row["durable"] == durable.name
        ]
    return found


def _stream(system: System) -> list[str]:
    """JetStream holds the log, in its order."""
    stream = system.nats.stream
    published = [] if stream is None else [int((m.headers or {})["Tw-Position"]) for m in stream.messages]
    due = list(range(1, len(system.log.events) + 1))
    return [] if published == due else [f"JetStream holds {published} of positions 1 to {len(due)}"]


def _views(system: System) -> list[str]:
    """The gateway's view of each job is the fold of its story."""
    stories: defaultdict[UUID, list[RecordedEvent]] = defaultdict(list)
    for recorded in system.log.events:
        stories[recorded.correlation_id].append(recorded)
    rows = system.database.table("gateway", VIEWS)
    return [
        f"the view of job {job_id} is not the fold of its story"
        for job_id, story in stories.items()
        if (rows[job_id]["view"] if job_id in rows else JobView(job_id=job_id)) != fold_job(job_id, story)
    ]


def _reports(system: System) -> list[str]:
    """Every line that a trainer was told is stored, is."""
    rows = system.database.table("storage", "reports")
    stored: defaultdict[UUID, set[int]] = defaultdict(set)
    for row in rows.values():
        stored[row["attempt_id"]].add(row["seq"])
    return [
        f"lines of attempt {trainer.attempt_id} up to {trainer.acked} were acknowledged, not all are stored"
        for trainer in system.trainers
        if not stored[trainer.attempt_id].issuperset(range(1, trainer.acked + 1))
    ]


def _tables(system: System) -> list[str]:
    """Each read model is what its projection makes of the log in one go."""
    found: list[str] = []
    for durable, project, tables in _PROJECTIONS:
        fresh = Database(system.log, system.database.now)
        process = Process(f"{durable.service}/refold", system.calm, skew_s=0.0, died=lambda _: None)
        connection: Any = MemoryConnection(fresh, process)
        try:
            at_once(_refold(connection, project, [e for e in system.log.events if e.category in durable.categories]))
        except AssertionError as broken:
            found.append(f"{durable.service} cannot be folded: {broken}")
            continue
        found += [
            f"{durable.service}.{table} is not the fold of the log"
            for table in tables
            if fresh.table(durable.service, table) != system.database.table(durable.service, table)
        ]
    return found


async def _refold(connection: Any, project: Any, events: Sequence[RecordedEvent]) -> None:
    async with connection.transaction():
        for event in events:
            await project(connection, event)
