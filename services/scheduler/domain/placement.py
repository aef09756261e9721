"""Where an attempt runs: the offer at which the job is expected to cost least until it is done. Pure.

What a job costs at an offer is the price of the hours from the machine's start to the model: the wait for the machine
as our own log has measured it, the steps that are left at the pace measured there, and what is expected to be lost
because runs break there. Where the log knows nothing yet, the figures below stand in, and give way as it learns.
"""

import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from shared.contracts.job import ConsideredOffer
from shared.contracts.offers import AUTO, HardwareRequest, Offer

FIRST_GUESS_BOOT_S = 180.0
FIRST_GUESS_STEP_S = 2.0
FIRST_GUESS_FAILURE = 0.05
SPOT_FAILURE = 0.2
"""Added to what is expected of a machine that may be taken away."""
_GUESS_WEIGHT = 3
"""A first guess counts like so many observations."""
_MOST_LIKELY_FAILURE = 0.9
SHUNNED_FOR = timedelta(minutes=10)
"""How long an offer without capacity is not tried again for the same job."""
REFUSED_FOR = timedelta(hours=6)
MAX_CONSIDERED = 10
OWN_WORKERS = "worker"
SECONDS_PER_HOUR = 3600


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """How attempts went on one kind of hardware, as the log tells."""

    boots: int = 0
    boot_s: float = 0.0
    """Sum over all boots, from the intent to the trainer's hello."""
    ended: int = 0
    broke: int = 0
    """Of those that ended: lost, preempted, or failed through no fault of the job."""
    steps: int = 0
    run_s: float = 0.0
    """Sum over the attempts that trained those steps."""


class KnownProvider(msgspec.Struct, frozen=True, kw_only=True):
    """A provider as its events tell it."""

    name: str
    offers: tuple[Offer, ...] = ()
    suspended_until: datetime | None = None
    suspended_why: str = ""
    breaker_open_until: datetime | None = None


