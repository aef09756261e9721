"""The scheduler put together: the only file that names concrete parts."""

from functools import partial

from services.scheduler.dispatcher import Dispatcher
from services.scheduler.handlers import JobHandlers, JobProcess
from services.scheduler.history import PastQueues, Simulator
from services.scheduler.inbound.subscriptions import commands, subscriptions
from services.scheduler.inbound.timers import DispatchLoop
from services.scheduler.projections import market, queue
from services.scheduler.settings import Settings
from shared.contracts.job import ReadQueue
from shared.contracts.subjects import SCHEDULER_MARKET, SCHEDULER_QUEUE
from shared.contracts.whatif import SimulatePolicy
from shared.messaging.consumer import Subscription
from shared.projection import Projection
from shared.service import Runtime, ServiceParts


async def build(runtime: Runtime, settings: Settings) -> ServiceParts:
    """Commands, the job process, the queue and its dispatcher."""
    dispatcher = Dispatcher(runtime.pool, runtime.store, runtime.clock, settings.limits)
    jobs = JobHandlers(runtime.store, runtime.clock, settings.providers)
    process = JobProcess(runtime.store, runtime.sender, runtime.clock, partial(market.read_market, runtime.pool))
    queues = PastQueues(runtime.pool, dispatcher.read_queue)
    simulator = Simulator(runtime.store, runtime.sender, settings.limits)
    return ServiceParts(
        commands={
            **commands(jobs, dispatcher),
            ReadQueue: queues.read_queue,
            SimulatePolicy: simulator.simulate,
        },
        subscriptions=[*subscriptions(process), Subscription(durable=SCHEDULER_MARKET, project=market.project)],
        projections=[
            Projection(name="queue", tables=("jobs",), durable=SCHEDULER_QUEUE, project=queue.project),
            Projection(name="market", tables=market.TABLES, durable=SCHEDULER_MARKET, project=market.project),
        ],
        loops=[DispatchLoop(dispatcher, runtime.store, runtime.clock).run],
    )
