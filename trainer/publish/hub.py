"""Files to a model repository of a Hugging Face Hub, by its own client: content first, then one commit of all."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import httpx2
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import disable_progress_bars

from trainer.publish.credentials import Outside
from trainer.publish.upload import OutgoingFile, StoredFile, UploadDelayed, UploadRefused, described
from trainer.report.gateway import is_retryable

_UNAUTHORISED, _FORBIDDEN, _NOT_FOUND = 401, 403, 404
_URL = re.compile(r"https?://\S+")
_SHOWN_CHARS = 300


class HubStore:
    """One repository, made when it is first needed. Repeating an upload or a commit changes nothing."""

    def __init__(self, repo_id: str, *, private: bool, outside: Outside) -> None:
        disable_progress_bars()  # standard error is the attempt's log
        self._given = repo_id
        self._private = private
        self._has_token = outside.hub_token is not None
        self._endpoint = outside.hub_endpoint.rstrip("/")
        self._api = HfApi(endpoint=self._endpoint, token=outside.hub_token or False)
        self._repo_id: str | None = None
        self._staged: dict[str, Path] = {}

    @property
    def target(self) -> str:
        """`hub:owner/name`."""
        return f"hub:{self._given}"

    @property
    def url(self) -> str:
        """Where people see the repository."""
        return f"{self._endpoint}/{self._repo_id or self._given}"

    def put(self, file: OutgoingFile) -> StoredFile:
        """Send one file's content, if it is large; it shows with the commit that `complete` makes."""
        stored = described(file, file.name)
        with _told_apart():
            repo_id = self._opened()
            self._api.preupload_lfs_files(repo_id, [CommitOperationAdd(file.name, file.path)])
        self._staged[file.name] = file.path
        return stored

    def complete(self) -> None:
        """Commit what was put. A commit of what is there already is none."""
        # Operations are made anew: one that was sent has let go of its content, and one that was refused remembers
        # what the repository had then, though a try whose answer was lost may have committed since.
        operations = [CommitOperationAdd(name, path) for name, path in self._staged.items()]
        with _told_apart():
            self._api.create_commit(
                self._opened(), operations, commit_message=f"Upload {len(operations)} files with Tunewright"
            )
        self._staged.clear()

    def _opened(self) -> str:
        if not self._has_token:
            raise UploadRefused("HF_TOKEN is not set on the machine that trains")
        if self._repo_id is None:
            made = self._api.create_repo(self._given, private=self._private, exist_ok=True)
            self._repo_id = made.repo_id
        return self._repo_id


@contextmanager
def _told_apart() -> Generator[None]:
    """Errors of the client as refusals or delays, without addresses that may be signed."""
    try:
        yield
    except HfHubHTTPError as error:
        raise _of_response(error.response, error.server_message or "") from error
    except httpx2.HTTPError as error:
        raise UploadDelayed(type(error).__name__) from error
    except (OSError, RuntimeError, ValueError) as error:
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise _of_response(cause.response, cause.server_message or "") from error
        # The client wraps what went wrong while content was sent: a link, or a server that answered nonsense.
        raise UploadDelayed(_safe(str(cause or error)) or type(error).__name__) from error


def _of_response(response: httpx2.Response, said: str) -> UploadRefused | UploadDelayed:
    status = response.status_code
    reason = f"HTTP {status}" + (f": {_safe(said)}" if said else "")
    if status == _UNAUTHORISED:
        return UploadRefused(f"{reason}; the hub does not know HF_TOKEN")
    if status == _FORBIDDEN:
        return UploadRefused(f"{reason}; HF_TOKEN may not write there")
    if status == _NOT_FOUND:
        return UploadRefused(f"{reason}; there is no such repository, or HF_TOKEN may not see it")
    if not is_retryable(status):
        return UploadRefused(reason)
    # The hub's client has an HTTP library of its own; only Retry-After matters to whoever waits.
    return UploadDelayed(reason, httpx.Response(status, headers=list(response.headers.multi_items())))


def _safe(text: str) -> str:
    return _URL.sub("…", " ".join(text.split()))[:_SHOWN_CHARS]
