"""Named SQL files: what they give and what they refuse."""

from pathlib import Path

import pytest

from shared.sql import load_queries

FILE = """-- A comment before the first name.

-- name: one
-- Its purpose.
select 1

-- name: two
-- Its purpose.
select 2,
    '-- name: not_this'  -- a comment at the end of a line stays
from somewhere
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "queries.sql"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_each_name_gives_its_sql_without_comments(file: Path) -> None:
    queries = load_queries(file)
    assert list(queries) == ["one", "two"]
    assert queries.one == queries["one"] == "select 1"
    assert queries.two.startswith("select 2,")
    assert "not_this" in queries.two


def test_unknown_name_is_an_error_that_names_the_file(file: Path) -> None:
    with pytest.raises(AttributeError, match=r"queries\.sql has no query named three"):
        load_queries(file).three  # noqa: B018 - the access is the test
    with pytest.raises(KeyError):
        load_queries(file)["three"]


@pytest.mark.parametrize("wrong", ["-- name: one\nselect 3\n", "-- name: three\n-- Nothing.\n"])
def test_name_that_comes_twice_or_has_no_sql_is_refused(file: Path, wrong: str) -> None:
    file.write_text(FILE + wrong, encoding="utf-8")
    with pytest.raises(ValueError, match=r"queries\.sql: query"):
        load_queries(file)
