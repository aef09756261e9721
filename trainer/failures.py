"""The ways an attempt can end without a model, each with its kind, its advice and its exit code."""

from typing import Literal

from shared.contracts.run import ExitCode

FailureKind = Literal[
    "bad_config", "bad_data", "unreachable", "internal", "out_of_memory", "nan_loss", "preempted"
]  # fmt: skip

_EXIT_CODES: dict[FailureKind, ExitCode] = {
    "bad_config": ExitCode.BAD_CONFIG,
    "bad_data": ExitCode.BAD_DATA,
    "unreachable": ExitCode.UNREACHABLE,
    "internal": ExitCode.INTERNAL,
    "out_of_memory": ExitCode.OUT_OF_MEMORY,
    "nan_loss": ExitCode.INTERNAL,
    "preempted": ExitCode.PREEMPTED,
}


class AttemptFailed(Exception):  # noqa: N818 -- named like the report it becomes
    """The attempt ends here. `message` says what happened, `advice` what the user can change."""

    def __init__(self, kind: FailureKind, message: str, advice: str) -> None:
        self.kind: FailureKind = kind
        self.message = message
        self.advice = advice
        super().__init__(message)

    @property
    def exit_code(self) -> ExitCode:
        """The process exit code that stands for this kind."""
        return _EXIT_CODES[self.kind]


class Superseded(Exception):  # noqa: N818 -- named like the exit code it becomes
    """The gateway answered 409 `attempt_superseded`: another attempt has taken over. Stop, upload nothing."""
