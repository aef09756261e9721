"""Where an attempt is placed: the table of reasons against an offer, and what makes one cheaper than another."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.domain.placement import (
    SHUNNED_FOR,
    Choice,
    KnownProvider,
    Market,
    Need,
    NoChoice,
    Record,
    Tried,
    choose,
    likely_price,
)
from shared.contracts.offers import HardwareRequest, Offer

NOW = datetime(2026, 11, 29, tzinfo=UTC)
USD = 1_000_000


def an_offer(provider: str = "runpod", price: float = 2.0, **changes: Any) -> Offer:
    base: dict[str, Any] = {
        "provider": provider,
        "hardware": "NVIDIA H100 80GB HBM3",
        "gpu": "H100 80GB HBM3",
        "gpu_count": 1,
        "vram_gb": 80,
        "price_micro_usd_per_hour": int(price * USD),
        "availability": "high",
    }
    return Offer(**{**base, **changes})


def a_market(*offers: Offer, records: dict[tuple[str, str], Record] | None = None, **state: Any) -> Market:
    names = dict.fromkeys(offer.provider for offer in offers)
    providers = tuple(
        KnownProvider(name=name, offers=tuple(offer for offer in offers if offer.provider == name), **state)
        for name in names
    )
    return Market(providers=providers, records=records or {})


def a_need(provider: str = "auto", steps: int | None = 1000, tried: tuple[Tried, ...] = (), **request: Any) -> Need:
    return Need(provider=provider, request=HardwareRequest(**request), steps_left=steps, tried=tried)


def chosen(need: Need, market: Market) -> Offer:
    choice = choose(need, market, NOW)
    assert isinstance(choice, Choice), choice
    return choice.offer


def test_the_cheaper_of_two_equal_machines_is_taken_and_the_event_says_what_the_other_would_cost() -> None:
    dear, cheap = an_offer("lambda", 3.0), an_offer("runpod", 2.0)
    choice = choose(a_need(), a_market(dear, cheap), NOW)
    assert isinstance(choice, Choice)
    assert choice.offer == cheap
    [other] = choice.considered
    assert (other.provider, other.against) == ("lambda", None)
    assert other.expected_micro_usd is not None
    assert "next is lambda" in choice.reason


def test_a_machine_that_breaks_often_costs_more_than_a_dearer_one_that_does_not() -> None:
    shaky, sound = an_offer("runpod", 2.0), an_offer("lambda", 2.2)
    records = {("runpod", shaky.hardware): Record(ended=20, broke=12)}
    assert chosen(a_need(), a_market(shaky, sound)) == shaky
    assert chosen(a_need(), a_market(shaky, sound, records=records)) == sound


def test_a_machine_that_boots_for_an_hour_is_dear_for_a_short_job_and_cheap_for_a_long_one() -> None:
    slow, quick = an_offer("runpod", 2.0), an_offer("lambda", 2.5)
    records = {("runpod", slow.hardware): Record(boots=30, boot_s=30 * 3600.0)}
    market = a_market(slow, quick, records=records)
    assert chosen(a_need(steps=100), market) == quick
    assert chosen(a_need(steps=100_000), market) == slow


def test_a_dear_machine_that_is_three_times_as_fast_is_cheaper_in_the_end() -> None:
    slow, fast = an_offer("runpod", 2.0), an_offer("lambda", 4.0)
    records = {("lambda", fast.hardware): Record(ended=5, steps=100_000, run_s=60_000.0)}
    assert chosen(a_need(steps=10_000), a_market(slow, fast, records=records)) == fast


@pytest.mark.parametrize(
    ("request_", "offer", "against"),
    [
        ({"min_vram_gb": 81}, {}, "less than 81"),
        ({"gpu_count": 2}, {}, "1 GPUs, not 2"),
        ({"gpu": "*A100*"}, {}, "no *A100*"),
        ({"hardware": "h100-x2"}, {}, "other hardware"),
        ({"max_price_micro_usd_per_hour": USD}, {}, "costs more"),
        ({"regions": ["eu"]}, {"region": "us"}, "another region"),
        ({}, {"spot": True}, "taken away"),
        ({"providers": ["lambda"]}, {}, "another provider"),
        ({"labels": {"room": "lab-*"}}, {"labels": {"room": "attic"}}, "labels"),
        ({}, {"availability": "none"}, "none is free"),
    ],
)
def test_an_offer_that_does_not_fit_is_out_and_the_reason_is_told(
    request_: dict[str, Any], offer: dict[str, Any], against: str
) -> None:
    choice = choose(a_need(**request_), a_market(an_offer(**offer)), NOW)
    assert isinstance(choice, NoChoice)
    [one] = choice.considered
    assert against in (one.against or "")
    assert against in choice.message


@pytest.mark.parametrize(
    "request_",
    [
        {"min_vram_gb": 80},
        {"gpu": "*h100*"},
        {"hardware": "h100"},
        {"hardware": "NVIDIA H100 80GB HBM3"},
        {"labels": {"room": "lab-*"}},
        {"regions": ["us"]},
        {"max_price_micro_usd_per_hour": 2 * USD},
    ],
)
def test_an_offer_that_fits_exactly_is_taken(request_: dict[str, Any]) -> None:
    offer = an_offer(region="us", labels={"room": "lab-2"})
    assert chosen(a_need(**request_), a_market(offer)) == offer


def test_a_named_provider_is_the_only_one() -> None:
    market = a_market(an_offer("lambda", 3.0), an_offer("runpod", 2.0))
    assert chosen(a_need("lambda"), market).provider == "lambda"


def test_after_no_capacity_the_next_offer_is_tried_and_the_first_again_after_a_while() -> None:
    first, second = an_offer("runpod", 2.0), an_offer("lambda", 3.0)
    market = a_market(first, second)
    turned_away = Tried(provider="runpod", hardware=first.hardware, region=None, kind="no_capacity", at=NOW)
    need = a_need(tried=(turned_away,))
    assert chosen(need, market) == second
    later = choose(need, market, NOW + SHUNNED_FOR)
    assert isinstance(later, Choice)
    assert later.offer == first


def test_a_provider_without_money_is_passed_over_with_all_its_offers() -> None:
    market = a_market(an_offer("runpod", 1.0, region="us"), an_offer("runpod", 1.0, region="eu"), an_offer("lambda"))
    broke = Tried(provider="runpod", hardware="NVIDIA H100 80GB HBM3", region="us", kind="no_funds", at=NOW)
    assert chosen(a_need(tried=(broke,)), market).provider == "lambda"


@pytest.mark.parametrize(
    "state",
    [{"suspended_until": NOW + timedelta(hours=1)}, {"breaker_open_until": NOW + timedelta(seconds=1)}],
)
def test_a_provider_that_is_closed_is_passed_over_until_it_opens(state: dict[str, Any]) -> None:
    market = a_market(an_offer(), **state)
    assert isinstance(choose(a_need(), market, NOW), NoChoice)
    assert isinstance(choose(a_need(), market, NOW + timedelta(hours=1)), Choice)


def test_money_is_set_aside_at_the_best_offer_even_while_none_is_free() -> None:
    market = a_market(an_offer("runpod", 2.0, availability="none"), an_offer("lambda", 3.0))
    assert likely_price(a_need(), market) == 2 * USD
    assert likely_price(a_need("lambda"), market) == 3 * USD
    assert likely_price(a_need("kaggle"), market) is None
    assert likely_price(a_need("kaggle", max_price_micro_usd_per_hour=5), market) == 5


offers = st.builds(
    an_offer,
    provider=st.sampled_from(["runpod", "lambda"]),
    price=st.floats(0, 10),
    gpu_count=st.sampled_from([1, 2]),
    vram_gb=st.sampled_from([24, 80]),
    region=st.sampled_from([None, "us"]),
    spot=st.booleans(),
    availability=st.sampled_from(["none", "low", "unknown"]),
)
requests = st.builds(
    HardwareRequest,
    gpu_count=st.sampled_from([1, 2]),
    min_vram_gb=st.sampled_from([None, 80]),
    max_price_micro_usd_per_hour=st.none() | st.integers(0, 10 * USD),
    allow_spot=st.booleans(),
)


@given(st.lists(offers, max_size=6), requests)
def test_whatever_is_on_offer_the_choice_keeps_to_the_request_and_does_not_depend_on_its_order(
    on_offer: list[Offer], request_: HardwareRequest
) -> None:
    need = Need(provider="auto", request=request_, steps_left=100)
    choice = choose(need, a_market(*on_offer), NOW)
    assert (
        choose(need, a_market(*reversed(on_offer)), NOW) == choice
        or isinstance(choice, NoChoice)
        or (choice.offer in on_offer)
    )
    if isinstance(choice, NoChoice):
        return
    offer = choice.offer
    assert offer.gpu_count == request_.gpu_count
    assert request_.min_vram_gb is None or offer.vram_gb >= request_.min_vram_gb
    ceiling = request_.max_price_micro_usd_per_hour
    assert ceiling is None or offer.price_micro_usd_per_hour <= ceiling
    assert request_.allow_spot or not offer.spot
    assert offer.availability != "none"


@pytest.mark.parametrize(
    ("gpu_count", "need", "fits"),
    [
        (0, a_need("worker"), True),
        (4, a_need("worker"), True),
        (0, a_need("auto"), False),
        (4, a_need("auto"), True),
        (1, a_need("worker", gpu_count=2), False),
        (4, a_need("worker", gpu_count=2), True),
        (0, a_need("worker", labels={"room": "*"}), False),
    ],
)
def test_an_own_worker_is_taken_as_it_is_unless_something_is_asked_of_it(
    gpu_count: int,
    need: Need,
    fits: bool,  # noqa: FBT001 - a table
) -> None:
    own = an_offer("worker", 0.0, gpu_count=gpu_count, labels={"room": "lab"})
    assert isinstance(choose(need, a_market(own), NOW), Choice) == fits
