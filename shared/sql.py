"""Named SQL: every query stands in a `queries.sql` under `-- name: …` with a line that says what it is for."""

import re
from collections.abc import Iterator
from pathlib import Path

_NAME = re.compile(r"^-- name: (\w+)[ \t]*$", re.MULTILINE)


class Queries:
    """The queries of one file, by name: `QUERIES.read_stream` or `QUERIES["read_stream"]` is the SQL text."""

    def __init__(self, texts: dict[str, str], origin: str) -> None:
        self._texts = texts
        self._origin = origin

    def __getitem__(self, name: str) -> str:
        """The text of one query, or KeyError."""
        return self._texts[name]

    def __getattr__(self, name: str) -> str:
        """The text of one query, or AttributeError naming the file that lacks it."""
        try:
            return self._texts[name]
        except KeyError:
            raise AttributeError(f"{self._origin} has no query named {name}") from None

    def __iter__(self) -> Iterator[str]:
        """The names, in the file's order."""
        return iter(self._texts)


def load_queries(path: Path) -> Queries:
    """Reads a file of `-- name: xyz` blocks; raises ValueError for a name without SQL or one that comes twice."""
    parts = _NAME.split(path.read_text(encoding="utf-8"))
    texts: dict[str, str] = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        lines = [line for line in body.splitlines() if line.strip() and not line.lstrip().startswith("--")]
        if not lines or name in texts:
            raise ValueError(f"{path.name}: query {name} is {'empty' if not lines else 'there twice'}")
        texts[name] = "\n".join(lines)
    return Queries(texts, path.name)
