"""The list of `just broken` fits the code as it is, and a mutation that no longer fits says so."""

from pathlib import Path

import pytest

from tests.fault.broken import MUTATIONS, ROOT, Edit, MisfitError, Mutation, apply


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[one.name for one in MUTATIONS])
def test_each_guard_stands_in_the_code_exactly_once(mutation: Mutation, tmp_path: Path) -> None:
    for edit in mutation.edits:
        (tmp_path / edit.file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / edit.file).write_text((ROOT / edit.file).read_text(encoding="utf-8"), encoding="utf-8")
    apply(tmp_path, mutation)
    changed = {edit.file for edit in mutation.edits}
    assert all((tmp_path / name).read_text("utf-8") != (ROOT / name).read_text("utf-8") for name in changed)


def test_a_guard_that_is_not_there_any_more_is_an_error_and_not_a_silent_pass(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n", encoding="utf-8")
    gone = Mutation(name="the guard", edits=(Edit(file="a.py", old="y = 1", new=""),), suites=())
    with pytest.raises(MisfitError, match="stands 0 times in"):
        apply(tmp_path, gone)


def test_each_guard_is_missed_by_two_suites_at_least() -> None:
    assert {one.name: len(one.suites) for one in MUTATIONS if len(one.suites) < 2} == {}


def test_the_lock_is_taken_out_of_the_newest_append_function() -> None:
    """A migration that brings the function anew would make the mutation of an older file change nothing."""
    migrations = sorted((ROOT / "shared" / "eventstore" / "sql").glob("[0-9]*.sql"))
    defining = [path.name for path in migrations if "function log.append_batch(" in path.read_text(encoding="utf-8")]
    [lock] = [one for one in MUTATIONS if "orders commits" in one.name]
    assert [Path(edit.file).name for edit in lock.edits] == defining[-1:]
