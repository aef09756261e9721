"""What `render`, `generate` and `serve` say: one JSON object a line on stdout, so that a program can follow them."""

import json
import sys
from collections.abc import Callable
from typing import Any

from shared.contracts.run import ExitCode
from trainer.failures import AttemptFailed


def say(type_: str, **members: Any) -> None:
    """One line, at once. Types: stage {text}, progress {done, total}, picture, text, served, removed, failed."""
    sys.stdout.write(json.dumps({"type": type_, **members}, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def to_an_end(work: Callable[[], None]) -> int:
    """Runs the work; what it cannot do becomes a `failed` line and the exit code of its kind."""
    try:
        work()
    except AttemptFailed as failure:
        say("failed", kind=failure.kind, message=failure.message, advice=failure.advice)
        return int(failure.exit_code)
    return int(ExitCode.DONE)
