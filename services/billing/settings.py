"""Billing's settings and its price catalogue; `Settings` is read from the environment in `__main__` only."""

from pathlib import Path

import msgspec

from services.billing.domain.pricing import Catalogue
from shared.service import CoreSettings

CATALOGUE_FILE = Path(__file__).with_name("catalogue.json")


class Settings(CoreSettings, frozen=True, kw_only=True):
    """CoreSettings, the price of this machine, and how far a month's account may be drawn below zero."""

    billing_local_micro_usd_per_hour: int | None = None
    """Price of provider `local`; without it the catalogue's (0) holds."""
    billing_default_floor_micro_usd: int | None = None
    """-50000000 lets each owner spend 50 USD a month; without it there is no limit. Fixed when a month is opened."""


def catalogue(settings: Settings) -> Catalogue:
    """The prices that ship with billing, with those of the settings in their place."""
    shipped = msgspec.json.decode(CATALOGUE_FILE.read_bytes(), type=Catalogue)
    return shipped.repriced("local", settings.billing_local_micro_usd_per_hour)
