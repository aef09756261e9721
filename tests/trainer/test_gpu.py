"""What a GPU says, through the real binding and a driver library that says what a test wants; and what is a fault."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from attempts import AttemptStarter
from receiver import Receiver

from shared.contracts.run import ExitCode
from trainer import gpu_watch
from trainer.control import Control
from trainer.diffusion import task as diffusion_task
from trainer.entry import session
from trainer.failures import AttemptFailed
from trainer.gpu import GpuFault, GpuLost, GpuRules, GpuSample, Slowdown, fault_in
from trainer.gpu_watch import watching
from trainer.nvml import NvmlDevice, open_device
from trainer.report.events import Redactor, Reporter
from trainer.report.spool import Spool

UUID = "GPU-0d3c1f5e-0000-1111-2222-333344445555"
HEALTHY = {
    "init": 0,
    "utilisation": 97,
    "memory_used": 3 << 30,
    "power": 312_500,
    "temperature": 71,
    "uncorrected": 2,
    "reasons": 0,
}
HOT, BRAKED, IDLE = 0x40, 0x80, 0x1
SAMPLE = GpuSample(50, 70, 100.0, 1, 2, 0, frozenset(), ())

Say = Callable[..., None]


@pytest.fixture
def driver(fake_nvml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Says what the driver says from now on; without a value it is healthy."""
    state = tmp_path / "nvml-state"
    monkeypatch.setenv("FAKE_NVML_STATE", str(state))
    assert fake_nvml.exists()

    def say(**changes: int) -> None:
        text = "".join(f"{name} {value}\n" for name, value in (HEALTHY | changes).items())
        scratch = state.with_suffix(".new")
        scratch.write_text(text)
        scratch.replace(state)

    say()
    return say


@pytest.fixture
def device(driver: Say) -> NvmlDevice:
    driver()
    found = open_device(UUID)
    assert found is not None
    return found


@pytest.fixture
def reporter(tmp_path: Path) -> Iterator[Reporter]:
    spool = Spool(tmp_path / "work", "job-1", "attempt-1")
    yield Reporter(spool, Redactor())
    spool.close()


def watched(device: NvmlDevice | None, reporter: Reporter, control: Control) -> AbstractContextManager[None]:
    return watching(device, "Tiny " + UUID, reporter, control, interval_s=0.01, hang_s=0.05)


def wait_for(condition: Callable[[], bool]) -> None:
    ticks, end = threading.Event(), 60 / 0.01
    while not condition():
        end -= 1
        assert end > 0, "the condition was not met in time"
        ticks.wait(0.01)


# ---- the binding -----------------------------------------------------------------------------------------------------


def test_a_healthy_gpu_gives_every_number_of_a_metrics_line(device: NvmlDevice) -> None:
    assert device.sample().numbers() == {
        "gpu_utilisation_percent": 97,
        "gpu_temperature_c": 71,
        "gpu_power_w": 312.5,
        "gpu_memory_used_bytes": 3 << 30,
        "gpu_memory_total_bytes": 24 << 30,
    }


def test_what_the_driver_does_not_say_is_left_out(device: NvmlDevice, driver: Say) -> None:
    driver(power=-3, utilisation=-999, uncorrected=-3, reasons=-3)
    sample = device.sample()
    assert set(sample.numbers()) == {"gpu_temperature_c", "gpu_memory_used_bytes", "gpu_memory_total_bytes"}
    assert (sample.uncorrected_errors, sample.slowdowns) == (None, frozenset())


@pytest.mark.parametrize("code", [15, 16])
def test_a_gpu_that_is_lost_or_needs_a_reset_says_so(device: NvmlDevice, driver: Say, code: int) -> None:
    driver(temperature=-code)
    with pytest.raises(GpuLost):
        device.sample()


def test_without_a_driver_or_such_a_gpu_there_is_no_device(driver: Say) -> None:
    assert open_device("MIG-1") is None
    driver(init=-9)
    assert open_device(UUID) is None


def test_slowdowns_and_xids_are_read_once(device: NvmlDevice, driver: Say) -> None:
    driver(reasons=HOT | BRAKED | IDLE, xid=79)
    sample = device.sample()
    assert sample.slowdowns == {"thermal", "power_brake"}
    assert sample.xids == (79,)
    driver(reasons=IDLE, xid=79)
    assert (device.sample().slowdowns, device.sample().xids) == (frozenset(), ())


