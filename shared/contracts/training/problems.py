"""Why a submitted config is refused: every problem at once, each with its place and what to do."""

import difflib
from typing import Literal

import msgspec

ProblemCode = Literal[
    "unknown_key", "unsupported", "wrong_type", "out_of_range", "missing", "conflict", "duplicate", "secret_in_config"
]


class FieldProblem(msgspec.Struct, frozen=True, kw_only=True):
    """One reason why a config is refused; `field` is the key as submitted."""

    field: str
    code: ProblemCode
    message: str
    advice: str


class ConfigRejected(Exception):  # noqa: N818 -- a refusal is an answer, not a fault
    """The config cannot be trained; carries every problem found, not only the first."""

    def __init__(self, problems: list[FieldProblem]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in problems))


def problem(field: str, code: ProblemCode, message: str, advice: str) -> FieldProblem:
    """One problem, in the order in which people read it."""
    return FieldProblem(field=field, code=code, message=message, advice=advice)


def unknown_key(given: str, name: str, known: frozenset[str]) -> FieldProblem:
    """The problem for a key nobody knows, naming the nearest one that exists."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    advice = f"Did you mean {nearest[0]}?" if nearest else "Remove it."
    return problem(given, "unknown_key", f"{name} is not a known key", advice)


def not_one_value(field: str, value: object) -> FieldProblem:
    """The problem for a list or an object where one value is meant."""
    kind = "a list" if isinstance(value, list) else "an object"
    return problem(field, "wrong_type", f"one value is meant here, not {kind}", "Give one value, or remove the key.")
