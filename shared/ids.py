"""The only source of new ids."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from uuid import NAMESPACE_URL, UUID, uuid5

import uuid_utils.compat

_source: ContextVar[Callable[[], UUID]] = ContextVar("ids", default=uuid_utils.compat.uuid7)


def new_id() -> UUID:
    """A UUID version 7: unique, and sortable by its time of birth."""
    return _source.get()()


@contextmanager
def ids_from(source: Callable[[], UUID]) -> Generator[None]:
    """Inside the block, and in tasks begun there, new ids come from `source`: a simulation repeats its own."""
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)


def derived_id(*parts: object) -> UUID:
    """The same UUID (version 5) for the same parts: for ids that a repeat must find again."""
    return uuid5(NAMESPACE_URL, "tunewright:" + "/".join(str(part) for part in parts))
