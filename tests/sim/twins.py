"""Which function stands for which named query: by the query's text, so that a changed query asks for a changed twin."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from shared.sql import Queries
from tests.sim.database import Twin

TWINS: dict[str, tuple[str, Twin]] = {}
"""The text of a query -> its name as a place (`sql:inbox.claim_events`), and what it does."""

F = TypeVar("F", bound=Twin)


def twin(queries: Queries, family: str) -> Callable[[F], F]:
    """Registers a function as the twin of the query that has its name."""

    def register(function: F) -> F:
        name = function.__name__
        TWINS[queries[name]] = (f"sql:{family}.{name}", function)
        return function

    return register


def load() -> None:
    """Registers every twin there is."""
    for path in sorted(Path(__file__).parent.glob("queries_*.py")):
        importlib.import_module(f"tests.sim.{path.stem}")
