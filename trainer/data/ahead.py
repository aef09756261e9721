"""Batches made ahead in a thread, so that a GPU does not wait for disks: a cache of what comes next, never an order.

The order stays with whoever asks. What was made ahead and is not asked for is forgotten, so going back to an earlier
place or to another epoch needs no notice, and every batch is the same with and without this.
"""

from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Made = TypeVar("Made")


class Ahead(Generic[Key, Made]):
    """Gives what `make` makes of a key, made already where the key was announced. `depth` 0 makes nothing ahead."""

    def __init__(self, make: Callable[[Key], Made], depth: int) -> None:
        self._make, self._depth = make, depth
        self._coming: dict[Key, Future[Made]] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ahead") if depth else None

    def take(self, key: Key, upcoming: Iterable[Key]) -> Made:
        """What belongs to `key`; `upcoming` are the keys that will be asked for next. Raises what `make` raises."""
        begun = self._coming.pop(key, None)
        self._begin(upcoming)
        return self._make(key) if begun is None else begun.result()

    def _begin(self, upcoming: Iterable[Key]) -> None:
        if self._worker is None:
            return
        wanted = list(islice(upcoming, self._depth))
        for key in [key for key in self._coming if key not in wanted]:
            self._coming.pop(key).cancel()
        for key in wanted:
            if key not in self._coming:
                self._coming[key] = self._worker.submit(self._make, key)
