"""The commands that others send about attempts: decide, append, wake the reconciler, answer."""

from collections.abc import Callable
from uuid import UUID

import msgspec

from services.provider_bridge.attempt_stream import ATTEMPT, attempt_stream
from services.provider_bridge.domain.attempt_commands import Ask, AttemptCommand, Cancel, Report, Request
from services.provider_bridge.domain.attempt_states import AttemptState, Ended
from services.provider_bridge.outbound.ports import Provider, Providers
from shared.clock import Clock
from shared.contracts.attempt import AskTrainer, CancelAttempt, Quote, ReportMilestone, RequestAttempt
from shared.contracts.envelope import CommandEnvelope, CommandReply
from shared.decider import Decision, execute, metadata
from shared.eventstore.api import EventStore
from shared.problems import Rejected


class AttemptHandlers:
    """Answers after the commit; what has to be done at the provider follows on its own."""

    def __init__(self, store: EventStore, providers: Providers, clock: Clock, nudge: Callable[[UUID], None]) -> None:
        self._store = store
        self._providers = providers
        self._clock = clock
        self._nudge = nudge

    async def request(self, command: RequestAttempt, envelope: CommandEnvelope) -> CommandReply:
        """Owns the run from here on; refuses with `unknown_provider`."""
        provider = self._providers.of(command.provider, command.user_id)
        if provider is None:
            known = sorted({one.name for one in self._providers.known()})
            raise Rejected("unknown_provider", f"no provider {command.provider} is set up here", known=known)
        quote = _quote(provider, command)
        request = Request(command=command, quote=quote, at=self._clock())
        return _reply(await self._execute(command.attempt_id, request, envelope))

    async def cancel(self, command: CancelAttempt, envelope: CommandEnvelope) -> CommandReply:
        """The run will end; `attempt.cancelled` tells when it has."""
        return _reply(await self._execute(command.attempt_id, Cancel(command=command, at=self._clock()), envelope))

    async def ask(self, command: AskTrainer, envelope: CommandEnvelope) -> CommandReply:
        """The trainer is told with its next acknowledgement; refuses with `invalid_job_state` when none is running."""
        return _reply(await self._execute(command.attempt_id, Ask(command=command, at=self._clock()), envelope))

    async def report(self, command: ReportMilestone, envelope: CommandEnvelope) -> CommandReply:
        """Records what a trainer reported. Answers `{"late": bool}`: true if it came after the attempt's end."""
        # A trainer's clock may be fast: nothing it reports happened later than now, or it would be billed.
        known = msgspec.structs.replace(command, at=min(command.at, self._clock()))
        done = await self._execute(command.attempt_id, Report(command=known), envelope)
        late = isinstance(done.state, Ended) and command.report_type in done.state.late_types
        return CommandReply(position=done.position, data={"late": late})

    async def _execute(
        self, attempt_id: UUID, command: AttemptCommand, envelope: CommandEnvelope
    ) -> Decision[AttemptState]:
        done = await execute(
            self._store,
            ATTEMPT,
            attempt_stream(attempt_id),
            command,
            meta=metadata(envelope),
            correlation_id=command.command.job_id if isinstance(command, Request) else envelope.correlation_id,
        )
        self._nudge(attempt_id)
        return done


def _quote(provider: Provider, command: RequestAttempt) -> Quote:
    """What the attempt is bound to: the chosen offer, or the provider's default at the price that billing has set."""
    offer, can = command.offer, provider.capabilities
    return Quote(
        hardware=can.default_hardware if offer is None else offer.hardware,
        price_micro_usd_per_hour=(command if offer is None else offer).price_micro_usd_per_hour,
        metering=can.metering,
        offer=offer,
    )


def _reply(done: Decision[AttemptState]) -> CommandReply:
    return CommandReply(position=done.position)
