"""Deciders: pure rules over a stream, and the one way a command becomes events.

Read by every service's handlers. Nothing here does I/O except through the `EventStore` that is passed in; spans and
counters are the process's own and go nowhere unless an exporter is set up.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar
from uuid import UUID

import msgspec

from shared.contracts import catalogue
from shared.contracts.envelope import CommandEnvelope, EventMetadata, RecordedEvent
from shared.contracts.job import Event
from shared.eventstore.api import Append, EventStore, VersionConflict
from shared.observability import metrics, names, tracing
from shared.problems import Rejected

S = TypeVar("S")
C = TypeVar("C")

MAX_DECISIONS = 8
"""How often a command is decided again when its stream moved under it."""


class Decider(msgspec.Struct, Generic[S, C], frozen=True):
    """`decide(state, command)` gives events or raises Rejected; `evolve(state, event)` never raises. Both are pure."""

    initial: S
    evolve: Callable[[S, Event], S]
    decide: Callable[[S, C], Sequence[Event]]


class Decision(msgspec.Struct, Generic[S], frozen=True, kw_only=True):
    """What a command led to: the state after it, the events it added, and the log's position after them (0 if none)."""

    state: S
    events: Sequence[Event]
    position: int


def fold(decider: Decider[S, C], history: Iterable[RecordedEvent]) -> S:
    """The state that a stream's events add up to; event types we do not know are passed over."""
    state = decider.initial
    for recorded in history:
        event = catalogue.decode(recorded)
        if event is not None:
            state = decider.evolve(state, event)
    return state


def metadata(envelope: CommandEnvelope) -> EventMetadata:
    """What a command's envelope says of the events it causes."""
    return EventMetadata(
        actor=envelope.actor,
        causation_id=envelope.command_id,
        traceparent=envelope.traceparent,
        source_ip=envelope.source_ip,
    )


async def execute(
    store: EventStore,
    decider: Decider[S, C],
    stream: str,
    command: C,
    *,
    meta: EventMetadata,
    correlation_id: UUID,
    expects_new: bool = False,
) -> Decision[S]:
    """Loads, folds, decides, appends; decides again when the stream moved, at most MAX_DECISIONS times.

    With `expects_new` nothing is loaded at first: a stream that exists after all is a conflict, and then it is loaded.

    Raises:
        Rejected: the rule said no, or `version_conflict` when the stream would not hold still.
    """
    for attempt in range(MAX_DECISIONS):
        is_guess = expects_new and attempt == 0
        history = [] if is_guess else await store.read_stream(stream)
        state = fold(decider, history)
        try:
            with tracing.span(names.decide(type(command))):
                events = decider.decide(state, command)
        except Rejected:
            if is_guess:  # a stream that exists may have an answer
                continue
            raise
        if not events:
            return Decision(state=state, events=(), position=0)
        version = history[-1].stream_version if history else 0
        request = Append(
            stream=stream, expected_version=version, events=events, meta=meta, correlation_id=correlation_id
        )
        try:
            with tracing.span(names.append(stream.partition("-")[0])):
                done = await store.append(request)
        except VersionConflict:
            metrics.append_conflicts.add(1)
            continue
        for event in events:
            state = decider.evolve(state, event)
        return Decision(state=state, events=events, position=done.last_position)
    raise Rejected("version_conflict", f"{stream} kept changing; try again", stream=stream)
