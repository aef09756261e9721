"""Moves one attempt one step: take the lease, look at the log and at the provider, act, write down what came of it.

The order that makes one start, and one valid token, certain (docs/decisions/0006):
lease epoch e -> find(tag, e), which shuts out lower epochs -> AttemptStartIntended(e, digest) -> submit(tag, e, token)
-> AttemptAccepted. Repeating any step, in this process or another, is harmless.
"""

import hashlib
import secrets
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import assert_never
from uuid import UUID

import msgspec
import structlog

from services.provider_bridge import metrics
from services.provider_bridge.domain.attempt_commands import (
    Exited,
    FencedCommand,
    Gone,
    IntendStart,
    NeverStarted,
    Observation,
    RecordAccepted,
    RecordObserved,
    RecordReleased,
    RecordStartRefused,
    RecordWord,
    StillRunning,
)
from services.provider_bridge.domain.attempt_states import (
    Absent,
    Accepted,
    AttemptState,
    Ended,
    Ending,
    Forestalled,
    Requested,
    Run,
    Running,
    Starting,
    provider_ref_of,
    run_of,
)
from services.provider_bridge.domain.provider_status import RunStatus, UnknownWord, read_word
from services.provider_bridge.domain.run_spec import build_run_spec
from services.provider_bridge.outbound.leases import JobIsOver, Leases
from services.provider_bridge.outbound.ports import (
    Provider,
    Providers,
    RunView,
    StartOrder,
    StartRefused,
    Tag,
    later_view,
)
from shared.clock import Clock

MAX_START_EPOCHS = 10
"""An attempt whose start is still unresolved after so many leases is given up."""
ACT_MARGIN_S = 1.0
"""A lease must be good for so much longer when the provider is called."""
SAVING_S = 900
"""A run that is over its limit has so long to save, deliver and end itself; then its machine is ended."""
_TOKEN_BYTES = 32

log = structlog.stdlib.get_logger()


class DrivingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the steps need to know. `gateway_url` is where trainers of this site report to, `public_url` all others."""

    gateway_url: str
    public_url: str | None = None
    cancel_grace_s: float
    report_grace_s: float
    longest_run_s: int = 7 * 24 * 3600
    """The limit of runs on paid machines that were given none."""
    longest_boot_s: int = 3600
    """How long a paid machine may exist before its trainer says hello."""
    linger_s: float = 15.0
    """How long a paid machine may live on after its trainer has reported the end."""
    new_token: Callable[[], str] = partial(secrets.token_urlsafe, _TOKEN_BYTES)


class Driver:
    """Drives attempts, one call per attempt at a time."""

    def __init__(self, leases: Leases, providers: Providers, clock: Clock, options: DrivingOptions) -> None:
        self._leases = leases
        self._providers = providers
        self._clock = clock
        self._options = options

    async def drive(self, attempt_id: UUID) -> None:
        """One step, if the attempt is ours or free.

        Raises:
            LeaseLost, StaleEpoch: it is another's; whatever we were about to do was not done.
            Unavailable: the log or the provider does not answer; try again later.
        """
        state = await self._leases.load(attempt_id)
        if isinstance(state, Absent | Forestalled):
            return
        if isinstance(state, Ended) and not state.owes_release:
            await self._leases.drop(attempt_id)
            return
        run = run_of(state)
        provider = self._providers.of(run.request.provider, run.request.user_id)
        if provider is None:  # a bridge that is configured otherwise serves it
            return
        # An intent is resolved under a later epoch, which shuts out a start of the first that is still on its way.
        above = run.intent_epoch if isinstance(run, Starting) else 0
        epoch = await self._leases.hold(attempt_id, state, provider.capabilities.site, above=above)
        if epoch is None:
            return
        if epoch != run.epoch:  # until it was ours, somebody else may have gone on
            state = await self._leases.load(attempt_id)
        await self._step(state, provider, Tag(attempt_id=attempt_id, epoch=epoch))

    async def _step(self, state: AttemptState, provider: Provider, tag: Tag) -> None:
        step = _Step(self._leases, provider, self._clock, self._options, tag)
        match state:
            case Requested() | Starting():
                await step.start(state)
            case Accepted() | Running():
                await step.observe(state)
                await self._release_at_once(step, provider, tag)
            case Ending():
                await step.end(state.run)
                await self._release_at_once(step, provider, tag)
            case Ended():
                await step.release(state)
            case Absent() | Forestalled():
                return
            case _:
                assert_never(state)

    async def _release_at_once(self, step: "_Step", provider: Provider, tag: Tag) -> None:
        """What has just been seen to end is looked at now: later nobody can tell how long its machine was there."""
        if provider.capabilities.metering != "machine":
            return
        state = await self._leases.load(tag.attempt_id)
        if isinstance(state, Ended):
            await step.release(state)


class _Step:
    """One step of one attempt under one epoch."""

    def __init__(self, leases: Leases, provider: Provider, clock: Clock, options: DrivingOptions, tag: Tag) -> None:
        self._leases = leases
        self._provider = provider
        self._clock = clock
        self._options = options
        self._tag = tag
        self._seen: RunView | None = None
        """The run as it was last seen in this step: a machine that is ended shows nothing of itself any more."""
        self._log = log.bind(attempt_id=str(tag.attempt_id), epoch=tag.epoch, provider=provider.name)

    async def start(self, run: Requested | Starting) -> None:
        found = await self._provider.find(self._tag)
        if found is not None and _is_stale(found, run):
            found = None  # the sweep ends it
        if found is not None and isinstance(run, Starting):
            await self._accepted(found.ref)
        elif found is not None:
            await self._refused(
                "The provider has a run of this attempt that the log does not know.",
                "Was the log set back to an earlier state? The run is ended; submit the job again.",
            )
        elif self._tag.epoch > MAX_START_EPOCHS:
            await self._refused(f"The run could not be started in {MAX_START_EPOCHS} tries.", "See the bridge's log.")
        else:
            await self._submit(run)

    async def _submit(self, run: Run) -> None:
        token = self._options.new_token()
        digest = hashlib.sha256(token.encode()).hexdigest()
        try:
            await self._append(IntendStart(epoch=self._tag.epoch, at=self._clock(), token_sha256=digest))
        except JobIsOver:
            await self._cancel()
            return
        order = self._order(run, token)
        await self._leases.check(self._tag.attempt_id, self._tag.epoch, for_s=ACT_MARGIN_S)
        try:
            ref = await self._provider.submit(order)
        except StartRefused as refusal:
            await self._refused(refusal.message, refusal.advice, kind=refusal.kind)
        else:
            self._log.info("bridge.run.submitted", ref=ref)
            await self._accepted(ref)

    def _order(self, run: Run, token: str) -> StartOrder:
        is_near = self._provider.capabilities.site is not None
        public_url = self._options.public_url
        origin = self._options.gateway_url if is_near or public_url is None else public_url
        hook = None
        if public_url is not None and self._provider.capabilities.webhooks:
            hook = f"{public_url}/api/webhooks/{self._provider.name}?attempt={self._tag.attempt_id}"
        return StartOrder(
            tag=self._tag,
            spec=build_run_spec(self._tag.attempt_id, run.request, origin),
            token=token,
            offer=run.request.quote.offer,
            max_run_s=run.request.max_run_s,
            webhook_url=hook,
        )

    async def observe(self, run: Accepted | Running) -> None:
        ref = run.provider_ref or await self._find_ref(run)
        if ref is None:
            await self._observed(NeverStarted())
            return
        seen = await self._read(await self._look(ref))
        if seen is not None and not isinstance(seen, StillRunning):
            await self._observed(seen)
        elif self._is_overdue(run) and self._provider.capabilities.can_cancel:
            self._log.warning("bridge.run.overdue", ref=ref)
            metrics.overdue_runs.add(1, {"provider": self._provider.name})
            await self._cancel_run(ref)

    def _is_overdue(self, run: Run) -> bool:
        """Whether the trainer should have ended itself long ago; a machine that is paid for has a limit in any case."""
        limit_s = run.request.max_run_s
        if run.request.quote.metering == "machine":
            limit_s = limit_s or self._options.longest_run_s
            if isinstance(run, Accepted):  # an image that cannot be pulled is pulled for ever
                limit_s = min(limit_s, self._options.longest_boot_s)
        if limit_s is None or run.intended_at is None:
            return False
        return self._clock() > run.intended_at + timedelta(seconds=limit_s + SAVING_S)

    async def end(self, run: Run) -> None:
        ref = provider_ref_of(run) or await self._find_ref(run)
        if ref is None:
            await self._observed(NeverStarted())
            return
        seen = await self._read(await self._look(ref))
        if seen is not None and not isinstance(seen, StillRunning) and await self._provider.confirm_gone(ref):
            await self._observed(seen)
        elif self._provider.capabilities.can_cancel:
            await self._cancel_run(ref)
            if self._provider.capabilities.metering == "machine" and await self._provider.confirm_gone(ref):
                await self._observed(await self._read(await self._look(ref)) or NeverStarted())

    async def _cancel_run(self, ref: str) -> None:
        await self._leases.check(self._tag.attempt_id, self._tag.epoch, for_s=ACT_MARGIN_S)
        await self._provider.cancel(self._tag, ref, self._options.cancel_grace_s)

    async def release(self, ended: Ended) -> None:
        """Sees to it that the machine of an attempt that has ended is gone, and writes down what it was there for."""
        if not ended.owes_release:  # a report has ended it since, and nobody pays for its machine
            return
        ref = provider_ref_of(ended.run) or await self._find_ref(ended.run)
        if ref is None:
            await self._released(None)
            return
        await self._look(ref)
        if await self._provider.confirm_gone(ref):
            await self._released(ref)
        elif self._may_linger(ended):
            return
        elif self._provider.capabilities.can_cancel:
            await self._cancel_run(ref)
            if await self._provider.confirm_gone(ref):
                await self._look(ref)
                await self._released(ref)

    def _may_linger(self, ended: Ended) -> bool:
        """A trainer that has reported its end may still hand in its last lines and end its machine itself."""
        return ended.by_report and self._clock() < ended.ended_at + timedelta(seconds=self._options.linger_s)

    async def _look(self, ref: str) -> RunView | None:
        view = await self._provider.fetch(ref)
        self._seen = later_view(view, self._seen)
        return view

    async def _released(self, ref: str | None) -> None:
        now, view = self._clock(), self._seen
        seen = view.ended_at if view is not None else None
        await self._append(
            RecordReleased(
                epoch=self._tag.epoch,
                at=now,
                provider_ref=ref,
                started_at=view.started_at if view is not None else None,
                ended_at=min(seen or now, now),
                billed_s=view.billed_s if view is not None else None,
            )
        )

    async def _find_ref(self, run: Run) -> str | None:
        """The ref of a run whose acceptance was never recorded, recorded now; None if there is no run."""
        found = await self._provider.find(self._tag)
        if found is None or _is_stale(found, run):
            return None
        await self._accepted(found.ref)
        return found.ref

    async def _read(self, view: RunView | None) -> Observation | None:
        """What a view means; None for a word we do not know: it is written down, and the last known state stays."""
        if view is None:
            return NeverStarted()
        status = read_word(self._provider.name, view.word)
        match status:
            case UnknownWord():
                self._log.error("bridge.word.unknown", word=status.word, ref=view.ref)
                metrics.unknown_words.add(1, {"provider": self._provider.name})
                await self._append(RecordWord(epoch=self._tag.epoch, at=self._clock(), word=status.word))
                return None
            case RunStatus.QUEUED | RunStatus.RUNNING:
                return StillRunning()
            case RunStatus.ENDED:
                return _exited(view) or Gone(
                    message="The run ended and its exit code was not kept.", ended_at=view.ended_at
                )
            case RunStatus.GONE:
                return Gone(
                    message="The trainer's process is gone and left no exit code: "
                    "the machine or its runner was killed.",
                    ended_at=view.ended_at,
                )

    async def _accepted(self, ref: str) -> None:
        await self._append(RecordAccepted(epoch=self._tag.epoch, at=self._clock(), provider_ref=ref))

    async def _cancel(self) -> None:
        """Ends the attempt without waiting for the scheduler's word, which is on its way."""
        self._log.info("bridge.start.forgone")
        await self._note(await self._leases.cancel(self._tag.attempt_id, self._tag.epoch, "the job was cancelled"))

    async def _refused(self, message: str, advice: str | None, *, kind: str = StartRefused.kind) -> None:
        self._log.warning("bridge.start.refused", kind=kind, reason=message)
        refused = RecordStartRefused(epoch=self._tag.epoch, at=self._clock(), kind=kind, message=message, advice=advice)
        await self._append(refused)

    async def _observed(self, seen: Observation) -> None:
        await self._append(
            RecordObserved(
                epoch=self._tag.epoch,
                at=self._clock(),
                observation=seen,
                report_grace_s=self._options.report_grace_s,
            )
        )

    async def _append(self, command: FencedCommand) -> None:
        await self._note(await self._leases.append(self._tag.attempt_id, command))

    async def _note(self, state: AttemptState) -> None:
        if isinstance(state, Ended) and not state.owes_release:
            self._log.info("bridge.attempt.ended", outcome=state.outcome)
            await self._leases.drop(self._tag.attempt_id)


def _is_stale(found: RunView, run: Run) -> bool:
    """Whether the run comes from an intent that a newer one has replaced: its trainer is refused everywhere."""
    return found.epoch is not None and found.epoch < run.intent_epoch


def _exited(view: RunView) -> Exited | None:
    if view.exit_code is None or view.ended_at is None:
        return None
    return Exited(code=view.exit_code, ended_at=view.ended_at, last_words=view.last_words)
