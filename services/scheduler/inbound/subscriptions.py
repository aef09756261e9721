"""Which commands and events the scheduler listens to, and who handles each."""

from collections.abc import Mapping

from services.scheduler.dispatcher import Dispatcher
from services.scheduler.handlers import JobHandlers, JobProcess
from shared.contracts.job import CancelJob, Command, DeleteJob, ReadQueue, SubmitJob
from shared.contracts.subjects import SCHEDULER_JOB_PROCESS
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


def subscriptions(process: JobProcess) -> list[Subscription]:
    """The one durable of this service: the process that drives jobs."""
    return [Subscription(durable=SCHEDULER_JOB_PROCESS, react=process.react)]
