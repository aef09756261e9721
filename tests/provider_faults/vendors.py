"""The vendors that seeds are played against: each contract case on its simulator, by the seed's clock."""

from collections.abc import Callable
from dataclasses import dataclass, field

from services.provider_bridge.outbound.ports import Provider
from tests.contract.providers.case import Case
from tests.contract.providers.hf_spaces import SpacesCase
from tests.contract.providers.hugging_face import HuggingFaceCase
from tests.contract.providers.kaggle import KaggleCase
from tests.contract.providers.machines import LambdaCase, RunPodCase
from tests.contract.providers.replicate import ReplicateCase
from tests.contract.providers.runpod_serverless import RunPodServerlessCase
from tests.simulators.faults import Bill, Moment, Simulator
from tests.simulators.hugging_face import HuggingFace
from tests.simulators.kaggle import Kaggle
from tests.simulators.lambda_cloud import LambdaCloud
from tests.simulators.replicate import Replicate
from tests.simulators.runpod_pods import RunPodPods
from tests.simulators.runpod_queue import RunPodQueue


@dataclass
class Vendor:
    """A simulator that runs, and the case that moves its runs."""

    simulator: Simulator
    bill: Bill
    case: Case
    connected: list[Provider] = field(default_factory=list[Provider])

    def connect(self, installation: str) -> Provider:
        """A new client, as a restarted bridge makes it."""
        self.connected.append(self.case.connect(installation=installation))
        return self.connected[-1]


def _pods(moment: Moment) -> Vendor:
    simulator = RunPodPods(moment)
    simulator.per_minute = None
    return Vendor(simulator, simulator.bill, RunPodCase(simulator))


def _lambda(moment: Moment) -> Vendor:
    simulator = LambdaCloud(moment)
    simulator.call_every_s = simulator.launch_every_s = None  # its clock stands still between steps
    return Vendor(simulator, simulator.bill, LambdaCase(simulator))


def _replicate(moment: Moment) -> Vendor:
    simulator = Replicate(moment)
    return Vendor(simulator, simulator.bill, ReplicateCase(simulator))


def _serverless(moment: Moment) -> Vendor:
    simulator = RunPodQueue(moment)
    return Vendor(simulator, simulator.bill, RunPodServerlessCase(simulator))


def _kaggle(moment: Moment) -> Vendor:
    simulator = Kaggle(moment)
    return Vendor(simulator, simulator.bill, KaggleCase(simulator))


def _jobs(moment: Moment) -> Vendor:
    simulator = HuggingFace(moment)
    return Vendor(simulator, simulator.bill, HuggingFaceCase(simulator))


def _spaces(moment: Moment) -> Vendor:
    simulator = HuggingFace(moment)
    return Vendor(simulator, simulator.bill, SpacesCase(simulator))


VENDORS: dict[str, Callable[[Moment], Vendor]] = {
    "runpod": _pods,
    "lambda": _lambda,
    "replicate": _replicate,
    "runpod_serverless": _serverless,
    "kaggle": _kaggle,
    "huggingface": _jobs,
    "hf_spaces": _spaces,
}
