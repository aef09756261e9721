"""Whatever is told in whatever order, a provider's breaker, orphans and notes stay true to their rules."""

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.provider_bridge.domain.provider import (
    FAILURES,
    OPEN_FOR,
    SUCCESSES,
    Configure,
    CountFailures,
    CountSuccesses,
    EndOrphan,
    FindOrphan,
    NoteUnmatchedWebhook,
    ProviderCommand,
    ProviderState,
    PublishOffers,
    RefuseWebhook,
    RemoveCredential,
    StoreCredential,
    Suspend,
    TryAgain,
    decide,
    evolve,
)
from shared.contracts.job import Event
from shared.contracts.offers import Offer
from shared.contracts.provider import (
    ProviderBreakerMoved,
    ProviderOffersPublished,
    ProviderOrphanEnded,
    ProviderOrphanFound,
    ProviderWebhookRefused,
)

NAME = "runpod"
ID = UUID("01939b70-0000-7000-8000-000000000001")
T0 = datetime(2026, 11, 29, tzinfo=UTC)
moments = st.integers(0, 3600).map(lambda seconds: T0 + timedelta(seconds=seconds))
refs = st.sampled_from(["pod-1", "pod-2"])


def an_offer(price: int) -> Offer:
    return Offer(provider=NAME, hardware="h", gpu="H100", gpu_count=1, vram_gb=80, price_micro_usd_per_hour=price)


commands = st.one_of(
    st.builds(Configure, provider=st.just(NAME), settings=st.sampled_from([{}, {"a": 1}]), at=moments),
    st.builds(
        StoreCredential,
        provider=st.just(NAME),
        credential=st.just("key"),
        user_id=st.sampled_from([None, "ann"]),
        fingerprint=st.just("f"),
        at=moments,
    ),
    st.builds(
        RemoveCredential,
        provider=st.just(NAME),
        credential=st.just("key"),
        user_id=st.sampled_from([None, "ann"]),
        at=moments,
    ),
    st.builds(CountFailures, provider=st.just(NAME), failures=st.integers(1, 8), reason=st.just("503"), at=moments),
    st.builds(CountSuccesses, provider=st.just(NAME), successes=st.integers(1, 3), at=moments),
    st.builds(TryAgain, provider=st.just(NAME), at=moments),
    st.builds(
        Suspend,
        provider=st.just(NAME),
        kind=st.sampled_from(["no_funds", "credentials_refused"]),
        message=st.just("m"),
        at=moments,
    ),
    st.builds(
        PublishOffers,
        provider=st.just(NAME),
        offers=st.lists(st.integers(0, 2).map(an_offer), max_size=2),
        at=moments,
    ),
    st.builds(
        FindOrphan,
        provider=st.just(NAME),
        ref=refs,
        attempt_id=st.just(ID),
        epoch=st.just(1),
        why=st.just("unknown_attempt"),
        price_micro_usd_per_hour=st.just(3_600_000),
        started_at=st.none() | moments,
        at=moments,
    ),
    st.builds(
        EndOrphan,
        provider=st.just(NAME),
        ref=refs,
        job_id=st.none(),
        ended_at=moments,
        billed_s=st.none() | st.floats(0, 100),
    ),
    st.builds(
        RefuseWebhook,
        provider=st.just(NAME),
        reason=st.sampled_from(["ip_not_allowed", "invalid_signature"]),
        source_ip=st.just("192.0.2.1"),
        at=moments,
    ),
    st.builds(
        NoteUnmatchedWebhook,
        provider=st.just(NAME),
        webhook_id=st.sampled_from(["w1", "w2"]),
        ref=refs,
        word=st.just("done"),
        at=moments,
    ),
)


def history(asked: Sequence[ProviderCommand]) -> list[Event]:
    state, told = ProviderState(), list[Event]()
    for command in asked:
        events = decide(state, command)
        told += events
        for event in events:
            state = evolve(state, event)
        assert decide(state, command) == [], "a repeat"
    return told


@given(st.lists(commands, max_size=40))
def test_a_repeat_adds_nothing_and_the_breaker_only_makes_documented_moves(asked: list[ProviderCommand]) -> None:
    allowed = {"closed": {"open"}, "open": {"half_open"}, "half_open": {"open", "closed"}}
    at = "closed"
    for event in history(asked):
        if isinstance(event, ProviderBreakerMoved):
            assert event.state in allowed[at]
            assert (event.retry_at == event.moved_at + OPEN_FOR) == (event.state == "open")
            at = event.state


@given(st.lists(commands, max_size=40))
def test_every_orphan_that_is_found_is_ended_at_most_once_before_it_is_found_again(
    asked: list[ProviderCommand],
) -> None:
    open_orphans: set[str] = set()
    for event in history(asked):
        if isinstance(event, ProviderOrphanFound):
            assert event.ref not in open_orphans
            assert event.started_at <= event.found_at
            open_orphans.add(event.ref)
        if isinstance(event, ProviderOrphanEnded):
            assert event.seconds >= 0
            open_orphans.remove(event.ref)


@given(st.lists(commands, max_size=40))
def test_the_same_offers_are_published_once_and_refusals_once_a_minute(asked: list[ProviderCommand]) -> None:
    told = history(asked)
    published = [event.offers for event in told if isinstance(event, ProviderOffersPublished)]
    assert all(one != next_ for one, next_ in itertools.pairwise(published))
    refused = [
        (event.reason, event.refused_at.replace(second=0, microsecond=0))
        for event in told
        if isinstance(event, ProviderWebhookRefused)
    ]
    assert len(refused) == len(set(refused))


def test_the_breaker_opens_at_five_failures_tries_after_a_minute_and_closes_after_two_answers() -> None:
    def fail(failures: int, at: datetime) -> ProviderCommand:
        return CountFailures(provider=NAME, failures=failures, reason="503", at=at)

    assert history([fail(FAILURES - 1, T0)]) == []
    later = T0 + OPEN_FOR
    road: list[ProviderCommand] = [
        fail(FAILURES, T0),
        TryAgain(provider=NAME, at=later - timedelta(seconds=1)),
        TryAgain(provider=NAME, at=later),
        CountSuccesses(provider=NAME, successes=SUCCESSES - 1, at=later),
        CountSuccesses(provider=NAME, successes=SUCCESSES, at=later),
    ]
    moves = [event.state for event in history(road) if isinstance(event, ProviderBreakerMoved)]
    assert moves == ["open", "half_open", "closed"]
    again = [*road[:3], fail(1, later)]
    moves = [event.state for event in history(again) if isinstance(event, ProviderBreakerMoved)]
    assert moves == ["open", "half_open", "open"]


def test_new_settings_or_a_new_key_end_a_suspension() -> None:
    suspend = Suspend(provider=NAME, kind="no_funds", message="m", at=T0)
    state = evolve(ProviderState(), decide(ProviderState(), suspend)[0])
    assert state.suspended_at(T0) is not None
    assert state.suspended_at(T0 + timedelta(hours=2)) is None
    key = StoreCredential(provider=NAME, credential="key", user_id=None, fingerprint="f", at=T0)
    assert evolve(state, decide(state, key)[0]).suspended_at(T0) is None
