"""Accounts kept folded between commands: a busy owner's month is read once, then only what was added to it.

A remembered state is never trusted: what the log has beyond it is read first, and the append names the version that was
decided on. So a stale one costs a conflict, and never a cent.
"""

from collections import OrderedDict
from uuid import UUID

from services.billing.domain.account import Account, AccountCommand, Unopened, decide, evolve
from shared.contracts import catalogue
from shared.contracts.envelope import EventMetadata
from shared.decider import MAX_DECISIONS, Decision
from shared.eventstore.api import Append, EventStore, VersionConflict
from shared.observability import metrics, names, tracing
from shared.problems import Rejected

KEPT_ACCOUNTS = 512


class KnownAccounts:
    """Decides commands on account streams, like `shared.decider.execute`, with a memory."""

    def __init__(self, store: EventStore, kept: int = KEPT_ACCOUNTS) -> None:
        self._store = store
        self._kept = kept
        self._known: OrderedDict[str, tuple[int, Account]] = OrderedDict()

    async def execute(
        self, stream: str, command: AccountCommand, *, meta: EventMetadata, correlation_id: UUID
    ) -> Decision[Account]:
        """Loads what is new, decides, appends; decides again when the account moved, at most MAX_DECISIONS times.

        Raises:
            Rejected: the rule said no, or `version_conflict` when the account would not hold still.
        """
        for _ in range(MAX_DECISIONS):
            version, state = await self._current(stream)
            with tracing.span(names.decide(type(command))):
                events = decide(state, command)
            if not events:
                return Decision(state=state, events=(), position=0)
            request = Append(
                stream=stream, expected_version=version, events=events, meta=meta, correlation_id=correlation_id
            )
            try:
                with tracing.span(names.append("account")):
                    done = await self._store.append(request)
            except VersionConflict:
                metrics.append_conflicts.add(1)
                continue
            for event in events:
                state = evolve(state, event)
            self._remember(stream, done.version, state)
            return Decision(state=state, events=events, position=done.last_position)
        raise Rejected("version_conflict", f"{stream} kept changing; try again", stream=stream)

    async def _current(self, stream: str) -> tuple[int, Account]:
        version, state = self._known.get(stream, (0, Unopened()))
        for recorded in await self._store.read_stream(stream, after_version=version):
            event = catalogue.decode(recorded)
            state = state if event is None else evolve(state, event)
            version = recorded.stream_version
        self._remember(stream, version, state)
        return version, state

    def _remember(self, stream: str, version: int, state: Account) -> None:
        if version >= self._known.get(stream, (0, state))[0]:
            self._known[stream] = (version, state)
        self._known.move_to_end(stream)
        while len(self._known) > self._kept:
            self._known.popitem(last=False)
