"""Nothing grows past the size that one reading takes in."""

from tests.support.sources import PRODUCT, functions, python_files, where

LONGEST_FUNCTION = 60
LONGEST_MODULE = 400
LONGEST_TEST_MODULE = 600


def test_no_function_over_limit() -> None:
    too_long = [
        f"{where(path, node)} {name}: {length} lines"
        for path in python_files(*PRODUCT)
        for name, node in functions(path)
        if (length := (node.end_lineno or node.lineno) - node.lineno + 1) > LONGEST_FUNCTION
    ]
    assert not too_long, "\n".join(too_long)


def test_no_module_over_limit() -> None:
    limits = {LONGEST_MODULE: python_files(*PRODUCT), LONGEST_TEST_MODULE: python_files("tests")}
    too_long = [
        f"{where(path)}: {length} lines, at most {limit}"
        for limit, paths in limits.items()
        for path in paths
        if (length := len(path.read_text(encoding="utf-8").splitlines())) > limit
    ]
    assert not too_long, "\n".join(too_long)
