"""Finds runs that nobody waits for and ends them: a machine that is forgotten costs money."""

from datetime import timedelta

import structlog

from services.provider_bridge import metrics
from services.provider_bridge.attempt_stream import ACTOR, ATTEMPT, attempt_stream
from services.provider_bridge.domain.attempt_commands import Report
from services.provider_bridge.domain.attempt_states import Absent, AttemptState, Ended, Forestalled
from services.provider_bridge.outbound.leases import Leases
from services.provider_bridge.outbound.ports import OurRun, Provider, Providers, StaleEpoch
from shared.clock import Clock
from shared.contracts.attempt import ReportMilestone
from shared.contracts.envelope import EventMetadata
from shared.decider import execute
from shared.eventstore.api import EventStore

LINGER = timedelta(seconds=60)
"""How long a trainer may live on after its attempt ended: it hands in its last reports and cleans up."""
ORPHAN_REPORT = "orphan_run"

log = structlog.stdlib.get_logger()


class Sweeper:
    """Compares what runs at the providers with what the log says should run."""

    def __init__(
        self,
        leases: Leases,
        store: EventStore,
        providers: Providers,
        clock: Clock,
        *,
        cancel_grace_s: float,
    ) -> None:
        self._leases = leases
        self._store = store
        self._providers = providers
        self._clock = clock
        self._cancel_grace_s = cancel_grace_s

    async def sweep(self) -> None:
        """Ends every run whose attempt is unknown to the log, or ended more than LINGER ago."""
        await self._leases.drop_ended()
        for provider in self._providers.known():
            for run in await provider.list_ours():
                # The log is read after the list: an attempt is in the log before its run can exist.
                state = await self._leases.load(run.tag.attempt_id)
                if self._is_orphan(state):
                    await self._end(provider, run, state)

    def _is_orphan(self, state: AttemptState) -> bool:
        if isinstance(state, Ended):
            return self._clock() > state.ended_at + LINGER
        return isinstance(state, Absent | Forestalled)

    async def _end(self, provider: Provider, run: OurRun, state: AttemptState) -> None:
        outcome = state.outcome if isinstance(state, Ended) else "unknown to the log"
        log.warning(
            "bridge.run.orphaned",
            attempt_id=str(run.tag.attempt_id),
            ref=run.ref,
            provider=provider.name,
            attempt=outcome,
        )
        metrics.orphans_ended.add(1, {"provider": provider.name})
        if isinstance(state, Ended):
            await self._record(run, state)
        try:
            await provider.cancel(run.tag, run.ref, self._cancel_grace_s)
        except StaleEpoch:
            log.info("bridge.orphan.taken", attempt_id=str(run.tag.attempt_id))

    async def _record(self, run: OurRun, state: Ended) -> None:
        """Notes the orphan beside the attempt's end, once."""
        attempt_id = run.tag.attempt_id
        report = ReportMilestone(
            attempt_id=attempt_id, seq=0, report_type=ORPHAN_REPORT, data={"ref": run.ref}, at=self._clock()
        )
        await execute(
            self._store,
            ATTEMPT,
            attempt_stream(attempt_id),
            Report(command=report),
            meta=EventMetadata(actor=ACTOR),
            correlation_id=state.run.request.job_id,
        )
