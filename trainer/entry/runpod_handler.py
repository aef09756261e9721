"""RunPod serverless: a job of the queue becomes one trainer run. The SDK itself is handed in by `deploy/runpod`.

The handler is asynchronous, because RunPod cancels a job by cancelling its task; a handler that blocks could not be
stopped. Failures become `{"error": ...}`, which RunPod shows as FAILED; nothing is raised but a cancellation.
"""

import asyncio
import base64
import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar, cast

from shared.contracts.run import ExitCode
from trainer.control import Control
from trainer.entry.child import CODE_ROOT, Order, TrainerChild, describe_exit
from trainer.entry.intake import take_in
from trainer.entry.results import Outputs, Story, collect, say, write_log
from trainer.entry.settings import EntrySettings
from trainer.failures import AttemptFailed

T = TypeVar("T")

_LOOK_S = 0.2
_PROGRESS_S = 2.0
"""Progress is posted with each new phase and in this pace: a post is a request of its own from a thread of its own."""
_LARGEST_INLINE_BYTES = 4 * 1024 * 1024
"""RunPod takes results of 10 MB, and base64 adds a third."""
_LOG_TAIL = 200
_LONGEST_LABEL = 64
_PREFETCH = "import sys; from huggingface_hub import snapshot_download; snapshot_download(sys.argv[1])"


class Sdk(Protocol):
    """What is needed of the `runpod` package."""

    def progress_update(self, job: dict[str, Any], progress: Any) -> None:
        """Post the state of a running job."""
        ...

    def upload_file_to_bucket(
        self, file_name: str, file_location: str, bucket_creds: dict[str, str] | None, bucket_name: str, prefix: str
    ) -> str:
        """Upload one file; its presigned URL."""
        ...


@dataclass(frozen=True)
class Bucket:
    """Where results go. The credentials are RunPod's three names."""

    name: str
    credentials: dict[str, str] = field(repr=False)

    @classmethod
    def of(cls, job: dict[str, Any], environ: Mapping[str, str]) -> "Bucket | None":
        """The job's own `s3Config`, or what the endpoint is configured with, or None."""
        asked = job.get("s3Config")
        if isinstance(asked, dict):
            given = cast("dict[str, Any]", asked)
            names = {"endpointUrl": "endpointUrl", "accessId": "accessId", "accessSecret": "accessSecret"}
            name = str(given.get("bucketName") or "")
        else:
            given = dict(environ)
            names = {
                "endpointUrl": "BUCKET_ENDPOINT_URL",
                "accessId": "BUCKET_ACCESS_KEY_ID",
                "accessSecret": "BUCKET_SECRET_ACCESS_KEY",
            }
            name = environ.get("BUCKET_NAME", "tunewright")
        credentials = {member: str(given.get(source) or "") for member, source in names.items()}
        return cls(name, credentials) if name and all(credentials.values()) else None


