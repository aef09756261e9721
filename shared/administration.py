"""The commands that every service answers, whatever it owns: is it there, how far behind, what did it give up."""

from collections.abc import Mapping, Sequence

import asyncpg
import msgspec

from shared.contracts.admin import ListParked, Ping, RebuildProjections, ReplayParked
from shared.contracts.envelope import CommandEnvelope, CommandReply
from shared.contracts.job import Command
from shared.eventstore.api import EventStore
from shared.eventstore.outages import unavailable_on_outage
from shared.messaging.commands import CommandHandler
from shared.messaging.consumer import Consumer, Subscription
from shared.messaging.parking import list_parked, replay_parked
from shared.projection import Projection, rebuild


class Administration:
    """Handlers for shared.contracts.admin on one service's parts; each raises Unavailable while Postgres is away."""

    def __init__(
        self,
        service: str,
        version: str,
        *,
        pool: asyncpg.Pool,
        store: EventStore,
        subscriptions: Sequence[Subscription],
        projections: Sequence[Projection],
        consumers: Mapping[str, Consumer],
    ) -> None:
        self._service = service
        self._version = version
        self._pool = pool
        self._store = store
        self._subscriptions = subscriptions
        self._projections = projections
        self._consumers = consumers

    def handlers(self) -> dict[type[Command], CommandHandler]:
        """By command, as a service's own handlers are given."""
        return {
            Ping: self._ping,
            RebuildProjections: self._rebuild,
            ListParked: self._list_parked,
            ReplayParked: self._replay_parked,
        }

    async def _ping(self, _command: Ping, _envelope: CommandEnvelope) -> CommandReply:
        with unavailable_on_outage("the lag of its durables"):
            lag = {name: await consumer.lag() for name, consumer in self._consumers.items()}
        return CommandReply(data={"service": self._service, "version": self._version, "lag": lag})

    async def _rebuild(self, _command: RebuildProjections, _envelope: CommandEnvelope) -> CommandReply:
        with unavailable_on_outage("rebuild"):
            rebuilt = await rebuild(self._pool, self._store, self._projections)
        return CommandReply(data={"projections": [msgspec.to_builtins(one) for one in rebuilt]})

    async def _list_parked(self, _command: ListParked, _envelope: CommandEnvelope) -> CommandReply:
        with unavailable_on_outage("what is parked"):
            return CommandReply(data={"parked": await list_parked(self._pool)})

    async def _replay_parked(self, command: ReplayParked, _envelope: CommandEnvelope) -> CommandReply:
        with unavailable_on_outage("what is parked"):
            reason = await replay_parked(self._pool, self._store, self._subscriptions, command)
        return CommandReply(data={"replayed": reason is None, "reason": reason})
