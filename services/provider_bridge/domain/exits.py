"""What a trainer's exit code means, in words a person can use."""

import re
import signal

import msgspec

from shared.contracts.run import ExitCode

_TOLD = re.compile(r"\bexit (-?[0-9]{1,3}) \(")
_SIGNAL_BASE = 128
"""A shell or container reports death by signal n as 128 + n."""


class ExitMeaning(msgspec.Struct, frozen=True, kw_only=True):
    """One way of failing: the stable kind, what happened, what to do."""

    kind: str
    message: str
    advice: str | None = None


_MEANINGS: dict[int, ExitMeaning] = {
    ExitCode.DONE: ExitMeaning(
        kind="internal",
        message="The trainer ended with exit code 0, but its report of success never arrived.",
        advice="Look at the trainer's log and work folder on the machine it ran on; the model may be complete there.",
    ),
    ExitCode.BAD_CONFIG: ExitMeaning(
        kind="bad_config",
        message="The trainer refused the training config.",
        advice="Correct the config and submit again.",
    ),
    ExitCode.BAD_DATA: ExitMeaning(
        kind="bad_data",
        message="The trainer could not use the datasets.",
        advice="Check the dataset's files and its dataloader entry.",
    ),
    ExitCode.UNREACHABLE: ExitMeaning(
        kind="unreachable",
        message="The trainer could not reach the base model, the datasets or the storage.",
        advice="Check the network and the model's name; gated models need HF_TOKEN.",
    ),
    ExitCode.INTERNAL: ExitMeaning(kind="internal", message="The trainer failed on an error of its own."),
    ExitCode.DISK_FULL: ExitMeaning(
        kind="disk_full",
        message="The disk of the trainer's machine is full.",
        advice="Free space, take a machine with a larger disk, or keep fewer checkpoints (checkpoints_total_limit).",
    ),
    ExitCode.GPU_FAULT: ExitMeaning(
        kind="gpu_fault",
        message="The GPU of the trainer's machine is faulty.",
        advice="The job goes on from its last checkpoint. If it happens again on one machine, have its GPU checked.",
    ),
    ExitCode.PREEMPTED: ExitMeaning(
        kind="preempted", message="The trainer was told to stop; it saved a checkpoint and ended."
    ),
    ExitCode.OUT_OF_MEMORY: ExitMeaning(
        kind="out_of_memory",
        message="The training does not fit into the machine's memory.",
        advice="Lower the resolution, the batch size or the rank, or choose larger hardware.",
    ),
    ExitCode.SUPERSEDED: ExitMeaning(
        kind="superseded", message="The trainer was told that another attempt has taken its place."
    ),
    ExitCode.NAN_LOSS: ExitMeaning(
        kind="nan_loss",
        message="The loss was no finite number for many steps in a row.",
        advice="Lower the learning rate, or look for damaged samples in the dataset.",
    ),
}


def _killed(number: int) -> ExitMeaning:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    advice = None
    if number == signal.SIGKILL:
        advice = "Nobody here asked for it: most often the machine ran out of memory, or was shut down."
    return ExitMeaning(kind="killed", message=f"The trainer was killed from outside by {name}.", advice=advice)


def meaning_of(code: int, last_words: str = "") -> ExitMeaning:
    """The failure an exit code stands for, negative codes being signals; `last_words` are quoted in the message."""
    known = _MEANINGS.get(code)
    if known is not None:
        found = known
    elif code < 0:
        found = _killed(-code)
    elif _SIGNAL_BASE < code < _SIGNAL_BASE + signal.NSIG:
        found = _killed(code - _SIGNAL_BASE)
    else:
        found = ExitMeaning(kind="internal", message=f"The trainer ended with exit code {code}, which has no meaning.")
    if not last_words:
        return found
    return msgspec.structs.replace(found, message=f"{found.message} Its last words: {last_words}")


def exit_code_in(sentence: str) -> int | None:
    """The code in the one sentence that a provider's entry ends with (`exit 64 (bad_config): …`); None if none."""
    found = _TOLD.search(sentence)
    return int(found[1]) if found else None