# ---- the rules -------------------------------------------------------------------------------------------------------


def judged(*samples: tuple[float, GpuSample]) -> GpuFault | None:
    rules = GpuRules("0", slowdown_s=300)
    fault = None
    for now_s, sample in samples:
        fault = fault or rules.judge(sample, now_s)
    return fault


def ecc(count: int | None) -> GpuSample:
    return GpuSample(50, 70, 100.0, 1, 2, count, frozenset(), ())


def slow(*names: Slowdown) -> GpuSample:
    return GpuSample(50, 97, 100.0, 1, 2, 0, frozenset(names), ())


def test_only_memory_errors_that_are_new_are_a_fault() -> None:
    assert judged((0, ecc(4)), (5, ecc(4)), (10, ecc(None))) is None
    fault = judged((0, ecc(4)), (5, ecc(6)))
    assert fault == GpuFault("ecc", "0", "2 new uncorrectable memory errors", can_save=False)


@pytest.mark.parametrize("name", ["thermal", "power_brake"])
def test_a_slowdown_is_a_fault_only_when_it_lasts(name: Slowdown) -> None:
    assert judged((0, slow(name)), (299, slow(name))) is None
    assert judged((0, slow(name)), (200, slow()), (301, slow(name)), (600, slow(name))) is None
    fault = judged((0, slow(name)), (150, slow(name)), (300, slow(name)))
    assert fault is not None
    assert (fault.kind, fault.can_save) == (name, True)


@pytest.mark.parametrize(("xid", "kind"), [(48, "ecc"), (79, "fallen_off_bus"), (119, "xid"), (13, None), (31, None)])
def test_xids_of_broken_hardware_are_faults_and_those_of_programs_are_not(xid: int, kind: str | None) -> None:
    fault = judged((0, GpuSample(50, 70, 100.0, 1, 2, 0, frozenset(), (xid,))))
    assert (fault.kind if fault else None) == kind


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("CUDA error: device-side assert triggered\nmore", "cuda_error"),
        ("CUDA error: an illegal memory access was encountered", "cuda_error"),
        ("CUDA error: unspecified launch failure", "cuda_error"),
        ("CUDA error: uncorrectable ECC error encountered", "ecc"),
        ("cuBLAS: CUBLAS_STATUS_EXECUTION_FAILED when calling gemm", "cuda_error"),
        ("CUDA out of memory. Tried to allocate 2 GiB", None),
        ("CUDA error: out of memory", None),
        ("shapes differ", None),
    ],
)
def test_errors_of_cuda_are_told_from_those_of_programs_and_memory(message: str, kind: str | None) -> None:
    told = fault_in(RuntimeError(message))
    assert (told[0] if told else None) == kind
    wrapped = RuntimeError("the step failed")
    wrapped.__cause__ = RuntimeError(message)
    told = fault_in(wrapped)
    assert (told[0] if told else None) == kind
    wrapped.__cause__ = wrapped
    assert fault_in(wrapped) is None
    if told:
        assert told[1] == message.partition("\n")[0]


# ---- the watcher -----------------------------------------------------------------------------------------------------


def lines(reporter: Reporter) -> list[tuple[str, dict[str, Any]]]:
    found = [msgspec.json.decode(line) for line in reporter.spool.path.read_bytes().splitlines()]
    return [(line["type"], line["data"]) for line in found]


def test_metrics_carry_the_gpus_numbers_while_it_is_watched(device: NvmlDevice, reporter: Reporter) -> None:
    with watched(device, reporter, Control()):
        wait_for(lambda: bool(reporter.gpu_numbers()))
        reporter.metrics(step=1, loss=0.5)
    [(_, data)] = lines(reporter)
    assert (data["step"], data["gpu_temperature_c"], data["gpu_power_w"]) == (1, 71, 312.5)


def test_a_fault_is_reported_once_and_ends_the_attempt_at_the_next_step(
    device: NvmlDevice, reporter: Reporter, driver: Say
) -> None:
    control = Control()
    reporter.step = 7
    with watched(device, reporter, control):
        wait_for(lambda: bool(reporter.gpu_numbers()))
        assert control.ending("at step 7") is None
        driver(uncorrected=3)
        wait_for(lambda: control.gpu_fault is not None)
        ending = control.ending("at step 7")
    assert ending is not None
    assert (ending.failure.kind, ending.failure.exit_code, ending.saves) == ("gpu_fault", ExitCode.GPU_FAULT, False)
    [(type_, data)] = lines(reporter)
    assert type_ == "gpu_fault"
    assert data == {
        "kind": "ecc",
        "gpu": "Tiny " + UUID,
        "detail": "1 new uncorrectable memory errors",
        "step": 7,
    }


