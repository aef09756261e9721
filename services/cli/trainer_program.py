"""The trainer as a child of the CLI: found as the local provider finds it, followed line by line, ended with it."""

import json
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, cast

from deploy.embedded.children import REPOSITORY, trainer_python
from services.cli.failures import CliError
from services.cli.session import Session

_OURS = "TUNEWRIGHT_"
_TOLD_BYTES = 2000
_END_S = 10.0


def trainer_environment_python(session: Session) -> str:
    """The Python with torch, as `tunewright up` uses it.

    Raises:
        CliError: it is not there, with how to make it.
    """
    python = trainer_python(session.environ)
    if shutil.which(python) is None:
        raise CliError(
            f"this machine has no trainer environment ({python})",
            advice="Run `just setup-trainer`, or set BRIDGE_TRAINER_PYTHON to a Python with the trainer's packages.",
        )
    return python


def said_by(session: Session, python: str, arguments: Sequence[str | Path]) -> Iterator[dict[str, Any]]:
    """What `python -m trainer ARGUMENTS` says, line by line, until it ends well.

    Its stderr is kept apart and shown only when it breaks off. Leaving the loop early ends it.

    Raises:
        CliError: it says that it failed, or it broke off.
    """
    environ = {name: value for name, value in session.environ.items() if not name.startswith(_OURS)}
    environ.update(PYTHONUNBUFFERED="1", PYTHONWARNINGS="ignore")
    command = [python, "-m", "trainer", *map(str, arguments)]
    with TemporaryFile() as notes:
        # S603: our own program; its arguments are a list, so no shell reads them.
        child = subprocess.Popen(command, cwd=REPOSITORY, env=environ, stdout=subprocess.PIPE, stderr=notes)  # noqa: S603
        try:
            for line in cast("IO[bytes]", child.stdout):  # asked for above
                told = _told(line)
                if told.get("type") == "failed":
                    child.wait()
                    raise CliError(
                        str(told.get("message")), advice=str(told.get("advice") or ""), code=str(told.get("kind") or "")
                    )
                yield told
            if code := child.wait():
                notes.seek(0)
                raise CliError(_last_words(notes.read(), code), advice="This is a fault of the trainer.")
        finally:
            _end(child)


def _told(line: bytes) -> dict[str, Any]:
    """One line's object; libraries that print to stdout are not what we asked."""
    try:
        told: object = json.loads(line)
    except ValueError:
        return {"type": "noise"}
    return cast("dict[str, Any]", told) if isinstance(told, dict) else {"type": "noise"}


def _last_words(notes: bytes, code: int) -> str:
    lines = deque(notes[-_TOLD_BYTES:].decode(errors="replace").strip().splitlines(), maxlen=12)
    return "\n".join([f"the trainer broke off (exit code {code})", *lines])


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdout is not None:
        child.stdout.close()
