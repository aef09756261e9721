"""What the bridge relies on, whichever provider it talks to. Every implementation runs this whole file."""

import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from services.provider_bridge.domain.provider_status import RunStatus, read_word
from services.provider_bridge.outbound.local import LocalOptions, LocalProvider
from services.provider_bridge.outbound.ports import Provider, RunView, StaleEpoch, Tag
from shared.contracts.run import RunSpec
from shared.ids import new_id
from tests.integration.provider_bridge import stand_in_trainer as stand_in

GRACE_S = 0.3


class Case(msgspec.Struct):
    """A provider under test: `connect` makes a new client, as a restarted bridge would; `starts` counts real runs."""

    connect: Callable[[], Provider]
    starts: Callable[[UUID], int]
    finish: Callable[[UUID], None]


@pytest.fixture
async def local_case(tmp_path: Path) -> AsyncIterator[Case]:
    options = LocalOptions(
        state_dir=tmp_path / "state",
        trainer_python=stand_in.install(tmp_path),
        trainer_dir=tmp_path,
        environ={"PATH": "/usr/bin:/bin"},
    )
    yield Case(
        connect=lambda: LocalProvider(options),
        starts=lambda attempt: len(stand_in.starts(options.state_dir, attempt)),
        finish=lambda attempt: stand_in.finish(options.state_dir, attempt),
    )
    for run in await LocalProvider(options).list_ours():
        claimed = (options.state_dir / "attempts" / run.ref / "started.json").read_bytes()
        stand_in.kill(msgspec.json.decode(claimed)["runner_pid"], signal.SIGKILL)


@pytest.fixture(params=["local"])
def case(request: pytest.FixtureRequest) -> Case:
    return request.getfixturevalue(f"{request.param}_case")


def a_tag(epoch: int = 1, attempt_id: UUID | None = None) -> Tag:
    return Tag(attempt_id=attempt_id or new_id(), epoch=epoch)


def a_spec(tag: Tag, *, code: int | None = None, stubborn: bool = False) -> RunSpec:
    return stand_in.a_spec(tag.attempt_id, **({} if code is None else {"code": code}), stubborn=stubborn)


async def until(provider: Provider, ref: str, status: RunStatus) -> RunView:
    async def reached() -> RunView | None:
        view = await provider.fetch(ref)
        return view if view and read_word(provider.name, view.word) is status else None

    return await stand_in.eventually(f"{ref} is {status}", reached)


async def until_started(case: Case, tag: Tag) -> None:
    async def reached() -> bool:
        return case.starts(tag.attempt_id) > 0

    await stand_in.eventually("the trainer runs", reached)


async def test_every_word_a_run_goes_through_is_known(case: Case) -> None:
    provider, tag = case.connect(), a_tag()
    ref = await provider.submit(tag, a_spec(tag), "secret")
    await until(provider, ref, RunStatus.RUNNING)
    await until_started(case, tag)
    case.finish(tag.attempt_id)
    assert (await until(provider, ref, RunStatus.ENDED)).exit_code == 0


async def test_resubmit_after_a_lost_reply_finds_the_first_run_and_starts_no_second(case: Case) -> None:
    tag = a_tag()
    first = await case.connect().submit(tag, a_spec(tag), "secret")
    again = await case.connect().submit(tag, a_spec(tag), "secret")
    assert again == first
    await until_started(case, tag)
    await case.connect().submit(a_tag(2, tag.attempt_id), a_spec(tag), "another")
    case.finish(tag.attempt_id)
    await until(case.connect(), first, RunStatus.ENDED)
    await case.connect().submit(a_tag(3, tag.attempt_id), a_spec(tag), "another")
    assert case.starts(tag.attempt_id) == 1


async def test_a_run_is_found_by_its_tag_after_the_bridge_was_restarted(case: Case) -> None:
    tag = a_tag()
    ref = await case.connect().submit(tag, a_spec(tag), "secret")
    found = await case.connect().find(a_tag(2, tag.attempt_id))
    assert found is not None
    assert found.ref == ref


async def test_nothing_is_found_where_nothing_was_started(case: Case) -> None:
    assert await case.connect().find(a_tag()) is None
    assert await case.connect().fetch(str(new_id())) is None


async def test_after_a_newer_epoch_has_asked_an_older_one_starts_and_stops_nothing(case: Case) -> None:
    provider, tag = case.connect(), a_tag(1)
    newer = a_tag(2, tag.attempt_id)
    assert await provider.find(newer) is None
    with pytest.raises(StaleEpoch):
        await provider.submit(tag, a_spec(tag), "secret")
    with pytest.raises(StaleEpoch):
        await provider.find(tag)
    ref = await provider.submit(newer, a_spec(tag), "secret")
    with pytest.raises(StaleEpoch):
        await provider.cancel(tag, ref, GRACE_S)
    await until_started(case, tag)
    assert case.starts(tag.attempt_id) == 1
    assert not await provider.confirm_gone(ref)


@pytest.mark.parametrize("code", [0, 64, 70, 75, 77])
async def test_a_finished_run_keeps_its_exit_code(case: Case, code: int) -> None:
    tag = a_tag()
    ref = await case.connect().submit(tag, a_spec(tag, code=code), "secret")
    view = await until(case.connect(), ref, RunStatus.ENDED)
    assert view.exit_code == code
    assert view.ended_at is not None


async def test_cancel_ends_the_run_and_repeating_it_is_harmless(case: Case) -> None:
    provider, tag = case.connect(), a_tag()
    ref = await provider.submit(tag, a_spec(tag), "secret")
    await until_started(case, tag)
    await provider.cancel(tag, ref, 30)
    await provider.cancel(tag, ref, 30)
    view = await until(provider, ref, RunStatus.ENDED)
    assert view.exit_code == 75
    await provider.cancel(tag, ref, 30)


async def test_a_run_that_ignores_cancel_is_ended_by_force_after_its_grace(case: Case) -> None:
    provider, tag = case.connect(), a_tag()
    ref = await provider.submit(tag, a_spec(tag, stubborn=True), "secret")
    await until_started(case, tag)
    await provider.cancel(tag, ref, GRACE_S)
    assert (await until(provider, ref, RunStatus.ENDED)).exit_code == -signal.SIGKILL


async def test_cancel_of_an_unknown_run_is_not_an_error(case: Case) -> None:
    tag = a_tag()
    await case.connect().cancel(tag, str(tag.attempt_id), GRACE_S)


async def test_gone_is_confirmed_only_when_nothing_is_alive(case: Case) -> None:
    provider, tag = case.connect(), a_tag()
    assert await provider.confirm_gone(str(new_id()))
    ref = await provider.submit(tag, a_spec(tag), "secret")
    assert not await provider.confirm_gone(ref)
    await until_started(case, tag)
    case.finish(tag.attempt_id)

    async def gone() -> bool:
        return await provider.confirm_gone(ref)

    await stand_in.eventually("the run is gone", gone)


async def test_living_runs_are_listed_and_ended_ones_are_not(case: Case) -> None:
    provider, tag = case.connect(), a_tag(3)
    ref = await provider.submit(tag, a_spec(tag), "secret")
    await until_started(case, tag)
    [ours] = await case.connect().list_ours()
    assert (ours.tag, ours.ref) == (tag, ref)
    case.finish(tag.attempt_id)

    async def unlisted() -> bool:
        return await provider.list_ours() == []

    await stand_in.eventually("the ended run is not listed", unlisted)


async def test_quote_keeps_the_price_that_billing_set(case: Case) -> None:
    quote = case.connect().quote(123)
    assert quote.price_micro_usd_per_hour == 123
    assert quote.hardware
