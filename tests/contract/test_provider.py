"""What the bridge relies on, whichever provider it talks to. Every implementation runs this whole file."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import get_args
from uuid import UUID

import pytest
import stamina

from services.provider_bridge.domain.provider_status import RunStatus, UnknownWord, read_word
from services.provider_bridge.outbound.ports import (
    CredentialRefused,
    NoCapacity,
    NoFunds,
    Provider,
    RunView,
    StaleEpoch,
    StartOrder,
    Tag,
    WebhookRefused,
)
from shared.contracts.run import RunSpec
from shared.ids import new_id
from shared.problems import Unavailable
from tests.contract.providers.case import Case, Trouble
from tests.contract.providers.cases import CASES, ON_DATABASE
from tests.integration.provider_bridge import stand_in_trainer as stand_in
from tests.support.log import LogDatabase

GRACE_S = 0.3
TOKEN = "the-run's-own-token-77c1"
ENDED = frozenset({RunStatus.ENDED, RunStatus.GONE})


@pytest.fixture
def database(request: pytest.FixtureRequest) -> LogDatabase | None:
    """A database for those who need one."""
    wanted = request.node.callspec.params["case"] in ON_DATABASE
    return request.getfixturevalue("log_database") if wanted else None


@pytest.fixture(autouse=True)
def no_waits_between_tries() -> Iterator[None]:
    """Reads are repeated as often as ever, but at once; tests/unit/provider_bridge/test_egress.py is about waits."""
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


@pytest.fixture(params=[*CASES, *ON_DATABASE])
async def case(request: pytest.FixtureRequest, tmp_path: Path, database: LogDatabase | None) -> AsyncIterator[Case]:
    name = request.param
    async with CASES[name](tmp_path) if database is None else ON_DATABASE[name](tmp_path, database) as built:
        yield built


def a_tag(epoch: int = 1, attempt_id: UUID | None = None) -> Tag:
    return Tag(attempt_id=attempt_id or new_id(), epoch=epoch)


def a_spec(tag: Tag, *, code: int | None = None, stubborn: bool = False) -> RunSpec:
    return stand_in.a_spec(tag.attempt_id, **({} if code is None else {"code": code}), stubborn=stubborn)


def an_order(tag: Tag, spec: RunSpec | None = None, token: str = TOKEN) -> StartOrder:
    return StartOrder(tag=tag, spec=spec or a_spec(tag), token=token)


async def until(provider: Provider, ref: str, *statuses: RunStatus) -> RunView:
    async def reached() -> RunView | None:
        view = await provider.fetch(ref)
        return view if view and read_word(provider.name, view.word) in statuses else None

    return await stand_in.eventually(f"{ref} is {statuses}", reached)


async def until_over(provider: Provider, ref: str) -> RunView | None:
    """The run once it has ended; None when the provider forgets it then."""

    async def reached() -> tuple[RunView | None] | None:
        view = await provider.fetch(ref)
        return (view,) if view is None or read_word(provider.name, view.word) in ENDED else None

    (view,) = await stand_in.eventually(f"{ref} is over", reached)
    return view


async def started(case: Case, provider: Provider, tag: Tag, spec: RunSpec | None = None) -> str:
    """A run that has left the queue."""
    ref = await provider.submit(an_order(tag, spec))
    case.begin(tag.attempt_id)

    async def running() -> bool:
        return case.starts(tag.attempt_id) > 0

    await stand_in.eventually("the trainer runs", running)
    return ref


async def test_every_word_a_run_goes_through_is_known(case: Case) -> None:
    provider, tag = case.connect(), a_tag()
    ref = await provider.submit(an_order(tag))
    await until(provider, ref, RunStatus.QUEUED, RunStatus.RUNNING)
    case.begin(tag.attempt_id)
    await until(provider, ref, RunStatus.RUNNING)

    async def starts() -> bool:
        return case.starts(tag.attempt_id) == 1

    await stand_in.eventually("the trainer runs", starts)
    case.finish(tag.attempt_id)
    view = await until_over(provider, ref)
    assert not provider.capabilities.knows_outcome or (view is not None and view.exit_code == 0)


async def test_a_word_nobody_has_seen_before_is_passed_on_as_it_is(case: Case) -> None:
    provider, tag = case.connect(), a_tag()
    ref = await started(case, provider, tag)
    case.say(tag.attempt_id, "reticulating")
    view = await provider.fetch(ref)
    assert view is not None
    assert view.word == "reticulating"
    assert isinstance(read_word(provider.name, view.word), UnknownWord)
    assert not await provider.confirm_gone(ref)


async def test_resubmit_after_a_lost_reply_finds_the_first_run_and_starts_no_second(case: Case) -> None:
    tag = a_tag()
    first = await started(case, case.connect(), tag)
    assert await case.connect().submit(an_order(tag)) == first
    assert case.starts(tag.attempt_id) == 1


async def test_a_newer_epoch_is_not_handed_the_run_of_an_older_one_whose_token_is_worth_nothing(case: Case) -> None:
    tag = a_tag()
    provider = case.connect()
    first = await started(case, provider, tag)
    newer = a_tag(2, tag.attempt_id)
    second = await case.connect().submit(an_order(newer, a_spec(tag), "another"))
    if provider.capabilities.fences_epochs:
        assert second == first
        return
    assert second != first
    case.begin(tag.attempt_id)
    found = await provider.find(newer)
    assert found is not None
    assert (found.ref, found.epoch) == (second, 2)
    assert {(run.tag.epoch, run.ref) for run in await provider.list_ours()} == {(1, first), (2, second)}


async def test_a_start_whose_reply_was_lost_is_found_by_its_tag(case: Case) -> None:
    provider, tag = case.connect(), a_tag()
    case.lose_next_reply()
    with pytest.raises(Unavailable):
        await provider.submit(an_order(tag))
    found = await case.connect().find(a_tag(2, tag.attempt_id))
    assert found is not None
    assert case.starts(tag.attempt_id) == 1
    assert [run.ref for run in await provider.list_ours()] == [found.ref]


async def test_a_run_is_found_by_its_tag_after_the_bridge_was_restarted(case: Case) -> None:
    tag = a_tag()
    ref = await case.connect().submit(an_order(tag))
    found = await case.connect().find(a_tag(2, tag.attempt_id))
    assert found is not None
    assert found.ref == ref


async def test_nothing_is_found_where_nothing_was_started(case: Case) -> None:
    assert await case.connect().find(a_tag()) is None
    assert await case.connect().fetch(str(new_id())) is None
    assert await case.connect().list_ours() == []


async def test_after_a_newer_epoch_has_asked_an_older_one_starts_and_stops_nothing(case: Case) -> None:
    provider, tag = case.connect(), a_tag(1)
    newer = a_tag(2, tag.attempt_id)
    assert await provider.find(newer) is None
    with pytest.raises(StaleEpoch):
        await provider.submit(an_order(tag))
    with pytest.raises(StaleEpoch):
        await provider.find(tag)
    ref = await started(case, provider, newer)
    with pytest.raises(StaleEpoch):
        await provider.cancel(tag, ref, GRACE_S)
    assert case.starts(tag.attempt_id) == 1
    assert not await provider.confirm_gone(ref)


@pytest.mark.parametrize("code", [0, 64, 70, 75, 77])
async def test_a_finished_run_keeps_its_exit_code(case: Case, code: int) -> None:
    provider, tag = case.connect(), a_tag()
    if not provider.capabilities.knows_outcome:
        pytest.skip("only the trainer's report tells")
    ref = await started(case, provider, tag, a_spec(tag, code=code))
    case.finish(tag.attempt_id, code)
    view = await until(case.connect(), ref, RunStatus.ENDED)
    assert view.exit_code == code
    assert view.ended_at is not None


async def test_a_run_that_was_taken_away_is_seen_to_be_gone(case: Case) -> None:
    provider, tag = case.connect(), a_tag()
    ref = await started(case, provider, tag)
    case.vanish(tag.attempt_id)
    await until_over(provider, ref)

    async def gone() -> bool:
        return await provider.confirm_gone(ref)

    await stand_in.eventually("nothing of it is alive", gone)


async def test_cancel_ends_the_run_and_repeating_it_is_harmless(case: Case) -> None:
    provider, tag = case.connect(), a_tag()
    if not provider.capabilities.can_cancel:
        pytest.skip("it cannot be cancelled, and says so")
    ref = await started(case, provider, tag)
    await provider.cancel(tag, ref, 30)
    await provider.cancel(tag, ref, 30)
    await until_over(provider, ref)
    await provider.cancel(tag, ref, 30)


async def test_a_run_that_ignores_cancel_is_ended_by_force_after_its_grace(case: Case) -> None:
    provider, tag = case.connect(), a_tag()
    if not provider.capabilities.can_cancel:
        pytest.skip("it cannot be cancelled, and says so")
    ref = await started(case, provider, tag, a_spec(tag, stubborn=True))
    await provider.cancel(tag, ref, GRACE_S)

    async def gone() -> bool:
        await provider.cancel(tag, ref, GRACE_S)
        return await provider.confirm_gone(ref)

    await stand_in.eventually("it is ended by force", gone)


async def test_cancel_of_an_unknown_run_is_not_an_error(case: Case) -> None:
    tag = a_tag()
    await case.connect().cancel(tag, str(tag.attempt_id), GRACE_S)


async def test_gone_is_confirmed_only_when_nothing_is_alive(case: Case) -> None:
    provider, tag = case.connect(), a_tag()
    assert await provider.confirm_gone(str(new_id()))
    ref = await started(case, provider, tag)
    assert not await provider.confirm_gone(ref)
    case.vanish(tag.attempt_id)

    async def gone() -> bool:
        return await provider.confirm_gone(ref)

    await stand_in.eventually("the run is gone", gone)


async def test_living_runs_are_listed_and_those_that_are_gone_are_not(case: Case) -> None:
    provider, tag = case.connect(), a_tag(3)
    ref = await started(case, provider, tag)
    [ours] = await case.connect().list_ours()
    assert (ours.tag, ours.ref) == (tag, ref)
    case.vanish(tag.attempt_id)

    async def unlisted() -> bool:
        return await provider.list_ours() == []

    await stand_in.eventually("the ended run is not listed", unlisted)


async def test_runs_of_another_installation_in_the_same_account_are_not_ours(case: Case) -> None:
    tag = a_tag()
    theirs = await started(case, case.connect(installation="99999999"), tag)
    ours = case.connect()
    assert await ours.list_ours() == []
    assert await ours.find(a_tag(2, tag.attempt_id)) is None
    assert not await ours.confirm_gone(theirs)


@pytest.mark.parametrize("kind", get_args(Trouble))
async def test_a_provider_in_trouble_is_unavailable_whatever_is_asked(case: Case, kind: Trouble) -> None:
    provider, tag = case.connect(), a_tag()
    ref = await started(case, provider, tag)
    case.trouble(kind)
    asking = (
        provider.fetch(ref),
        provider.find(tag),
        provider.list_ours(),
        provider.confirm_gone(ref),
        provider.submit(an_order(a_tag())),
    )
    with stamina.set_testing(True, attempts=3, cap=True):  # as often as ever, without the pauses
        for asked in asking:
            with pytest.raises(Unavailable):
                await asked
    case.trouble(None)
    assert await provider.fetch(ref) is not None
    assert case.starts(tag.attempt_id) == 1


async def test_want_of_machines_is_told_from_other_refusals_and_starts_nothing(case: Case) -> None:
    provider, tag = case.connect(), a_tag()
    case.lack("capacity")
    with pytest.raises(NoCapacity):
        await provider.submit(an_order(tag))
    case.lack(None)
    assert case.starts(tag.attempt_id) == 0
    await provider.submit(an_order(tag))


async def test_want_of_money_is_told_from_other_refusals_and_starts_nothing(case: Case) -> None:
    provider, tag = case.connect(), a_tag()
    case.lack("funds")
    with pytest.raises(NoFunds):
        await provider.submit(an_order(tag))
    assert case.starts(tag.attempt_id) == 0


async def test_a_key_that_is_refused_is_named_as_such(case: Case) -> None:
    with pytest.raises(CredentialRefused):
        await case.connect(key="wrong-key").validate_credentials()
    assert (await case.connect().validate_credentials()).username


async def test_an_offer_names_its_provider_and_a_price_that_is_not_negative(case: Case) -> None:
    provider = case.connect()
    offers = await provider.quote()
    assert offers
    for offer in offers:
        assert offer.provider == provider.name
        assert offer.hardware
        assert offer.price_micro_usd_per_hour >= 0


async def test_what_a_run_writes_is_read_once_however_it_is_paged(case: Case) -> None:
    provider, tag = case.connect(), a_tag()
    ref = await started(case, provider, tag)
    case.finish(tag.attempt_id)
    await until_over(provider, ref)
    first = await provider.logs(ref, None)
    assert (await provider.logs(ref, first.cursor)).lines == []


async def test_a_genuine_webhook_is_believed_and_one_that_was_touched_is_not(case: Case) -> None:
    provider, tag = case.connect(), a_tag()
    ref = await started(case, provider, tag)
    headers, query, body = case.webhook(tag.attempt_id)
    if not provider.capabilities.webhooks:
        with pytest.raises(WebhookRefused):
            provider.verify_webhook(headers, query, body)
        return
    note = provider.verify_webhook(headers, query, body)
    assert (note.ref, note.attempt_id) == (ref, tag.attempt_id)
    with pytest.raises(WebhookRefused):
        provider.verify_webhook({}, {}, body)


async def test_no_secret_travels_in_an_address(case: Case) -> None:
    provider, tag = case.connect(), a_tag()
    ref = await started(case, provider, tag)
    await provider.fetch(ref)
    await provider.list_ours()
    for path, _headers in case.requests():
        assert TOKEN not in path
        assert "key=" not in path.lower()


async def test_closing_twice_is_harmless(case: Case) -> None:
    provider = case.connect()
    await provider.close()
    await provider.close()
