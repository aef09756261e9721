"""A code that a client meets can be looked up."""

import re

from shared.problems import CODES
from tests.support.sources import ROOT

PAGE = ROOT / "docs" / "problems.md"


def _sections() -> dict[str, str]:
    parts = re.split(r"^## `(\w+)`\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_problem_code_is_documented() -> None:
    sections = _sections()
    assert sections.keys() == CODES.keys()
    for code, text in sections.items():
        assert CODES[code] in text, f"{code}: the page gives its title"
        assert "**When**" in text, f"{code}: the page says when"
        assert "**What to do**" in text, f"{code}: the page says what to do"


def test_codes_are_in_the_page_in_alphabetical_order() -> None:
    assert list(_sections()) == sorted(CODES)
