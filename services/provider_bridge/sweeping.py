"""Finds runs that nobody waits for and ends them: a machine that is forgotten costs money.

Each cycle compares what lives at the providers with the log. A run is an orphan if the log has no attempt of its tag,
if its attempt ended some time ago, or if another run is the attempt's own. Where machines are paid for, an orphan is
named in an event before it is ended, and its seconds are written down once it is gone: no machine is nobody's.
"""

from datetime import timedelta
from typing import Literal

import structlog

from services.provider_bridge import metrics
from services.provider_bridge.attempt_stream import ACTOR, ATTEMPT, attempt_stream
from services.provider_bridge.domain.attempt_commands import Report
from services.provider_bridge.domain.attempt_states import (
    Absent,
    Accepted,
    AttemptState,
    Ended,
    Forestalled,
    Running,
    provider_ref_of,
    run_of,
)
from services.provider_bridge.domain.provider import EndOrphan, FindOrphan
from services.provider_bridge.outbound.leases import Leases
from services.provider_bridge.outbound.ports import OurRun, Provider, Providers, RunView, StaleEpoch, Tag, later_view
from services.provider_bridge.provider_stream import ProviderStreams
from shared.clock import Clock
from shared.contracts.attempt import ReportMilestone
from shared.contracts.envelope import EventMetadata
from shared.contracts.provider import ProviderOrphanFound
from shared.decider import execute
from shared.eventstore.api import EventStore
from shared.problems import Unavailable

LINGER = timedelta(seconds=60)
"""How long a trainer may live on after its attempt ended: it hands in its last reports and cleans up."""
ORPHAN_REPORT = "orphan_run"
Why = Literal["unknown_attempt", "attempt_ended", "second_run"]

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
        streams: ProviderStreams | None = None,
    ) -> None:
        self._leases = leases
        self._store = store
        self._providers = providers
        self._streams = streams or ProviderStreams(store)
        self._clock = clock
        self._views: dict[str, RunView | None] = {}
        """Orphans as they were last seen: one that is gone shows nothing of itself any more."""
        self._cancel_grace_s = cancel_grace_s

    async def sweep(self) -> None:
        """Ends every orphan. A provider that does not answer is looked at in the next cycle, and holds up no other."""
        await self._leases.drop_ended()
        for provider in self._providers.known():
            try:
                await self._sweep_one(provider)
            except Unavailable as away:
                log.warning("bridge.sweep.put_off", provider=provider.name, detail=away.detail)

    async def _sweep_one(self, provider: Provider) -> None:
        for run in await provider.list_ours():
            # The log is read after the list: an attempt is in the log before its run can exist.
            state = await self._leases.load(run.tag.attempt_id)
            why = self._why_orphan(run, state)
            if why is not None:
                await self._name(provider, run, state, why)
                await self._end(provider, _asking(run.tag, state), run.ref)
        known = await self._streams.load(provider.name)
        for orphan in known.orphans.values():
            await self._close(provider, orphan)

    def _why_orphan(self, run: OurRun, state: AttemptState) -> Why | None:
        if isinstance(state, Absent | Forestalled):
            return "unknown_attempt"
        known = run_of(state)
        own_ref = provider_ref_of(known)
        if own_ref is None and run.tag.epoch < known.intent_epoch:
            return "second_run"  # a start that was given up, and took place after all: its token is worth nothing
        if own_ref not in {None, run.ref}:
            return "second_run"
        if isinstance(state, Ended) and not state.owes_release:  # else the reconciler looks after it
            was_started = isinstance(known, Accepted | Running)
            may_linger = was_started and self._clock() <= state.ended_at + LINGER
            return None if may_linger else "attempt_ended"
        return None

    async def _name(self, provider: Provider, run: OurRun, state: AttemptState, why: Why) -> None:
        attempt_id = run.tag.attempt_id
        log.warning("bridge.run.orphaned", attempt_id=str(attempt_id), ref=run.ref, provider=provider.name, why=why)
        metrics.orphans_ended.add(1, {"provider": provider.name})
        if provider.capabilities.metering == "machine":
            found = FindOrphan(
                provider=provider.name,
                ref=run.ref,
                attempt_id=attempt_id,
                epoch=run.tag.epoch,
                why=why,
                price_micro_usd_per_hour=run.price_micro_usd_per_hour or _price_of(state),
                started_at=run.started_at,
                at=self._clock(),
            )
            self._views[run.ref] = await provider.fetch(run.ref)
            await self._streams.execute(provider.name, found)
        elif isinstance(state, Ended):
            await self._note(run, state)

    async def _end(self, provider: Provider, tag: Tag, ref: str) -> None:
        try:
            await provider.cancel(tag, ref, self._cancel_grace_s)
        except StaleEpoch:
            log.info("bridge.orphan.taken", attempt_id=str(tag.attempt_id))

    async def _close(self, provider: Provider, orphan: ProviderOrphanFound) -> None:
        """Writes down what an orphan cost once it is gone, and until then ends it again."""
        state = await self._leases.load(orphan.attempt_id)
        view = self._views[orphan.ref] = later_view(await provider.fetch(orphan.ref), self._views.get(orphan.ref))
        if not await provider.confirm_gone(orphan.ref):
            tag = Tag(attempt_id=orphan.attempt_id, epoch=orphan.epoch)
            await self._end(provider, _asking(tag, state), orphan.ref)
            return
        del self._views[orphan.ref]
        job_id = None if isinstance(state, Absent | Forestalled) else run_of(state).request.job_id
        now = self._clock()
        ended = EndOrphan(
            provider=provider.name,
            ref=orphan.ref,
            job_id=job_id,
            ended_at=min(view.ended_at or now, now) if view is not None else now,
            billed_s=view.billed_s if view is not None else None,
        )
        await self._streams.execute(provider.name, ended, job_id=job_id)

    async def _note(self, run: OurRun, state: Ended) -> None:
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


def _asking(tag: Tag, state: AttemptState) -> Tag:
    """The tag under which an orphan is ended: its own epoch may be one that the provider hears no more."""
    known = 0 if isinstance(state, Absent | Forestalled) else run_of(state).epoch
    return Tag(attempt_id=tag.attempt_id, epoch=max(tag.epoch, known))


def _price_of(state: AttemptState) -> int:
    """What the attempt's own machine was quoted at: the best guess for a second one whose price nobody tells."""
    return 0 if isinstance(state, Absent | Forestalled) else run_of(state).request.quote.price_micro_usd_per_hour
