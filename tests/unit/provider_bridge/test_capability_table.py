"""The page about providers says what the capability records say."""

from services.provider_bridge.capability_table import renewed
from services.provider_bridge.outbound.vendors.catalogue import KINDS
from tests.support.sources import ROOT

PAGE = ROOT / "docs" / "providers.md"


def test_the_page_is_fresh() -> None:
    page = PAGE.read_text(encoding="utf-8")
    made = renewed(page)
    assert page == made, "run: python -m services.provider_bridge.capability_table --write docs/providers.md"


def test_it_names_every_provider_and_shows_no_key() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for kind in KINDS:
        assert f"| `{kind.name}` |" in page
        assert all(field.variable in page for field in kind.credentials)
