"""Streams kept folded between commands: a busy account, or a provider that lives for years, is read once.

A remembered state is never trusted: what the log has beyond it is read first, and the append names the version that was
decided on. So a stale one costs a conflict, and nothing else.
"""

from collections import OrderedDict
from typing import Generic, TypeVar
from uuid import UUID

from shared.contracts import catalogue
from shared.contracts.envelope import EventMetadata
from shared.decider import MAX_DECISIONS, Decider, Decision
from shared.eventstore.api import Append, EventStore, VersionConflict
from shared.observability import metrics, names, tracing
from shared.problems import Rejected

KEPT_STREAMS = 512

S = TypeVar("S")
C = TypeVar("C")


class KnownStreams(Generic[S, C]):
    """Decides commands like `shared.decider.execute`, with a memory."""

    def __init__(self, store: EventStore, decider: Decider[S, C], kept: int = KEPT_STREAMS) -> None:
        self._store = store
        self._decider = decider
        self._kept = kept
        self._known: OrderedDict[str, tuple[int, S]] = OrderedDict()

    async def load(self, stream: str) -> S:
        """The state as the log has it now."""
        return (await self.current(stream))[1]

    async def execute(self, stream: str, command: C, *, meta: EventMetadata, correlation_id: UUID) -> Decision[S]:
        """Loads what is new, decides, appends; decides again when the stream moved, at most MAX_DECISIONS times.

        Raises:
            Rejected: the rule said no, or `version_conflict` when the stream would not hold still.
        """
        for _ in range(MAX_DECISIONS):
            version, state = await self.current(stream)
            with tracing.span(names.decide(type(command))):
                events = self._decider.decide(state, command)
            if not events:
                return Decision(state=state, events=(), position=0)
            request = Append(
                stream=stream, expected_version=version, events=events, meta=meta, correlation_id=correlation_id
            )
            try:
                with tracing.span(names.append(stream.partition("-")[0])):
                    done = await self._store.append(request)
            except VersionConflict:
                metrics.append_conflicts.add(1)
                continue
            for event in events:
                state = self._decider.evolve(state, event)
            self._remember(stream, done.version, state)
            return Decision(state=state, events=events, position=done.last_position)
        raise Rejected("version_conflict", f"{stream} kept changing; try again", stream=stream)

    async def current(self, stream: str) -> tuple[int, S]:
        """The stream's version and state, as the log has them now: for an append in the caller's own transaction."""
        version, state = self._known.get(stream, (0, self._decider.initial))
        for recorded in await self._store.read_stream(stream, after_version=version):
            event = catalogue.decode(recorded)
            state = state if event is None else self._decider.evolve(state, event)
            version = recorded.stream_version
        self._remember(stream, version, state)
        return version, state

    def _remember(self, stream: str, version: int, state: S) -> None:
        if version >= self._known.get(stream, (0, state))[0]:
            self._known[stream] = (version, state)
        self._known.move_to_end(stream)
        while len(self._known) > self._kept:
            self._known.popitem(last=False)
