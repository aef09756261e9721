"""Every exception is handled where something can be done about it; the few catch-alls are listed with a reason."""

import ast
from pathlib import Path

from tests.support.sources import PRODUCT, functions, python_files, where

ALLOWED = Path(__file__).with_name("broad_excepts.txt")
BROAD = {"Exception", "BaseException"}


def _catches_everything(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(one, ast.Name) and one.id in BROAD for one in caught)


def _found() -> set[str]:
    places = set[str]()
    for path in python_files(*PRODUCT):
        inside = {
            id(handler): name
            for name, function in functions(path)  # inner functions come later and so win
            for handler in ast.walk(function)
            if isinstance(handler, ast.ExceptHandler) and _catches_everything(handler)
        }
        places |= {f"{where(path)} {name}" for name in inside.values()}
    return places


def test_broad_excepts_are_listed() -> None:
    lines = [line for line in ALLOWED.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    listed = {line.partition(":")[0]: line.partition(":")[2].strip() for line in lines}
    found = _found()
    assert not found - listed.keys(), f"not in {ALLOWED.name}: {sorted(found - listed.keys())}"
    assert not listed.keys() - found, f"no longer there, take it off the list: {sorted(listed.keys() - found)}"
    assert all(listed.values()), "each needs a reason"
