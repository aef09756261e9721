"""House rules that no linter knows: names of modules, where SQL and settings live, and documented recipes."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.sources import PRODUCT, ROOT, python_files, tree, where

DRAWERS = {"utils", "helpers", "common", "manager", "base", "misc", "util", "helper"}
SQL = re.compile(
    r"^\s*(select\b.+\bfrom\b|select\s+pg_|insert\s+into\b|update\s+\S+\s+set\b|delete\s+from\b|truncate\s|"
    r"(create|alter|drop)\s+(table|index|schema|role|database|function|view|user)\b|with\s+\w+\s+as\s*\(|listen\s+\w+$)",
    re.IGNORECASE | re.DOTALL,
)
SETTINGS_READERS = {
    "shared/service.py": "run_service is the body of every service's __main__",
    "shared/ping.py": "a program of its own, the health check of containers",
    "services/cli/session.py": "the one place where the CLI reads it",
}
"""Files that read the environment though they are neither `__main__.py` nor `settings.py`."""


def test_no_module_is_a_drawer() -> None:
    drawers = [where(path) for path in python_files(*PRODUCT, "tests") if {path.stem, path.parent.name} & DRAWERS]
    assert not drawers, drawers


def _text_outside_docstrings(path: Path) -> Iterator[tuple[str, ast.AST]]:
    docstrings = {
        id(node.value)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value, node


def test_sql_is_written_in_sql_files_only() -> None:
    breaches = [
        f"{where(path, node)} {text.strip()[:60]!r}"
        for path in python_files(*PRODUCT)
        for text, node in _text_outside_docstrings(path)
        if SQL.match(text)
    ]
    assert not breaches, "\n".join(breaches)


def _is_main_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def _reads_environment(path: Path) -> Iterator[ast.AST]:
    """Uses of the environment outside `if __name__ == "__main__":`."""
    body = [node for node in tree(path).body if not _is_main_guard(node)]
    for node in (inner for outer in body for inner in ast.walk(outer)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            if node.attr in {"environ", "environb", "getenv"}:
                yield node
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (node for alias in node.names if alias.name in {"environ", "getenv"})


def test_settings_are_read_in_main_and_settings_only() -> None:
    breaches = [
        where(path, node)
        for path in python_files("shared", "services")
        for node in _reads_environment(path)
        if path.name not in {"__main__.py", "settings.py"} and where(path) not in SETTINGS_READERS
    ]
    assert not breaches, "\n".join(breaches)


def test_every_recipe_has_a_doc_line_and_a_group() -> None:
    lines = (ROOT / "justfile").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        recipe = re.match(r"^([a-z][a-z0-9_-]*)(?: [^:=]*)?:(?!=)", line)
        if recipe is None or "[private]" in lines[max(0, number - 3) : number]:
            continue
        above = lines[:number]
        attributes: list[str] = []
        while above and above[-1].startswith("["):
            attributes.append(above.pop())
        assert any(one.startswith("[group(") for one in attributes), f"{recipe[1]} has no group"
        assert above[-1].startswith("# "), f"{recipe[1]} has no doc line"
