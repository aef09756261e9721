"""What people and workers ask about workers: decide, commit, wake whoever waits, answer."""

import hashlib
import hmac
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from services.provider_bridge.domain.worker import Unknown, Worker, is_of
from services.provider_bridge.domain.worker_acts import (
    Begin,
    Create,
    Drain,
    Heard,
    Register,
    Release,
    Remove,
    Resume,
    RotateToken,
    WorkerAct,
)
from services.provider_bridge.outbound.worker_store import Done, Presence, WorkerStore
from services.provider_bridge.queries import WORKER_QUERIES as SQL
from shared.contracts.envelope import CommandEnvelope, CommandReply
from shared.contracts.run import ExitCode
from shared.contracts.worker import (
    PING_S,
    BeatWorker,
    CreateWorker,
    DrainWorker,
    ReadWorkerOrders,
    ReadWorkers,
    RegisterWorker,
    RemoveWorker,
    ReportWorkerJob,
    ResumeWorker,
    RotateWorkerToken,
    WorkerCancel,
    WorkerItem,
    WorkerJob,
    WorkerOrders,
)
from shared.decider import metadata
from shared.problems import Rejected

STREAM_SEEN_S = 2 * PING_S
"""A stream that did not ask for so long is closed."""
_NOBODY = hashlib.sha256(b"nobody's").hexdigest()
_MICRO = 1_000_000
_EXITS = {"completed": ExitCode.DONE, "cancelled": ExitCode.PREEMPTED, "failed": ExitCode.INTERNAL}
"""What a worker's word means where it gives no exit code."""
_LAST_WORDS_CHARS = 800
FromWorker = RegisterWorker | BeatWorker | ReportWorkerJob | ReadWorkerOrders


