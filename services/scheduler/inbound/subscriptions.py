"""Which commands and events the scheduler listens to, and who handles each."""

from collections.abc import Mapping
from functools import partial

from services.scheduler.dispatcher import Dispatcher
from services.scheduler.domain.job_process import BILLING, BRIDGE, STORAGE
from services.scheduler.handlers import JobHandlers, JobProcess
from shared.contracts.job import CancelJob, Command, DeleteJob, ReadQueue, SubmitJob
from shared.contracts.subjects import (
    SCHEDULER_ASK_BILLING,
    SCHEDULER_ASK_BRIDGE,
    SCHEDULER_ASK_STORAGE,
    SCHEDULER_JOB_PROCESS,
    Durable,
)
from shared.messaging.commands import CommandHandler
from shared.messaging.consumer import Subscription


def commands(jobs: JobHandlers, dispatcher: Dispatcher) -> Mapping[type[Command], CommandHandler]:
    """Every command of `cmd.scheduler.>` but those that each service answers."""
    return {
        SubmitJob: jobs.submit,
        CancelJob: jobs.cancel,
        DeleteJob: jobs.delete,
        ReadQueue: dispatcher.read_queue,
    }


SHARES: Mapping[Durable, str | None] = {
    SCHEDULER_JOB_PROCESS: None,
    SCHEDULER_ASK_STORAGE: STORAGE,
    SCHEDULER_ASK_BILLING: BILLING,
    SCHEDULER_ASK_BRIDGE: BRIDGE,
}
"""Durable -> the owner it asks; None keeps on the job what happened elsewhere."""

AT_ONCE: Mapping[str | None, int] = {STORAGE: 16, BRIDGE: 16}
"""Owner -> for how many jobs it is asked at the same time. Money is asked for and kept in the log's order: who was
first to submit is first in the queue."""


def subscriptions(process: JobProcess) -> list[Subscription]:
    """The process that drives jobs, in four shares: a cancel does not wait behind a job that waits for storage."""
    return [
        Subscription(
            durable=durable,
            react=partial(process.react, owner=owner),
            wants=partial(process.wants, owner=owner),
            stories_at_once=AT_ONCE.get(owner, 1),
        )
        for durable, owner in SHARES.items()
    ]
