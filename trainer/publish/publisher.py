"""The thread that delivers files in order, so that a slow or absent gateway never holds up a training step."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from trainer.control import Control
from trainer.patience import Patience
from trainer.publish.upload import OutgoingFile, Store, StoredFile, UploadDelayed, UploadRefused
from trainer.report.events import Reporter
from trainer.report.gateway import Backoff

_log = logging.getLogger("trainer.publish")
T = TypeVar("T")


@dataclass(frozen=True)
class Publication:
    """Files that belong together. `report` runs once all of them are stored; `folder` must not be deleted before."""

    files: list[OutgoingFile]
    report: Callable[[list[StoredFile]], None]
    folder: Path | None = None
    replaceable: bool = False
    """A newer replaceable publication makes a waiting one pointless (an old checkpoint)."""
    refused: Callable[[str], None] | None = None
    """Told why the files will not be delivered; without it that is a warning, and the names count as undelivered."""


class Publisher:
    """A queue and one thread. Every method may be called from the training thread.

    With `tries`, a store that takes nothing after so many tries of one file counts as one that refuses.
    """

    def __init__(self, store: Store, reporter: Reporter, control: Control, tries: int | None = None) -> None:
        self._store = store
        self._tries = tries
        self._reporter = reporter
        self._control = control
        self._backoff = Backoff()
        self._changed = threading.Condition()
        self._queue: list[Publication] = []
        self._current: Publication | None = None
        self._giving_up = threading.Event()
        self._undelivered: list[str] = []
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Begin to deliver in the background."""
        self._thread.start()

    def publish(self, publication: Publication) -> None:
        """Queue files for delivery and return at once."""
        with self._changed:
            if publication.replaceable:
                self._queue = [waiting for waiting in self._queue if not waiting.replaceable]
            self._queue.append(publication)
            self._changed.notify_all()

    def folders_in_use(self) -> set[Path]:
        """Folders whose files are still to be sent."""
        with self._changed:
            waiting = [*self._queue, *([self._current] if self._current else [])]
            return {publication.folder for publication in waiting if publication.folder}

    def wait_until_idle(self, patience: Patience) -> None:
        """Wait for the queue to empty, or for patience to end; delivery goes on either way."""
        with self._changed:
            while (self._queue or self._current) and (remaining_s := patience.remaining_s()):
                self._changed.wait(min(0.2, remaining_s))

    def wait(self, patience: Patience) -> list[str]:
        """Wait for the queue to empty; then, or when patience ends, return the names of results not delivered."""
        self.wait_until_idle(patience)
        with self._changed:
            self._giving_up.set()
            waiting = [*([self._current] if self._current else []), *self._queue]
            self._queue = []
        # A checkpoint served its purpose when the training ended; a result without it is complete.
        results = [publication for publication in waiting if not publication.replaceable]
        for publication in results:
            if publication.refused is not None and not self._control.superseded.is_set():
                publication.refused("the time to deliver it was over")
        return [*self._undelivered, *(file.name for publication in results for file in publication.files)]

    def close(self) -> None:
        """Stop the thread; what is still queued is not sent."""
        self._giving_up.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._giving_up.is_set() and not self._control.superseded.is_set():
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue), timeout=0.5)
                if not self._queue:
                    continue
                self._current = self._queue.pop(0)
            self._deliver(self._current)
            with self._changed:
                self._current = None
                self._changed.notify_all()

    def _deliver(self, publication: Publication) -> None:
        stored: list[StoredFile] = []
        name = publication.files[-1].name
        try:
            for file in publication.files:
                name = file.name
                if (delivered := self._until_taken(partial(self._store.put, file), name)) is None:
                    return
                stored.append(delivered)
            if self._until_taken(self._completed, name) is None:
                return
        except (UploadRefused, OSError) as error:
            self._refuse(publication, name, error)
            return
        with self._changed:
            # Whoever stopped waiting has told how this ended; for our own store it is never too late.
            if publication.refused is None or not self._giving_up.is_set():
                publication.report(stored)

    def _refuse(self, publication: Publication, name: str, error: Exception) -> None:
        with self._changed:
            if publication.refused is None:
                if not publication.replaceable:
                    self._undelivered.append(name)
                self._reporter.warning("upload_refused", f"{name} was not delivered: {error}")
            elif not self._giving_up.is_set():
                publication.refused(f"{name}: {error}")

    def _completed(self) -> bool:
        self._store.complete()
        return True

    def _until_taken(self, act: Callable[[], T], name: str) -> T | None:
        """Try until the store takes it; None once the attempt has given up or was superseded.

        Raises UploadRefused when the store refuses, or delays more often than it may.
        """
        tries = 0
        while not self._giving_up.is_set() and not self._control.superseded.is_set():
            try:
                taken = act()
            except UploadDelayed as delay:
                tries += 1
                if tries == self._tries:
                    raise UploadRefused(f"{delay}, {tries} times") from delay
                if tries == 1:
                    _log.warning("upload of %s is delayed (%s); it will be tried again", name, delay)
                self._giving_up.wait(self._backoff.next_wait_s(delay.response))
            else:
                self._backoff.reset()
                return taken
        return None
