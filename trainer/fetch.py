"""Bring datasets and checkpoint files to this machine: verified by sha256."""

import hashlib
import logging
import time
from pathlib import Path, PurePosixPath

import httpx

from shared.contracts.run import DatasetRef, FileRef, ResumePoint
from trainer.archives import unpack_safely
from trainer.control import Control
from trainer.failures import AttemptFailed
from trainer.files import sha256_of
from trainer.report.gateway import UNAUTHORISED_STATUS, Backoff, Gateway, is_retryable

_log = logging.getLogger("trainer.fetch")


class ChecksumDiffers(Exception):  # noqa: N818 -- an observation about bytes
    """The bytes that arrived are not the bytes that were announced."""


class Fetcher:
    """Downloads with retries until `patience_s` seconds have passed for one file."""

    def __init__(self, gateway: Gateway, control: Control, patience_s: float) -> None:
        self._gateway = gateway
        self._control = control
        self._patience_s = patience_s

    def dataset(self, ref: DatasetRef, into: Path) -> Path:
        """Download and unpack one dataset; returns its folder. An already unpacked one is used as it is."""
        folder = into / ref.sha256
        if folder.exists():
            return folder
        archive = into / f"{ref.sha256}.tar"
        self.file(ref.url, ref.sha256, ref.size_bytes, archive)
        scratch = into / f".unpacking-{ref.sha256}"
        unpack_safely(archive, scratch)
        scratch.rename(folder)
        archive.unlink()
        return folder

    def checkpoint(self, point: ResumePoint, checkpoints: Path) -> None:
        """Bring all files of one checkpoint; the folder gets its final name only when it is whole."""
        folder = checkpoints / f"checkpoint-{point.step}"
        if folder.exists():
            return
        scratch = checkpoints / f".fetching-{point.step}"
        scratch.mkdir(parents=True, exist_ok=True)
        for ref in point.files:
            self.file(ref.url, ref.sha256, ref.size_bytes, scratch / _plain_name(ref))
        scratch.rename(folder)

    def file(self, url: str, sha256: str, size_bytes: int, target: Path) -> None:
        """Download one file and check it. Raises AttemptFailed(unreachable) once patience ends."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and sha256_of(target) == sha256:
            return
        backoff = Backoff()
        end = time.monotonic() + self._patience_s
        while True:
            self._control.raise_if_superseded()
            response: httpx.Response | None = None
            try:
                response = self._download(url, sha256, size_bytes, target)
                if response.is_success:
                    return
                reason = f"HTTP {response.status_code}"
            except (httpx.HTTPError, ChecksumDiffers) as error:
                reason = str(error) or type(error).__name__
            self._give_up_or_wait(url, reason, response, backoff.next_wait_s(response), end)

    def _give_up_or_wait(
        self, url: str, reason: str, response: httpx.Response | None, wait_s: float, end: float
    ) -> None:
        if response is not None and response.status_code in UNAUTHORISED_STATUS:
            self._gateway.token.reread()
        hopeless = response is not None and not is_retryable(response.status_code)
        if hopeless or time.monotonic() + wait_s > end:
            message = f"{url} could not be fetched: {reason}"
            raise AttemptFailed("unreachable", message, "Check that the gateway is reachable from this machine.")
        _log.warning("fetching %s failed (%s); trying again in %.1f s", url, reason, wait_s)
        if self._control.stop.wait(wait_s):
            raise AttemptFailed("preempted", "stopped while fetching data", "The job can be started again.")

    def _download(self, url: str, sha256: str, size_bytes: int, target: Path) -> httpx.Response:
        digest, received = hashlib.sha256(), 0
        scratch = target.with_name(f".{target.name}.part")
        with self._gateway.http.stream("GET", url, headers=self._gateway.headers()) as response:
            if not response.is_success:
                return response
            with scratch.open("wb") as stream:
                for chunk in response.iter_bytes():
                    received += len(chunk)
                    if received > size_bytes:
                        raise ChecksumDiffers(f"more than the announced {size_bytes} bytes arrived")
                    digest.update(chunk)
                    stream.write(chunk)
        if digest.hexdigest() != sha256:
            raise ChecksumDiffers("the sha256 differs from the announced one")
        scratch.replace(target)
        return response


def _plain_name(ref: FileRef) -> str:
    name = PurePosixPath(ref.name).name
    if not name or name.startswith("."):
        message = f"the checkpoint lists an unusable file name: {ref.name!r}"
        raise AttemptFailed("unreachable", message, "Resume from another checkpoint.")
    return name
