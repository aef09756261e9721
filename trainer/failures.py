"""The ways an attempt can end without a model, each with its kind, its advice and its exit code."""

from shared.contracts.run import EXIT_CODES, ExitCode, FailureKind


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
        return EXIT_CODES[self.kind]


class Superseded(Exception):  # noqa: N818 -- named like the exit code it becomes
    """The gateway answered 409 `attempt_superseded`: another attempt has taken over. Stop, upload nothing."""
