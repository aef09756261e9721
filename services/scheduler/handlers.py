"""Commands on jobs, and the process that carries each job from fact to fact. Coordinates only; `domain/` decides."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import assert_never
from uuid import UUID

from services.scheduler.domain import job_process
from services.scheduler.domain.job import decide, phase_word
from services.scheduler.domain.job_commands import Cancel, Delete, JobCommand, Submit
from services.scheduler.domain.job_process import RETRY_LATER, Ask, Keep, Story
from services.scheduler.domain.job_state import Absent, Job, evolve
from services.scheduler.domain.placement import Market
from shared.clock import Clock
from shared.contracts import catalogue
from shared.contracts.envelope import CommandEnvelope, CommandReply, EventMetadata, RecordedEvent
from shared.contracts.job import CancelJob, DeleteJob, JobDispatched, JobSubmitted, SubmitJob
from shared.decider import Decider, Decision, execute, metadata
from shared.eventstore.api import EventStore
from shared.ids import derived_id
from shared.messaging.commands import CommandSender
from shared.problems import Rejected, Unavailable

JOB: Decider[Job, JobCommand] = Decider(initial=Absent(), evolve=evolve, decide=decide)
ACTOR = "system:scheduler"
FIRST_PRICES_WITHIN = timedelta(seconds=10)
"""Counted from the submission: jobs wait for prices at the same time, and hold up the money of others no longer."""


def job_stream(job_id: UUID) -> str:
    """The stream that a job's events stand on."""
    return f"job-{job_id}"


class JobHandlers:
    """Answers the commands that people send about their jobs."""

    def __init__(self, store: EventStore, clock: Clock, providers: tuple[str, ...]) -> None:
        self._store = store
        self._clock = clock
        self._providers = providers

    async def submit(self, command: SubmitJob, envelope: CommandEnvelope) -> CommandReply:
        """Records the job. Answers `{"job_id", "status"}`, the same for every repeat."""
        order = Submit(order=command, providers=self._providers, at=self._clock())
        done = await self._execute(command.job_id, order, envelope, expects_new=True)
        status = "uploading" if not isinstance(done.state, Absent) and done.state.order.has_datasets else "pending"
        return CommandReply(position=done.position, data={"job_id": str(command.job_id), "status": status})

    async def cancel(self, command: CancelJob, envelope: CommandEnvelope) -> CommandReply:
        """Cancels, or begins to. Answers `{"phase": "cancelled" | "cancelling"}`."""
        done = await self._execute(command.job_id, Cancel(reason=command.reason, at=self._clock()), envelope)
        return CommandReply(position=done.position, data={"phase": phase_word(done.state)})

    async def delete(self, command: DeleteJob, envelope: CommandEnvelope) -> CommandReply:
        """Hides a job that has ended."""
        done = await self._execute(command.job_id, Delete(at=self._clock()), envelope)
        return CommandReply(position=done.position)

    async def _execute(
        self, job_id: UUID, command: JobCommand, envelope: CommandEnvelope, *, expects_new: bool = False
    ) -> Decision[Job]:
        return await execute(
            self._store,
            JOB,
            job_stream(job_id),
            command,
            meta=metadata(envelope),
            correlation_id=job_id,
            expects_new=expects_new,
        )


class JobProcess:
    """Turns each fact of a job's story into what must follow. An event may be handled any number of times.

    Each owner that is asked has a durable of its own, so one that is away holds up only what needs it.
    """

    def __init__(
        self, store: EventStore, sender: CommandSender, clock: Clock, market: Callable[[], Awaitable[Market]]
    ) -> None:
        self._store = store
        self._sender = sender
        self._clock = clock
        self._market = market

    @staticmethod
    def wants(recorded: RecordedEvent, owner: str | None) -> bool:
        """Whether the event may lead to anything for `owner`: its type says so, and an older type has to be read."""
        kind = catalogue.EVENT_TYPES.get(recorded.type)
        return kind is None or kind in job_process.LEADS_ON[owner]

    async def react(self, recorded: RecordedEvent, owner: str | None) -> None:
        """Sends what `owner` is asked because of one event; with None records it on the job's own stream.

        Raises:
            Unavailable: the owner does not answer now; nothing is lost by handling the event again.
            Rejected: the owner met a bug, or refused what has no business answer; a person must look.
        """
        event = catalogue.decode(recorded)
        if event is None:
            return
        job_id = recorded.correlation_id
        story = await self._story(job_id, recorded.global_position)
        if story.submitted is None:
            return
        stream_id = UUID(recorded.stream.partition("-")[2])
        chooses = isinstance(event, JobSubmitted | JobDispatched) and job_process.is_placed_by_us(story.submitted)
        market = await self._market() if chooses else Market()
        if isinstance(event, JobSubmitted) and chooses and not story.over:
            self._wait_for_prices(event, market, recorded.recorded_at)
        at = recorded.recorded_at
        following = job_process.react(job_id, story, event, stream_id=stream_id, at=at, market=market)
        for outgoing in job_process.share(following, owner):
            match outgoing:
                case Keep():
                    await self._keep(recorded, outgoing)
                case Ask():
                    await self._ask(recorded, outgoing)
                case _:
                    assert_never(outgoing)

    def _wait_for_prices(self, event: JobSubmitted, market: Market, at: datetime) -> None:
        """A job may be faster than its provider's first prices. Raises Unavailable while they may still come."""
        if not job_process.is_priced(event, market) and self._clock() < at + FIRST_PRICES_WITHIN:
            raise Unavailable(f"{event.provider} has not said yet what it costs")

    async def _story(self, job_id: UUID, position: int) -> Story:
        history = await self._store.read_stream(job_stream(job_id))
        known = [(one.global_position, event) for one in history if (event := catalogue.decode(one)) is not None]
        since = [event for place, event in known if place > position]
        return job_process.told((event for place, event in known if place <= position), since)

    async def _keep(self, cause: RecordedEvent, keep: Keep) -> None:
        meta = EventMetadata(actor=ACTOR, causation_id=cause.event_id, traceparent=cause.meta.traceparent)
        job_id = cause.correlation_id
        try:
            await execute(self._store, JOB, job_stream(job_id), keep.command, meta=meta, correlation_id=job_id)
        except Rejected as refusal:
            if refusal.code == "version_conflict":
                raise Unavailable(refusal.detail) from refusal
            raise

    async def _ask(self, cause: RecordedEvent, ask: Ask) -> None:
        """Sends one command and keeps what follows from its answer, a refusal included."""
        try:
            reply = await self._sender.send(
                ask.owner,
                ask.command,
                correlation_id=cause.correlation_id,
                causation_id=cause.event_id,
                actor=ACTOR,
                command_id=derived_id(cause.event_id, ask.purpose),
            )
        except Rejected as refusal:
            if refusal.code in RETRY_LATER:
                raise Unavailable(f"{ask.owner} could not {ask.purpose}: {refusal.detail}") from refusal
            consequence = job_process.refused(ask, refusal.code, refusal.detail, self._clock())
            if consequence is None:
                raise
            await self._keep(cause, consequence)
            return
        for consequence in job_process.answered(ask, reply.data, self._clock()):
            await self._keep(cause, consequence)
