"""Our source files as syntax trees, for the tests that look at how the code is written."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("shared", "services", "trainer", "deploy")
SERVICES = ("billing", "gateway", "provider_bridge", "scheduler", "storage", "cli")
_NOT_OURS = {"__pycache__", "fixtures", "node_modules", ".venv", "static"}


@functools.cache
def python_files(*folders: str) -> tuple[Path, ...]:
    """Every Python file below the folders, sorted."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return tuple(sorted(path for path in found if not _NOT_OURS.intersection(path.relative_to(ROOT).parts)))


@functools.cache
def tree(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def where(path: Path, node: ast.AST | None = None) -> str:
    """`shared/service.py:12`, for messages."""
    line = getattr(node, "lineno", None)
    name = path.relative_to(ROOT).as_posix()
    return f"{name}:{line}" if line else name


def imports(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """The dotted name of every module that a file imports, wherever in the file; relative ones made absolute."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            yield ".".join(part for part in (origin, node.module or "") if part), node


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function with its qualified name, methods and inner functions too."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            name = f"{prefix}{child.name}" if named else prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield name, child
            yield from walk(child, f"{name}." if named else prefix)

    return walk(tree(path), "")