def test_errors_of_the_driver_end_nothing(device: NvmlDevice, reporter: Reporter, driver: Say) -> None:
    control = Control()
    with watched(device, reporter, control):
        driver(temperature=-999, utilisation=-999, power=-999, memory_used=-999, uncorrected=-999, reasons=-999)
        wait_for(lambda: reporter.gpu_numbers() == {})
        driver(temperature=60)
        wait_for(lambda: reporter.gpu_numbers().get("gpu_temperature_c") == 60)
    assert control.gpu_fault is None
    assert lines(reporter) == []


def test_a_step_that_never_comes_back_from_a_lost_gpu_is_given_up(
    device: NvmlDevice, reporter: Reporter, driver: Say
) -> None:
    control = Control()
    given_up: list[AttemptFailed] = []
    control.abandon = given_up.append
    with watched(device, reporter, control):
        driver(utilisation=-15)
        wait_for(lambda: bool(given_up))
    assert given_up[0].kind == "gpu_fault"
    assert "fallen_off_bus" in given_up[0].message


def test_an_error_of_cuda_becomes_a_fault_and_any_other_stays_what_it_is(reporter: Reporter) -> None:
    control = Control()
    with pytest.raises(ValueError, match="of the program"), watched(None, reporter, control):
        raise ValueError("of the program")
    with pytest.raises(RuntimeError, match="shapes differ"), watched(None, reporter, control):
        raise RuntimeError("shapes differ")
    assert lines(reporter) == []
    with pytest.raises(AttemptFailed) as failed, watched(None, reporter, control):
        raise RuntimeError("CUDA error: device-side assert triggered")
    assert failed.value.kind == "gpu_fault"
    assert [type_ for type_, _ in lines(reporter)] == ["gpu_fault"]


# ---- whole attempts --------------------------------------------------------------------------------------------------


def test_an_attempt_whose_gpu_fails_exits_74_and_says_why(
    start: AttemptStarter, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_inputs: object) -> None:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")

    monkeypatch.setattr(diffusion_task, "training_losses", broken)
    attempt = start("ecc", gateway=receiver)
    assert attempt.run() == ExitCode.GPU_FAULT
    assert receiver.received.of_type("gpu_fault")[0]["kind"] == "ecc"
    failed = receiver.received.of_type("failed")[0]
    assert (failed["kind"], "checkpoint" in failed["advice"]) == ("gpu_fault", True)


def test_an_overheated_gpu_is_left_with_a_checkpoint_and_the_gpus_numbers_are_in_the_metrics(
    start: AttemptStarter, receiver: Receiver, device: NvmlDevice, driver: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot = threading.Event()

    def here(_device: object) -> tuple[NvmlDevice, str]:
        return device, "Tiny"

    def at_once(name: str) -> GpuRules:
        return GpuRules(name, slowdown_s=0)

    def often(watched: NvmlDevice, name: str, reporter: Reporter, control: Control) -> AbstractContextManager[None]:
        return watching(watched, name, reporter, control, interval_s=0.01)

    monkeypatch.setattr(session, "_gpu", here)
    monkeypatch.setattr(gpu_watch, "GpuRules", at_once)
    monkeypatch.setattr(session, "watching", often)

    def answer(batch: list[Any]) -> int:
        if any(line.type == "metrics" for line in batch) and not hot.is_set():
            hot.set()
            driver(reasons=HOT)
        return 200

    receiver.answer_reports = answer
    attempt = start("hot", gateway=receiver, max_train_steps=2000, checkpointing_steps=2000)
    assert attempt.run() == ExitCode.GPU_FAULT
    assert receiver.received.of_type("gpu_fault")[0]["kind"] == "thermal"
    assert receiver.received.of_type("metrics")[-1]["gpu_temperature_c"] == 71
    types = [name for name in receiver.received.types if name in {"gpu_fault", "checkpoint", "failed"}]
    assert types == ["gpu_fault", "checkpoint", "failed"]
