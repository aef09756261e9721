"""A worker as a stream of the log: its name and its decider."""

from uuid import UUID

from services.provider_bridge.domain.worker import Unknown, WorkerState, decide, evolve
from services.provider_bridge.domain.worker_acts import WorkerAct
from shared.decider import Decider

WORKER: Decider[WorkerState, WorkerAct] = Decider(initial=Unknown(), evolve=evolve, decide=decide)


def worker_stream(worker_id: UUID) -> str:
    """The stream that a worker's events stand on."""
    return f"worker-{worker_id}"