class Market(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be had, and how it went so far. Keys of `records` are provider and hardware."""

    providers: tuple[KnownProvider, ...] = ()
    records: Mapping[tuple[str, str], Record] = {}


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt of the same job that failed there."""

    provider: str
    hardware: str
    region: str | None
    kind: str
    at: datetime


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked for. `steps_left` None: nobody knows before the data is read."""

    provider: str
    request: HardwareRequest
    steps_left: int | None
    tried: tuple[Tried, ...] = ()


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The best offer, why, and what else was looked at."""

    offer: Offer
    reason: str
    considered: tuple[ConsideredOffer, ...]


class NoChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing fits now."""

    message: str
    considered: tuple[ConsideredOffer, ...]


class _Ranked(msgspec.Struct, frozen=True, kw_only=True):
    offer: Offer
    expected_s: float
    cost: float


def choose(need: Need, market: Market, now: datetime) -> Choice | NoChoice:
    """The offer of the lowest expected cost; of equal ones the sooner, then the first by name."""
    fitting, unfit = _sorted_out(need, market, now)
    if not fitting:
        return NoChoice(message=_why_nothing(need, market, unfit), considered=tuple(unfit[:MAX_CONSIDERED]))
    ranked = sorted((_rank(offer, need, market) for offer in fitting), key=_order)
    best, others = ranked[0], ranked[1:]
    considered = [*(_shown(one) for one in others), *unfit][:MAX_CONSIDERED]
    return Choice(offer=best.offer, reason=_reason(best, others, need, market), considered=tuple(considered))


def likely_price(need: Need, market: Market) -> int | None:
    """Micro-dollars an hour to set money aside for: of the best offer, whether or not it can be had at this moment.

    The job's own ceiling stands in where nothing is known; None: neither is there.
    """
    loose = msgspec.structs.replace(need, tried=())
    ceiling = need.request.max_price_micro_usd_per_hour
    offers = [
        msgspec.structs.replace(offer, availability="unknown")
        for provider in market.providers
        if need.provider in {AUTO, provider.name}
        for offer in provider.offers
        if _objection(offer, loose) in {None, _NONE_NOW}
    ]
    if not offers:
        return ceiling
    return min((_rank(offer, loose, market) for offer in offers), key=_order).offer.price_micro_usd_per_hour


def _order(ranked: _Ranked) -> tuple[float, float, str, str, str]:
    offer = ranked.offer
    return (ranked.cost, ranked.expected_s, offer.provider, offer.hardware, offer.region or "")


def _sorted_out(need: Need, market: Market, now: datetime) -> tuple[list[Offer], list[ConsideredOffer]]:
    fitting: list[Offer] = []
    unfit: list[ConsideredOffer] = []
    for provider in market.providers:
        if need.provider not in {AUTO, provider.name}:
            continue
        closed = _closed(provider, now)
        for offer in provider.offers:
            against = _objection(offer, need) or closed or _shunned(offer, need.tried, now)
            if against is None:
                fitting.append(offer)
            else:
                unfit.append(_considered(offer, against=against))
    return fitting, unfit


def _closed(provider: KnownProvider, now: datetime) -> str | None:
    if provider.suspended_until is not None and now < provider.suspended_until:
        return f"the provider is suspended: {provider.suspended_why}"
    if provider.breaker_open_until is not None and now < provider.breaker_open_until:
        return "the provider does not answer"
    return None


_NONE_NOW = "none is free"


def _objection(offer: Offer, need: Need) -> str | None:  # noqa: PLR0911 - one line for each thing a job may ask
    """Why the job cannot be there at all; None if it can."""
    asked = need.request
    if asked.providers and offer.provider not in asked.providers:
        return "another provider was asked for"
    if asked.hardware is not None and not _is_profile(offer, asked.hardware):
        return "other hardware was asked for"
    if asked.gpu is not None and not fnmatch.fnmatchcase(offer.gpu.casefold(), asked.gpu.casefold()):
        return f"its GPU is no {asked.gpu}"
    if asked.hardware is None and not _has_gpus(offer, need):
        return f"it has {offer.gpu_count} GPUs, not {asked.gpu_count}"
    if asked.min_vram_gb is not None and offer.vram_gb < asked.min_vram_gb:
        return f"{offer.vram_gb} GB of GPU memory are less than {asked.min_vram_gb}"
    ceiling = asked.max_price_micro_usd_per_hour
    if ceiling is not None and offer.price_micro_usd_per_hour > ceiling:
        return "it costs more than the job may"
    if asked.regions and offer.region not in asked.regions:
        return "another region was asked for"
    if offer.spot and not asked.allow_spot:
        return "it may be taken away, which the job does not allow"
    if not all(fnmatch.fnmatchcase(offer.labels.get(name, ""), glob) for name, glob in asked.labels.items()):
        return "its labels do not match"
    return _NONE_NOW if offer.availability == "none" else None


def _has_gpus(offer: Offer, need: Need) -> bool:
    """Whether it has the GPUs: of rented machines just so many, of own ones at least.

    A job that names own workers and asks for nothing takes any of them.
    """
    if offer.provider != OWN_WORKERS:
        return offer.gpu_count == need.request.gpu_count
    takes_any = need.provider == OWN_WORKERS and need.request == HardwareRequest()
    return takes_any or offer.gpu_count >= need.request.gpu_count


def _is_profile(offer: Offer, name: str) -> bool:
    """Whether the offer is this hardware: the provider's own id, or a profile such as `h100-x2`."""
    if name.casefold() == offer.hardware.casefold():
        return True
    found = re.fullmatch(r"([a-z0-9]+?)(?:-x(\d+))?", name.casefold())
    if found is None:
        return False
    return found[1] in re.split(r"[^a-z0-9]+", offer.gpu.casefold()) and offer.gpu_count == int(found[2] or 1)


def _shunned(offer: Offer, tried: Iterable[Tried], now: datetime) -> str | None:
    """Whether this job was turned away there a short while ago."""
    for one in tried:
        is_same = (one.provider, one.hardware, one.region) == (offer.provider, offer.hardware, offer.region)
        if is_same and one.kind == "no_capacity" and now < one.at + SHUNNED_FOR:
            return "it had no capacity a moment ago"
        if is_same and one.kind == "start_refused" and now < one.at + REFUSED_FOR:
            return "it refused this job"
        is_closed = one.provider == offer.provider and one.kind in {"no_funds", "credentials_refused"}
        if is_closed and now < one.at + SHUNNED_FOR:
            return "the provider takes no new runs of ours"
    return None


def _rank(offer: Offer, need: Need, market: Market) -> _Ranked:
    record = market.records.get((offer.provider, offer.hardware), Record())
    boot_s = (record.boot_s + FIRST_GUESS_BOOT_S * _GUESS_WEIGHT) / (record.boots + _GUESS_WEIGHT)
    broken = _failure(offer, record, need.tried)
    run_s = _run_s(record, need)
    sessions = max(1, math.ceil(run_s / offer.max_run_s)) if offer.max_run_s else 1
    # A run that breaks is begun again, and on the average half of it is lost with its last checkpoint.
    again = broken / (1 - broken)
    expected_s = boot_s * (sessions + again) + run_s * (1 + again / 2)
    return _Ranked(
        offer=offer,
        expected_s=expected_s,
        cost=expected_s / SECONDS_PER_HOUR * offer.price_micro_usd_per_hour,
    )


def _failure(offer: Offer, record: Record, tried: Iterable[Tried]) -> float:
    guess = FIRST_GUESS_FAILURE + (SPOT_FAILURE if offer.spot else 0.0)
    measured = (record.broke + guess * _GUESS_WEIGHT) / (record.ended + _GUESS_WEIGHT)
    broke_before = sum(
        one.provider == offer.provider and one.hardware == offer.hardware and one.kind in BREAKS for one in tried
    )
    return min(_MOST_LIKELY_FAILURE, measured + 0.2 * broke_before)


BREAKS = frozenset({"lost", "killed", "preempted", "gpu_fault", "unreachable"})
"""Failures that speak against a machine."""


def _run_s(record: Record, need: Need) -> float:
    steps = 1000 if need.steps_left is None else max(need.steps_left, 1)
    guessed = 100
    return steps * (record.run_s + FIRST_GUESS_STEP_S * guessed) / (record.steps + guessed)


def _shown(ranked: _Ranked) -> ConsideredOffer:
    return msgspec.structs.replace(
        _considered(ranked.offer), expected_s=round(ranked.expected_s), expected_micro_usd=round(ranked.cost)
    )


def _considered(offer: Offer, *, against: str | None = None) -> ConsideredOffer:
    return ConsideredOffer(
        provider=offer.provider,
        hardware=offer.hardware,
        region=offer.region,
        price_micro_usd_per_hour=offer.price_micro_usd_per_hour,
        against=against,
    )


def _reason(best: _Ranked, others: Sequence[_Ranked], need: Need, market: Market) -> str:
    offer = best.offer
    where = f"{offer.provider} {offer.hardware}" + (f" in {offer.region}" if offer.region else "")
    told = f"{where}: about {_usd(best.cost)} and {_duration(best.expected_s)} to finish"
    record = market.records.get((offer.provider, offer.hardware), Record())
    known = f"{record.ended} runs there before, {record.broke} of them broke" if record.ended else "no run there before"
    if not others:
        return f"{told} ({known}); the only offer that fits"
    next_ = others[0]
    also = f"next is {next_.offer.provider} {next_.offer.hardware} at {_usd(next_.cost)}"
    again = f"; moved on after {need.tried[-1].kind} at {need.tried[-1].provider}" if need.tried else ""
    return f"{told} ({known}); cheapest of {len(others) + 1} that fit, {also}{again}"


def _why_nothing(need: Need, market: Market, unfit: Sequence[ConsideredOffer]) -> str:
    where = "any provider" if need.provider == AUTO else need.provider
    if not unfit:
        names = ", ".join(provider.name for provider in market.providers) or "none"
        return f"No offer of {where} is known (providers that are set up: {names})."
    reasons: dict[str, int] = {}
    for one in unfit:
        reasons[one.against or ""] = reasons.get(one.against or "", 0) + 1
    most = sorted(reasons.items(), key=lambda item: -item[1])[:3]
    return f"None of {len(unfit)} offers of {where} fits: " + "; ".join(f"{why} ({count})" for why, count in most) + "."


def _usd(micro_usd: float) -> str:
    return f"{micro_usd / 1_000_000:.2f} USD"


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"  # noqa: PLR2004 - an hour