class WorkerHandlers:
    """Answers after the commit. `nudge(attempt_id)` makes the bridge look at an attempt at once."""

    def __init__(self, store: WorkerStore, nudge: Callable[[UUID], None]) -> None:
        self._store = store
        self._nudge = nudge

    # ---- people ------------------------------------------------------------------------------------------------------

    async def create(self, command: CreateWorker, envelope: CommandEnvelope) -> CommandReply:
        """Makes a worker."""
        create = Create(
            name=command.name,
            worker_type=command.worker_type,
            labels=command.labels,
            token_sha256=command.token_sha256,
            price_micro_usd_per_hour=command.price_micro_usd_per_hour,
            at=self._store.clock(),
        )
        return await self._administer(command.worker_id, create, envelope)

    async def rotate(self, command: RotateWorkerToken, envelope: CommandEnvelope) -> CommandReply:
        """The old token is refused from here on."""
        rotate = RotateToken(token_sha256=command.token_sha256, at=self._store.clock())
        return await self._administer(command.worker_id, rotate, envelope)

    async def drain(self, command: DrainWorker, envelope: CommandEnvelope) -> CommandReply:
        """No more runs."""
        return await self._administer(command.worker_id, Drain(at=self._store.clock()), envelope)

    async def resume(self, command: ResumeWorker, envelope: CommandEnvelope) -> CommandReply:
        """Runs again."""
        return await self._administer(command.worker_id, Resume(at=self._store.clock()), envelope)

    async def remove(self, command: RemoveWorker, envelope: CommandEnvelope) -> CommandReply:
        """Forgets a worker; a run of its that is given up by it is seen to be gone at once."""
        return await self._administer(command.worker_id, Remove(force=command.force, at=self._store.clock()), envelope)

    async def read(self, command: ReadWorkers, _envelope: CommandEnvelope) -> CommandReply:
        """Every worker, or those of one status."""
        now = self._store.clock()
        items: list[WorkerItem] = []
        for presence in await self._store.present():
            state = await self._store.load(presence.worker_id)
            if isinstance(state, Worker) and command.status in {None, state.status}:
                items.append(_item(presence, state, now))
        return CommandReply(data={"workers": msgspec.to_builtins(items)})

    async def _administer(self, worker_id: UUID, act: WorkerAct, envelope: CommandEnvelope) -> CommandReply:
        done = await self._store.commit(worker_id, act, meta=metadata(envelope))
        self._tell(done)
        return CommandReply(position=done.position)

    # ---- workers -----------------------------------------------------------------------------------------------------

    async def register(self, command: RegisterWorker, envelope: CommandEnvelope) -> CommandReply:
        """Says whether the run that the worker has is still its own. A begun run that it has not is lost."""
        await self._admit(command)
        now = self._store.clock()
        register = Register(
            name=command.name,
            gpu_info=command.gpu_info,
            labels=command.labels,
            provider=command.provider,
            has_job=command.current_job_id,
            has_attempt=command.current_attempt_id,
            at=now,
        )
        await self._store.rows(SQL.hear_worker, command.worker_id, now, None)
        await self._store.rows(SQL.connect_worker, command.worker_id, now)
        done = await self._store.commit(command.worker_id, register, meta=_from_worker(command, envelope))
        self._tell(done)
        state = done.state
        has = command.current_job_id
        run = state.run if isinstance(state, Worker) else None
        if has is None or run is None or not is_of(run, has, command.current_attempt_id):
            return CommandReply(position=done.position, data={"resume_job": None, "abandon_job": has})
        resumed = msgspec.to_builtins(await self._job(run.attempt_id))
        return CommandReply(position=done.position, data={"resume_job": resumed, "abandon_job": None})

    async def beat(self, command: BeatWorker, envelope: CommandEnvelope) -> CommandReply:
        """Notes that it lives; only a change is an event."""
        state = await self._admit(command)
        said = msgspec.json.encode(
            {
                "status": command.status,
                "job_progress": command.job_progress,
                "gpu_utilization": command.gpu_utilization,
                "vram_used_gb": command.vram_used_gb,
            }
        ).decode()
        await self._hear(command, envelope, state, said)
        has = command.current_job_id
        own = state.run is not None and is_of(state.run, has, command.current_attempt_id)
        return CommandReply(data={"abandon_job": None if own else has})

    async def report(self, command: ReportWorkerJob, envelope: CommandEnvelope) -> CommandReply:
        """Records that the run was begun, or how it ended. A repeat changes nothing."""
        state = await self._admit(command)
        await self._hear(command, envelope, state)
        run = state.run
        if run is None or not is_of(run, str(command.job_id), command.attempt_id):
            await self._require_was_own(command)
            return CommandReply()
        now = self._store.clock()
        match command.status:
            case "starting":
                return CommandReply()
            case "running":
                act: WorkerAct = Begin(attempt_id=run.attempt_id, at=now)
            case "completed" | "failed" | "cancelled":
                code = _EXITS[command.status] if command.exit_code is None else command.exit_code
                act = Release(
                    attempt_id=run.attempt_id,
                    outcome="exited",
                    exit_code=int(code),
                    ended_at=now - timedelta(seconds=max(0.0, min(command.ended_s_ago, 1e7))),
                    last_words=(command.error or "")[-_LAST_WORDS_CHARS:],
                    at=now,
                )
        done = await self._store.commit(command.worker_id, act, meta=_from_worker(command, envelope))
        self._tell(done)
        return CommandReply(position=done.position)

    async def orders(self, command: ReadWorkerOrders, _envelope: CommandEnvelope) -> CommandReply:
        """All that the worker is to know. From the first answer with a run on, the run is in the worker's hands.

        Raises `worker_not_found` for one that was removed, so that it can be told to end.
        """
        state = await self._admit(command, or_removed=True)
        await self._store.rows(SQL.see_stream, command.worker_id, self._store.clock())
        run = state.run
        submit = cancel = None
        if run is not None and run.cancel_grace_s is not None:
            cancel = WorkerCancel(job_id=str(run.job_id), attempt_id=str(run.attempt_id), grace_s=run.cancel_grace_s)
        elif run is not None and not run.begun:
            submit = await self._job(run.attempt_id)
        orders = WorkerOrders(
            submit=submit,
            cancel=cancel,
            drain=state.draining,
            shutdown=run is None and (state.draining or state.is_spent),
        )
        return CommandReply(data=msgspec.to_builtins(orders))

    async def _admit(self, command: FromWorker, *, or_removed: bool = False) -> Worker:
        """The worker whose present token this is. Raises `invalid_token`; compared in constant time."""
        state = await self._store.load(command.worker_id)
        known = state.token_sha256 if isinstance(state, Worker) else _NOBODY
        is_right = hmac.compare_digest(known.encode(), command.token_sha256.encode())
        if isinstance(state, Worker) and is_right:
            return state
        if or_removed and not isinstance(state, Worker | Unknown):
            raise Rejected("worker_not_found", "this worker was removed")
        raise Rejected("invalid_token", "this is no worker's present token")

    async def _hear(
        self, command: FromWorker, envelope: CommandEnvelope, state: Worker, said: str | None = None
    ) -> None:
        now = self._store.clock()
        await self._store.rows(SQL.hear_worker, command.worker_id, now, said)
        if not state.online:
            await self._store.commit(command.worker_id, Heard(at=now), meta=_from_worker(command, envelope))

    async def _job(self, attempt_id: UUID) -> WorkerJob | None:
        row = await self._store.row(SQL.take_run, attempt_id, self._store.clock())
        if row is None:  # it ended in between
            return None
        return WorkerJob(
            job_id=str(row["job_id"]),
            attempt_id=str(attempt_id),
            epoch=row["epoch"],
            run_spec=msgspec.json.decode(row["spec"]),
            token=self._store.unsealed(row["token"], attempt_id) if row["token"] else "",
            max_run_s=row["max_run_s"],
        )

    async def _require_was_own(self, command: ReportWorkerJob) -> None:
        """Returns if the run was this worker's and is over. Raises `job_not_found` or `not_assigned`."""
        row = await self._store.row(SQL.run_of_job, command.job_id, command.worker_id)
        if row is None:
            raise Rejected("job_not_found", "no worker was given such a job", job_id=str(command.job_id))
        was_own = row["worker_id"] == command.worker_id and row["word"] == "ended"
        if not was_own or (command.attempt_id is not None and row["attempt_id"] != command.attempt_id):
            raise Rejected("not_assigned", "this job is not this worker's; end its run", job_id=str(command.job_id))

    def _tell(self, done: Done) -> None:
        for attempt_id in done.released:
            self._nudge(attempt_id)


def _from_worker(command: FromWorker, envelope: CommandEnvelope) -> Any:
    return msgspec.structs.replace(metadata(envelope), actor=f"worker:{command.worker_id}")


def _item(presence: Presence, state: Worker, now: datetime) -> WorkerItem:
    seen = presence.stream_at is not None and now - presence.stream_at < timedelta(seconds=STREAM_SEEN_S)
    up = presence.connected_at if state.online else None
    told = state.registered
    return WorkerItem(
        worker_id=str(presence.worker_id),
        name=state.name,
        worker_type=state.worker_type,
        status=state.status,
        gpu_info=told.gpu_info if told else {},
        provider=told.provider if told else None,
        labels=state.labels,
        current_job_id=str(state.run.job_id) if state.run else None,
        last_heartbeat=presence.heard_at,
        connected_at=presence.connected_at,
        created_at=state.created_at,
        connected=state.online and seen,
        uptime_seconds=(now - up).total_seconds() if up else None,
        price_usd_per_hour=state.price_micro_usd_per_hour / _MICRO,
        last_report=msgspec.json.decode(presence.said) if presence.said else None,
    )
