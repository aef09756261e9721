"""What an attempt hands to the trainer (`RunSpec`) and what the trainer reports back (`ReportLine`).

Read by provider-bridge, gateway, storage and the trainer. The wire form is JSON; every struct ignores unknown
members, so either side may be one version ahead.
"""

from datetime import datetime
from enum import IntEnum
from typing import Any, Literal

import msgspec

REPORT_VERSION = 1
MAX_BATCH_LINES = 256
MAX_BATCH_BYTES = 512 * 1024
"""A report batch: at most 256 lines and 512 KiB; the server answers 413 above that."""


class ExitCode(IntEnum):
    """How a trainer process ends (docs/trainer-contract.md). 128 + n, 137 above all, means killed by signal n."""

    DONE = 0
    BAD_CONFIG = 64
    BAD_DATA = 65
    UNREACHABLE = 69
    INTERNAL = 70
    DISK_FULL = 73
    GPU_FAULT = 74
    PREEMPTED = 75
    OUT_OF_MEMORY = 76
    SUPERSEDED = 77
    NAN_LOSS = 78


FailureKind = Literal[
    "bad_config",
    "bad_data",
    "unreachable",
    "internal",
    "out_of_memory",
    "nan_loss",
    "disk_full",
    "gpu_fault",
    "preempted",
]
"""Why an attempt ended without a model, in its `failed` line and in the log."""

EXIT_CODES: dict[FailureKind, ExitCode] = {
    "bad_config": ExitCode.BAD_CONFIG,
    "bad_data": ExitCode.BAD_DATA,
    "unreachable": ExitCode.UNREACHABLE,
    "internal": ExitCode.INTERNAL,
    "out_of_memory": ExitCode.OUT_OF_MEMORY,
    "nan_loss": ExitCode.NAN_LOSS,
    "disk_full": ExitCode.DISK_FULL,
    "gpu_fault": ExitCode.GPU_FAULT,
    "preempted": ExitCode.PREEMPTED,
}
"""The code says the same as the report: it is all that is left when the report never arrives."""

GpuFaultKind = Literal["ecc", "thermal", "power_brake", "cuda_error", "fallen_off_bus", "xid"]
"""What can be wrong with a GPU; running out of its memory is none of them."""


class FileRef(msgspec.Struct, frozen=True, kw_only=True):
    """One file to fetch: `url` is relative to the gateway and takes the attempt token as bearer."""

    name: str
    sha256: str
    size_bytes: int
    url: str


class DatasetRef(msgspec.Struct, frozen=True, kw_only=True):
    """A packed dataset (uncompressed tar) that stands for the dataloader entry with the same `id`."""

    id: str
    sha256: str
    size_bytes: int
    url: str


class ResumePoint(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint to go on from: all files of one `checkpoint-N` folder."""

    step: int
    files: list[FileRef]


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a trainer needs to run one attempt, except its token, which travels apart (file or environment).

    `config` is the submitted `--key` dict, `dataloader` the submitted multidatabackend list. `gateway_url` is the
    origin (`http://127.0.0.1:8001`); None means run alone and keep the reports in the spool.
    """

    v: int = 1
    job_id: str
    attempt_id: str
    attempt_number: int
    gateway_url: str | None
    config: dict[str, Any]
    dataloader: list[dict[str, Any]]
    datasets: list[DatasetRef] = []
    resume: ResumePoint | None = None
    output_bucket: str = "outputs"
    output_prefix: str
    """Objects are put to `/api/cloud/storage/{output_bucket}/{output_prefix}/{name}`."""


ReportType = Literal[
    "hello",  # {trainer_version, torch_version, device, ignored_keys: [str], config: {...}} once, first
    "phase",  # {phase: preparing|caching|training|validating|saving|uploading, detail?}
    "log",  # {level, message}
    "metrics",  # {step, total_steps, epoch, loss, lr, grad_norm, step_s, eta_s, memory_bytes, ...}
    "sample",  # {step, prompt, seed, object_key, sha256, size_bytes}
    "prediction",  # {epoch, step, sample_id, prompt, generated, reference, bleu_score, rouge_score}
    "checkpoint",  # {step, files: [{name, sha256, size_bytes, object_key}]} after its upload
    "artifact",  # {name, object_key, sha256, size_bytes, content_type}
    "delivery",  # {target, what: results|checkpoint-N, status: delivered|failed, url?, message?, files: [name]}
    "warning",  # {code, message}
    "gpu_fault",  # {kind: GpuFaultKind, gpu, detail, step}
    "command",  # {id, name, outcome: done|too_late|unknown, step} once for each command
    "heartbeat",  # {step}
    "done",  # {steps, final_loss, artifacts: [{name, object_key, sha256, size_bytes}], undelivered: [name]}
    "failed",  # {kind: FailureKind, message, advice}
]
"""docs/trainer-contract.md has every member, with its unit."""


class ReportLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the trainer's numbered spool. `seq` starts at 1 in each attempt and has no gaps."""

    v: int = REPORT_VERSION
    job: str
    attempt: str
    seq: int
    ts: datetime
    type: str
    data: dict[str, Any]


class TrainerCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A request that rides back on an acknowledgement."""

    id: str
    name: str
    """stop, checkpoint_now or sample_now. A trainer reports a `command` line once it has carried one out."""


class ReportAck(msgspec.Struct, frozen=True, kw_only=True):
    """The server has every line up to `ack`; resends below it are harmless."""

    ack: int
    commands: list[TrainerCommand] = []
