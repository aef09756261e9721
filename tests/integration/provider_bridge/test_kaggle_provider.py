"""The Kaggle adapter against its simulator, where it is more than the contract of all providers."""

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.provider_bridge.outbound.ports import (
    CredentialRefused,
    NoCapacity,
    NoFunds,
    Provider,
    StartOrder,
    StartRefused,
    Tag,
)
from services.provider_bridge.outbound.vendors.kaggle import KaggleSettings
from shared.contracts.offers import Offer
from shared.ids import new_id
from shared.problems import Unavailable
from tests.contract.providers.kaggle import SOURCE, a_provider
from tests.integration.provider_bridge.stand_in_trainer import a_spec
from tests.simulators.kaggle import TOKEN, USER, Kaggle


class Clock:
    """True time, put on by hand."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def kaggle(clock: Clock) -> AsyncIterator[Kaggle]:
    with Kaggle(clock) as simulator:
        yield simulator


Connect = Callable[..., Provider]


@pytest.fixture
async def connect(kaggle: Kaggle) -> AsyncIterator[Connect]:
    built: list[Provider] = []

    def build(**more: Any) -> Provider:
        built.append(a_provider(kaggle, **more))
        return built[-1]

    yield build
    for provider in built:
        await provider.close()


@pytest.fixture
def provider(connect: Connect) -> Provider:
    return connect()


def an_order(tag: Tag | None = None, *, offer: Offer | None = None, max_run_s: int | None = None) -> StartOrder:
    tag = tag or Tag(attempt_id=new_id(), epoch=1)
    return StartOrder(tag=tag, spec=a_spec(tag.attempt_id), token="t-1", offer=offer, max_run_s=max_run_s)


def an_offer(hardware: str) -> Offer:
    return Offer(
        provider="kaggle", hardware=hardware, gpu="", gpu_count=1, vram_gb=0, price_micro_usd_per_hour=0, max_run_s=1
    )


async def test_what_is_pushed_is_a_private_script_named_by_its_label(kaggle: Kaggle, provider: Provider) -> None:
    order = an_order(max_run_s=3600)
    ref = await provider.submit(order)
    assert ref == f"{USER}/{order.tag.label('0a1b2c3d')}"
    pushed = kaggle.version(ref).pushed
    assert (pushed["slug"], pushed["newTitle"]) == (ref, order.tag.label("0a1b2c3d"))
    assert pushed["isPrivate"] is True
    assert pushed["enableInternet"] is True
    assert (pushed["language"], pushed["kernelType"]) == ("python", "script")
    assert pushed["kernelExecutionType"] == "SAVE_AND_RUN_ALL"
    assert pushed["machineShape"] == "NvidiaTeslaT4"
    assert pushed["sessionTimeoutSeconds"] == 3600 + 900
    assert "datasetDataSources" not in pushed
    assert "t-1" in pushed["text"]


@pytest.mark.parametrize("asked", [None, 30 * 3600])
async def test_a_run_ends_itself_before_its_session_whatever_was_asked(
    kaggle: Kaggle, provider: Provider, asked: int | None
) -> None:
    pushed = kaggle.version(await provider.submit(an_order(max_run_s=asked))).pushed
    assert pushed["sessionTimeoutSeconds"] == 9 * 3600
    line = next(line for line in pushed["text"].splitlines() if line.startswith("JOB = "))
    namespace: dict[str, str] = {}
    exec(line, namespace)  # noqa: S102 - our own script
    assert json.loads(namespace["JOB"])["max_run_s"] == 9 * 3600 - 900


async def test_the_source_may_be_a_dataset(kaggle: Kaggle, connect: Connect) -> None:
    settings = KaggleSettings(api_url=kaggle.url, source_dataset="someone/tunewright")
    pushed = kaggle.version(await connect(settings=settings).submit(an_order())).pushed
    assert pushed["datasetDataSources"] == ["someone/tunewright"]


@pytest.mark.parametrize("git", ["", "git@example.org:x.git", "--upload-pack=x"])
async def test_without_a_source_nothing_is_pushed(kaggle: Kaggle, connect: Connect, git: str) -> None:
    settings = KaggleSettings(api_url=kaggle.url, source_git=git)
    with pytest.raises(StartRefused, match="no way to get the trainer"):
        await connect(settings=settings).submit(an_order())
    assert not kaggle.kernels


@pytest.mark.parametrize("hardware", ["NvidiaTeslaP100", "TpuV5E8", "TpuV232"])
async def test_what_the_trainer_cannot_use_or_kaggle_replaces_silently_is_refused(
    provider: Provider, hardware: str
) -> None:
    with pytest.raises(StartRefused, match=hardware):
        await provider.submit(an_order(offer=an_offer(hardware)))


async def test_a_third_session_waits_for_capacity(kaggle: Kaggle, provider: Provider) -> None:
    first = await provider.submit(an_order())
    await provider.submit(an_order())
    with pytest.raises(NoCapacity):
        await provider.submit(an_order())
    kaggle.finish(first)
    await provider.submit(an_order())


async def test_hours_are_shown_and_used_up(kaggle: Kaggle, provider: Provider, clock: Clock) -> None:
    assert (await provider.quote())[0].availability == "unknown"
    ref = await provider.submit(an_order())
    kaggle.begin(ref)
    clock.ahead = timedelta(hours=9)
    assert (await provider.balance()).note.startswith("21.0 of 30.0 GPU hours left this week, until ")
    kaggle.quota_s = 9 * 3600
    kaggle.finish(ref)
    with pytest.raises(NoFunds):
        await provider.submit(an_order())
    assert (await provider.quote())[0].availability == "none"


async def test_an_error_inside_a_200_is_believed(kaggle: Kaggle, provider: Provider) -> None:
    ref = await provider.submit(an_order())
    for code, kind in ((429, Unavailable), (500, Unavailable), (401, CredentialRefused)):
        kaggle.codes_in_body.append(code)
        with pytest.raises(kind):
            await provider.fetch(ref)
    assert await provider.fetch(ref) is not None


async def test_a_lost_start_is_found_by_name_while_lists_lag_behind(kaggle: Kaggle, provider: Provider) -> None:
    tag = Tag(attempt_id=new_id(), epoch=7)
    kaggle.lag_s = 600
    kaggle.next_creates.append("lost reply")
    with pytest.raises(Unavailable):
        await provider.submit(an_order(tag))
    found = await provider.find(Tag(attempt_id=tag.attempt_id, epoch=8))
    assert found is not None
    assert found.ref.endswith(tag.label("0a1b2c3d"))


async def test_a_run_of_any_epoch_is_found_in_the_list(provider: Provider) -> None:
    tag = Tag(attempt_id=new_id(), epoch=1)
    ref = await provider.submit(an_order(tag))
    found = await provider.find(Tag(attempt_id=tag.attempt_id, epoch=9))
    assert found is not None
    assert found.ref == ref


async def test_lists_are_read_over_all_pages_of_the_last_day_and_no_further(
    kaggle: Kaggle, provider: Provider, clock: Clock
) -> None:
    kaggle.max_sessions, kaggle.quota_s, kaggle.page_size = 10, 1e9, 2
    refs = [await provider.submit(an_order()) for _ in range(5)]
    kaggle.calls.clear()
    assert {run.ref for run in await provider.list_ours()} == set(refs)
    assert asked(kaggle).count("ListKernels") == 3
    for ref in refs:
        kaggle.begin(ref)
    clock.ahead = timedelta(hours=25)
    young = await provider.submit(an_order())
    kaggle.calls.clear()
    assert [run.ref for run in await provider.list_ours()] == [young]
    assert asked(kaggle) == ["ListKernels", "GetKernelSessionStatus"]


def asked(kaggle: Kaggle) -> list[str]:
    return [call.path.rpartition("/")[2] for call in kaggle.calls]


async def test_a_session_that_outlives_its_limit_has_ended_without_an_exit_code(
    kaggle: Kaggle, provider: Provider, clock: Clock
) -> None:
    ref = await provider.submit(an_order(max_run_s=3600))
    kaggle.begin(ref)
    clock.ahead = timedelta(seconds=4500)
    view = await provider.fetch(ref)
    assert view is not None
    assert (view.word, view.exit_code) == ("ERROR", None)
    assert "longer than 4500 seconds" in view.last_words
    assert await provider.confirm_gone(ref)


async def test_a_live_log_goes_on_where_it_was_left_and_in_the_stored_one(kaggle: Kaggle, provider: Provider) -> None:
    ref = await provider.submit(an_order())
    kaggle.begin(ref)
    for line in ("one", "two"):
        kaggle.write(ref, line)
    first = await provider.logs(ref, None)
    assert first.lines == ["one", "two"]
    kaggle.write(ref, "three")
    second = await provider.logs(ref, first.cursor)
    assert second.lines == ["three"]
    kaggle.write(ref, "four")
    kaggle.finish(ref)
    assert (await provider.logs(ref, second.cursor)).lines == ["four"]
    assert (await provider.logs(ref, None)).lines == ["one", "two", "three", "four"]


async def test_moments_are_by_our_clock_where_kaggles_is_wrong(kaggle: Kaggle, provider: Provider) -> None:
    kaggle.skew = timedelta(hours=2)
    ref = await provider.submit(an_order())
    kaggle.begin(ref)
    kaggle.write(ref, "tunewright: exit code 0")
    kaggle.finish(ref)
    view = await provider.fetch(ref)
    assert view is not None
    assert view.started_at is not None
    assert view.ended_at is not None
    assert abs(view.started_at - datetime.now(UTC)) < timedelta(seconds=5)
    assert view.ended_at >= view.started_at


async def test_a_new_token_is_a_bearer_and_belongs_to_its_user(kaggle: Kaggle, connect: Connect) -> None:
    provider = connect(key=TOKEN)
    assert (await provider.validate_credentials()).username == USER
    assert {call.headers["authorization"] for call in kaggle.calls} == {f"Bearer {TOKEN}"}


async def test_a_run_cannot_be_cancelled_and_says_so(kaggle: Kaggle, provider: Provider) -> None:
    order = an_order()
    ref = await provider.submit(order)
    kaggle.begin(ref)
    assert not provider.capabilities.can_cancel
    await provider.cancel(order.tag, ref, 0)
    assert not await provider.confirm_gone(ref)
    assert provider.capabilities.max_run_time_s == 9 * 3600 - 900
    assert SOURCE in kaggle.version(ref).pushed["text"]