class RunPodHandler:
    """Handles one job at a time; give `handler.handle` to `runpod.serverless.start`."""

    def __init__(self, settings: EntrySettings, sdk: Sdk, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._sdk = sdk
        self._environ = environ
        self._running: set[TrainerChild] = set()
        self._listening = False

    def init(self) -> None:
        """What must be right before the first job. Raises RuntimeError with what to do."""
        python = shutil.which(self._settings.trainer_python)
        if python is None or not os.access(python, os.X_OK):
            raise RuntimeError(f"there is no trainer at {self._settings.trainer_python}: set TRAINER_PYTHON")
        self._settings.work_dir.mkdir(parents=True, exist_ok=True)
        for base in self._environ.get("TUNEWRIGHT_PREFETCH", "").split():
            subprocess.run([python, "-c", _PREFETCH, base], cwd=CODE_ROOT, check=True)

    async def handle(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run a job to its end; the answer is RunPod's `output`, or `error` beside what there is."""
        self._pass_signals_on()
        control = Control()
        given = job.get("input")
        if not isinstance(given, dict) or not given:
            return {"error": "input: an object is needed; see docs/provider-entries.md"}
        try:
            taken = await _in_thread(
                lambda: take_in(cast("dict[str, Any]", given), str(job["id"]), self._settings.intake, control), control
            )
        except AttemptFailed as failure:
            return {"error": f"{failure.kind}: {failure.message}. {failure.advice}"}
        story = Story()
        story.log.extend(f"[warning] {note}" for note in taken.notes)
        bucket = Bucket.of(job, self._environ)
        label = _label(cast("dict[str, Any]", given))
        code, last_words = await self._train(job, taken.order, story, label)
        told = await _in_thread(lambda: self._answer(taken.order, story, code, last_words, bucket), control)
        return {**told, **label}

    async def _train(self, job: dict[str, Any], order: Order, story: Story, label: dict[str, str]) -> tuple[int, str]:
        posted_s = 0.0
        child = TrainerChild(order, self._settings.child)
        self._running.add(child)
        try:
            while True:
                code = child.poll()
                for line in child.new_lines():
                    story.take(line)
                    say(line)
                    if line.type == "phase":
                        posted_s = time.monotonic()
                        self._sdk.progress_update(job, {**story.progress(), **label})
                if code is not None:
                    return code, child.last_words()
                if time.monotonic() - posted_s >= _PROGRESS_S:
                    posted_s = time.monotonic()
                    self._sdk.progress_update(job, {**story.progress(), **label})
                await asyncio.sleep(_LOOK_S)
        finally:
            # Also on a cancellation: the job's task ends only when its trainer has, so the next finds a free GPU.
            self._running.discard(child)
            await _end(child, self._settings.grace_s)

    def _answer(self, order: Order, story: Story, code: int, last_words: str, bucket: Bucket | None) -> dict[str, Any]:
        """`refresh_worker` gives the next job a fresh process with all of the GPU's memory."""
        if order.spec.gateway_url is not None:
            told = {"exit_code": code, "attempt_id": order.spec.attempt_id, "metrics": story.final_metrics()}
        elif code == ExitCode.DONE:
            outputs = collect(story, order.work_dir)
            files = self._files(outputs, order, bucket)
            told = {
                "training_logs": self._hand_over(outputs.log, order, bucket) or _tail(outputs.log),
                "model_checkpoint": self._model(outputs, files, order, bucket),
                "files": files,
                "metrics": story.final_metrics(),
            }
        else:
            log = write_log(story, order.work_dir)
            told = {
                "exit_code": code,
                "training_logs": self._hand_over(log, order, bucket) or _tail(log),
                "metrics": story.final_metrics(),
            }
        if code == ExitCode.DONE:
            if bucket is not None or order.spec.gateway_url is not None:
                shutil.rmtree(order.work_dir, ignore_errors=True)  # delivered: the volume is not an archive
            return {**told, "refresh_worker": True}
        return {**told, "error": describe_exit(code, story.failed, last_words), "refresh_worker": True}

    def _model(self, outputs: Outputs, files: dict[str, str | None], order: Order, bucket: Bucket | None) -> str:
        """A URL; without a bucket the file itself as a data URL, or its place on the volume when it is large."""
        model = outputs.model
        url = files.get(model.relative_to(order.work_dir).as_posix()) or self._hand_over(model, order, bucket)
        if url is None and model.stat().st_size <= _LARGEST_INLINE_BYTES:
            url = f"data:application/octet-stream;base64,{base64.b64encode(model.read_bytes()).decode()}"
        return url or str(model)

    def _files(self, outputs: Outputs, order: Order, bucket: Bucket | None) -> dict[str, str | None]:
        """Every file of the run, by name, with its URL if there is a bucket."""
        names = {path: path.relative_to(order.work_dir).as_posix() for path in outputs.files}
        return {name: self._hand_over(path, order, bucket) for path, name in names.items()}

    def _hand_over(self, path: Path, order: Order, bucket: Bucket | None) -> str | None:
        if bucket is None:
            return None
        name = path.relative_to(order.work_dir).as_posix()
        return self._sdk.upload_file_to_bucket(name, str(path), bucket.credentials, bucket.name, order.spec.job_id)

    def _pass_signals_on(self) -> None:
        """A worker that is told to go asks its trainers to save, then does what it did before."""
        if self._listening or threading.current_thread() is not threading.main_thread():
            return
        self._listening = True
        before = cast("Callable[[int, FrameType | None], Any] | int | None", signal.getsignal(signal.SIGTERM))

        def on_term(number: int, frame: FrameType | None) -> None:
            for child in tuple(self._running):
                child.stop()
            if callable(before):
                before(number, frame)

        signal.signal(signal.SIGTERM, on_term)


def _label(given: dict[str, Any]) -> dict[str, str]:
    """What the control plane knows its run by. RunPod lists jobs without their input: progress and answer repeat it."""
    label = given.get("label")
    return {"label": label[:_LONGEST_LABEL]} if isinstance(label, str) and label else {}


async def _in_thread(work: Callable[[], T], control: Control) -> T:
    """Blocking work beside the loop; a cancellation stops its waiting and waits for it."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        control.stop.set()
        with contextlib.suppress(AttemptFailed):
            await task
        raise


async def _end(child: TrainerChild, grace_s: float) -> None:
    child.stop()
    deadline = time.monotonic() + grace_s
    while child.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110 -- a process sets no Event
        await asyncio.sleep(_LOOK_S)
    child.close()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8").splitlines()[-_LOG_TAIL:])
