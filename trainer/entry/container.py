"""Any container or machine: `python -m trainer.entry.container`, with input and token in the environment.

`TUNEWRIGHT_RUN_SPEC` holds a `RunSpec` as JSON, or `TUNEWRIGHT_INPUT` any input that `entry.intake` reads; both also
exist as `..._BASE64` and `..._FILE`. `TUNEWRIGHT_ATTEMPT_TOKEN` (or `..._FILE`) is the run's token,
`TUNEWRIGHT_GATEWAY_URL` replaces the spec's gateway, `TUNEWRIGHT_MAX_RUN_S` limits the run, `TUNEWRIGHT_AT_END` says
what becomes of the machine. The exit code is the trainer's (`shared.contracts.run.ExitCode`).
"""

import base64
import binascii
import http
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, cast

import httpx

from shared.contracts.run import ExitCode
from trainer.control import Control
from trainer.entry.child import TrainerChild, describe_exit
from trainer.entry.intake import take_in
from trainer.entry.results import Story, say, write_log
from trainer.entry.settings import PREFIX, EntrySettings
from trainer.failures import AttemptFailed
from trainer.report.gateway import Backoff

_log = logging.getLogger("trainer.entry.container")
_RUNPOD_API = "https://api.runpod.io"
_TERMINATE_TRIES = 8
AT_END = ("exit", "terminate-runpod-pod")


def main(environ: Mapping[str, str]) -> int:
    """Run what the environment says; the exit code of the trainer."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        code = run(environ)
    except AttemptFailed as failure:
        _log.error("%s: %s. %s", failure.kind, failure.message, failure.advice)
        code = int(failure.exit_code)
    except ValueError as error:
        _log.error("%s", error)
        code = int(ExitCode.BAD_CONFIG)
    return code


def run(environ: Mapping[str, str]) -> int:
    """One run from input to exit code. Raises AttemptFailed or ValueError for an input that cannot be used."""
    settings = EntrySettings.from_environ(environ)
    control = Control()
    control.install_signal_handlers()
    taken = take_in(input_from(environ), _name(environ), settings.intake, control)
    for note in taken.notes:
        _log.warning("%s", note)
    story = Story()
    with TrainerChild(taken.order, settings.child) as child:
        _pass_stop_on(child)

        def take(line: Any) -> None:
            story.take(line)
            say(line)

        code = child.follow(take)
        last_words = child.last_words()
    write_log(story, taken.order.work_dir)
    if code != ExitCode.DONE:
        _log.error("%s", describe_exit(code, story.failed, last_words))
    # A negative code is a signal; a shell would say 128 + n.
    return code if code >= 0 else 128 - code


def input_from(environ: Mapping[str, str]) -> dict[str, Any]:
    """The intake's input. Raises AttemptFailed(bad_config) when there is none or it cannot be read."""
    spec, whole = _json_setting(environ, "RUN_SPEC"), _json_setting(environ, "INPUT")
    if (spec is None) == (whole is None):
        message = f"one of {PREFIX}RUN_SPEC and {PREFIX}INPUT is needed"
        raise AttemptFailed("bad_config", message, "Set exactly one, plainly, as _BASE64 or as _FILE.")
    given: dict[str, Any] = dict(whole or {"run_spec": spec})
    gateway, run_spec = environ.get(f"{PREFIX}GATEWAY_URL"), given.get("run_spec")
    if gateway and isinstance(run_spec, dict):
        given["run_spec"] = {**cast("dict[str, Any]", run_spec), "gateway_url": gateway}
    token = _setting(environ, "ATTEMPT_TOKEN")
    if token:
        given["token"] = token.strip()
    limit = environ.get(f"{PREFIX}MAX_RUN_S")
    if limit:
        given["max_run_s"] = float(limit)
    return given


def at_end(environ: Mapping[str, str], code: int) -> None:
    """What becomes of the machine once the run has ended and has been reported.

    `terminate-runpod-pod`: a pod whose command ends is started again and bills on, so the pod ends itself through
    RunPod's API, and then waits to be ended; it never returns.
    """
    chosen = environ.get(f"{PREFIX}AT_END") or "exit"
    if chosen not in AT_END:
        _log.error("%sAT_END is %r; known are %s", PREFIX, chosen, ", ".join(AT_END))
    if chosen == "terminate-runpod-pod":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is left to save: whoever ends us may do it at once
        _log.info("the run has ended with %d; ending this pod", code)
        _terminate_pod(environ)
        threading.Event().wait()


def _terminate_pod(environ: Mapping[str, str]) -> None:
    pod, key = environ.get("RUNPOD_POD_ID", ""), environ.get("RUNPOD_API_KEY", "")
    origin = environ.get(f"{PREFIX}RUNPOD_API_URL") or _RUNPOD_API
    backoff = Backoff()
    for _ in range(_TERMINATE_TRIES):
        try:
            answer = httpx.delete(
                f"{origin}/v2/pods/{pod}", headers={"Authorization": f"Bearer {key}"}, timeout=30, trust_env=False
            )
        except httpx.HTTPError as error:
            wait_s, said = backoff.next_wait_s(), type(error).__name__
        else:
            if answer.is_success or answer.status_code == http.HTTPStatus.NOT_FOUND:
                return
            wait_s, said = backoff.next_wait_s(answer), f"HTTP {answer.status_code}"
        _log.warning("this pod could not be ended (%s); trying again in %.0f s", said, wait_s)
        time.sleep(wait_s)
    _log.error("this pod could not be ended: end it by hand, it goes on costing money")


def _setting(environ: Mapping[str, str], name: str) -> str:
    path = environ.get(f"{PREFIX}{name}_FILE")
    if path:
        try:
            return Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise AttemptFailed("bad_config", f"{PREFIX}{name}_FILE: {error}", "Mount the file.") from error
    coded = environ.get(f"{PREFIX}{name}_BASE64")
    if coded:
        try:
            return base64.b64decode(coded, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise AttemptFailed("bad_config", f"{PREFIX}{name}_BASE64: {error}", "Encode it again.") from error
    return environ.get(f"{PREFIX}{name}", "")


def _json_setting(environ: Mapping[str, str], name: str) -> dict[str, Any] | None:
    text = _setting(environ, name)
    if not text:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise AttemptFailed("bad_config", f"{PREFIX}{name} is not JSON: {error}", "Write it again.") from error
    if not isinstance(value, dict):
        raise AttemptFailed("bad_config", f"{PREFIX}{name}: an object is needed", "Write it again.")
    return cast("dict[str, Any]", value)


def _name(environ: Mapping[str, str]) -> str:
    """A job's name from the machine: the provider's own, or the host's."""
    return environ.get("RUNPOD_POD_ID") or environ.get("JOB_ID") or socket.gethostname() or "job"


def _pass_stop_on(child: TrainerChild) -> None:
    """SIGTERM and SIGINT ask the trainer to save and end; it then ends us with its exit code."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        child.stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)


if __name__ == "__main__":
    exit_code = main(os.environ)
    at_end(os.environ, exit_code)
    sys.exit(exit_code)
