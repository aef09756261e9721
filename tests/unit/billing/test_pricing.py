"""Prices, estimates and the rounding of machine seconds."""

import msgspec
import pytest

from services.billing.domain.pricing import Catalogue, Offer, cost_micro_usd, estimate
from services.billing.settings import CATALOGUE_FILE

OFFER = Offer(
    provider="local",
    hardware="cpu",
    price_micro_usd_per_hour=3_600_000,
    base_seconds=60,
    seconds_per_step=2,
    seconds_without_steps=3600,
)


@pytest.mark.parametrize(
    ("seconds", "price", "cost"),
    [
        (0, 5_490_000, 0),
        (3600, 5_490_000, 5_490_000),
        (1, 5_490_000, 1525),
        (1, 1799, 0),  # 0.4997 micro-dollars
        (1, 1800, 1),  # exactly half goes up
        (1, 5399, 1),
        (1, 5400, 2),
        (86_400 * 365, 100_000_000, 876_000_000_000),
    ],
)
def test_machine_seconds_cost_the_hourly_price_rounded_half_up(seconds: int, price: int, cost: int) -> None:
    assert cost_micro_usd(seconds, price) == cost


def test_an_estimate_counts_the_start_and_every_step() -> None:
    estimated = estimate(OFFER, 100)
    assert (estimated.seconds, estimated.amount_micro_usd) == (260, 260_000)


@pytest.mark.parametrize("steps", [None, 0, -1])
def test_a_job_that_counts_epochs_is_estimated_by_the_catalogues_assumption(steps: int | None) -> None:
    assert estimate(OFFER, steps).seconds == 3600


def test_the_price_of_one_provider_can_be_replaced() -> None:
    other = msgspec.structs.replace(OFFER, provider="rented")
    catalogue = Catalogue(offers=(OFFER, other)).repriced("local", 7)
    assert [offer.price_micro_usd_per_hour for offer in catalogue.offers] == [7, 3_600_000]
    assert catalogue.repriced("local", None) == catalogue


def test_the_shipped_catalogue_offers_this_machine_for_nothing() -> None:
    shipped = msgspec.json.decode(CATALOGUE_FILE.read_bytes(), type=Catalogue)
    local = shipped.offer("local")
    assert local is not None
    assert (local.hardware, local.price_micro_usd_per_hour) == ("cpu", 0)
    assert shipped.offer("moon") is None
