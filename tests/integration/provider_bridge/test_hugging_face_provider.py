"""The Hugging Face Jobs adapter against the Hub's simulator, and beside the vendor's own client."""

import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import close_session

from services.provider_bridge.outbound.ports import Provider, StartOrder, StartRefused, Tag
from services.provider_bridge.outbound.vendors.hugging_face import KIND, HuggingFaceSettings
from shared.contracts.offers import Offer
from shared.ids import new_id
from shared.problems import Unavailable
from tests.contract.providers.hugging_face import IMAGE, a_provider
from tests.integration.provider_bridge.stand_in_trainer import a_spec
from tests.simulators.hugging_face import TOKEN, USER, HubJob, HuggingFace

Connect = Callable[..., Provider]
INSTALLATION = "0a1b2c3d"


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
def hub(clock: Clock) -> Iterator[HuggingFace]:
    with HuggingFace(clock) as simulator:
        yield simulator


@pytest.fixture
async def connect(hub: HuggingFace) -> AsyncIterator[Connect]:
    built: list[Provider] = []

    def build(**more: Any) -> Provider:
        built.append(a_provider(hub, **more))
        return built[-1]

    yield build
    for provider in built:
        await provider.close()


@pytest.fixture
def provider(connect: Connect) -> Provider:
    return connect()


@pytest.fixture
def vendors(hub: HuggingFace) -> Iterator[HfApi]:
    yield HfApi(endpoint=hub.url, token=TOKEN)
    close_session()


def an_order(tag: Tag | None = None, *, flavor: str | None = None, max_run_s: int | None = None) -> StartOrder:
    tag = tag or Tag(attempt_id=new_id(), epoch=1)
    offer = None
    if flavor is not None:
        offer = Offer(
            provider="huggingface", hardware=flavor, gpu="", gpu_count=1, vram_gb=0, price_micro_usd_per_hour=0
        )
    return StartOrder(tag=tag, spec=a_spec(tag.attempt_id), token="t-77", offer=offer, max_run_s=max_run_s)


async def started(hub: HuggingFace, provider: Provider, order: StartOrder | None = None) -> HubJob:
    job = hub.job(await provider.submit(order or an_order()))
    hub.begin(job)
    return job


async def test_a_job_is_created_as_the_vendors_client_creates_it(
    hub: HuggingFace, provider: Provider, vendors: HfApi
) -> None:
    ours = hub.job(await provider.submit(an_order(flavor="l4x1", max_run_s=3600))).created
    vendors.run_job(
        image=IMAGE,
        command=ours["command"],
        env=ours["environment"],
        secrets=ours["secrets"],
        flavor="l4x1",
        timeout=4500,
        labels=ours["labels"],
        namespace=USER,
    )
    assert hub.jobs[-1].created == ours


async def test_the_vendors_client_finds_shows_and_cancels_our_job(
    hub: HuggingFace, provider: Provider, vendors: HfApi
) -> None:
    order = an_order()
    job = await started(hub, provider, order)
    job.lines.append("step 1 of 2")
    label = order.tag.label(INSTALLATION)
    [found] = vendors.list_jobs(labels={"tunewright-run": label}, namespace=USER)
    assert found.id == job.id
    assert vendors.inspect_job(job_id=job.id, namespace=USER).status.stage == "RUNNING"
    vendors.cancel_job(job_id=job.id, namespace=USER)
    assert list(vendors.fetch_job_logs(job_id=job.id, namespace=USER)) == (await provider.logs(job.id, None)).lines
    view = await provider.fetch(job.id)
    assert view is not None
    assert view.word == "CANCELED"


async def test_spec_and_token_travel_as_secrets_and_the_limit_is_always_sent(
    hub: HuggingFace, provider: Provider
) -> None:
    order = an_order()
    created = hub.job(await provider.submit(order)).created
    assert created["secrets"]["TUNEWRIGHT_ATTEMPT_TOKEN"] == "t-77"
    spec = json.loads(base64.b64decode(created["secrets"]["TUNEWRIGHT_RUN_SPEC_BASE64"]))
    assert spec["attempt_id"] == str(order.tag.attempt_id)
    assert "t-77" not in json.dumps({**created, "secrets": None})
    assert TOKEN not in json.dumps({**created, "secrets": None})
    assert created["environment"] == {"TUNEWRIGHT_MAX_RUN_S": "86400"}
    assert created["timeoutSeconds"] == 86400 + 900
    assert created["flavor"] == "a10g-small"


async def test_an_image_may_be_a_space(hub: HuggingFace, connect: Connect) -> None:
    settings = HuggingFaceSettings(api_url=hub.url, image="hf.co/spaces/someone/trainer", namespace=USER)
    created = hub.job(await connect(settings=settings).submit(an_order())).created
    assert created["spaceId"] == "someone/trainer"
    assert "dockerImage" not in created
    assert "/api/whoami-v2" not in [call.path for call in hub.calls]


@pytest.mark.parametrize(
    ("settings", "order", "said"),
    [
        ({"image": ""}, an_order(), "no container to run"),
        ({"namespace": "nobody"}, an_order(), "namespace 'nobody'"),
        ({}, an_order(flavor="h100"), "Unknown flavor"),
    ],
)
async def test_what_cannot_run_is_refused_with_the_reason(
    hub: HuggingFace, connect: Connect, settings: dict[str, str], order: StartOrder, said: str
) -> None:
    provider = connect(settings=msgspec.structs.replace(HuggingFaceSettings(api_url=hub.url, image=IMAGE), **settings))
    assert await provider.find(order.tag) is None
    with pytest.raises(StartRefused, match=said) as refused:
        await provider.submit(order)
    assert refused.value.advice
    assert not hub.jobs


async def test_a_500_may_have_created_the_job_and_it_is_found_by_its_label(
    hub: HuggingFace, provider: Provider
) -> None:
    tag = Tag(attempt_id=new_id(), epoch=1)
    hub.next_creates.append("500 after")
    with pytest.raises(Unavailable):
        await provider.submit(an_order(tag))
    found = await provider.find(Tag(attempt_id=tag.attempt_id, epoch=2))
    assert found is not None
    assert (found.ref, found.epoch) == (hub.jobs[0].id, 1)
    assert len(hub.jobs) == 1


async def test_seconds_are_those_that_the_hub_counts(hub: HuggingFace, provider: Provider, clock: Clock) -> None:
    job = await started(hub, provider)
    clock.ahead = timedelta(seconds=4000)
    hub.finish(job)
    view = await provider.fetch(job.id)
    assert view is not None
    assert view.billed_s == pytest.approx(hub.bill.seconds(), abs=1)
    assert view.started_at is not None
    assert view.ended_at is not None
    assert (view.ended_at - view.started_at).total_seconds() == pytest.approx(4000, abs=1)


async def test_without_durations_the_moments_are_enough(hub: HuggingFace, provider: Provider) -> None:
    hub.with_durations = False
    job = await started(hub, provider)
    hub.finish(job)
    view = await provider.fetch(job.id)
    assert view is not None
    assert view.billed_s is None
    assert view.ended_at is not None


async def test_moments_are_by_our_clock_where_the_hubs_is_wrong(hub: HuggingFace, provider: Provider) -> None:
    hub.skew = timedelta(hours=-3)
    job = await started(hub, provider)
    view = await provider.fetch(job.id)
    assert view is not None
    assert view.started_at is not None
    assert abs(view.started_at - datetime.now(UTC)) < timedelta(seconds=5)


async def test_the_exit_code_is_the_hubs_or_the_programs_own_last_word_or_none(
    hub: HuggingFace, provider: Provider
) -> None:
    job = await started(hub, provider)
    job.lines.append("ERROR trainer.entry.container: exit 76 (out_of_memory): too little memory. Take a larger GPU")
    hub.end(job, "ERROR", "Job failed")
    view = await provider.fetch(job.id)
    assert view is not None
    assert view.exit_code == 76
    assert "too little memory" in view.last_words
    silent = await started(hub, provider)
    hub.end(silent, "ERROR", "Job timeout")
    view = await provider.fetch(silent.id)
    assert view is not None
    assert (view.word, view.exit_code, view.last_words) == ("ERROR", None, "Job timeout")


async def test_a_job_that_outlives_its_limit_is_ended_by_the_hub(
    hub: HuggingFace, provider: Provider, clock: Clock
) -> None:
    job = await started(hub, provider, an_order(max_run_s=600))
    clock.ahead = timedelta(seconds=1499)
    assert not await provider.confirm_gone(job.id)
    clock.ahead = timedelta(seconds=1501)
    assert await provider.confirm_gone(job.id)


async def test_a_log_that_breaks_goes_on_without_a_line_lost_or_doubled(hub: HuggingFace, provider: Provider) -> None:
    job = await started(hub, provider)
    job.lines += [f"line {number}" for number in range(6)]
    hub.break_logs_after = 3
    hub.finish(job)
    first = await provider.logs(job.id, None)
    assert first.lines == ["line 0", "line 1"]
    second = await provider.logs(job.id, first.cursor)
    assert first.lines + second.lines == [f"line {number}" for number in range(6)]


async def test_lists_are_read_over_all_pages(hub: HuggingFace, provider: Provider) -> None:
    hub.page_size = 2
    jobs = [await started(hub, provider) for _ in range(4)]
    waiting = await provider.submit(an_order(flavor="l4x1"))
    listed = {run.ref: run.price_micro_usd_per_hour for run in await provider.list_ours()}
    assert listed == {**{job.id: 1_000_020 for job in jobs}, waiting: 799_980}


async def test_flavors_are_offers_at_their_price_with_the_memory_of_each_gpu(provider: Provider) -> None:
    offers = {offer.hardware: offer for offer in await provider.quote()}
    double = offers["a10g-largex2"]
    assert (double.gpu, double.gpu_count, double.vram_gb) == ("A10G 24GB", 2, 24)
    assert double.price_micro_usd_per_hour == 3_000_000
    assert (offers["cpu-basic"].gpu, offers["cpu-basic"].gpu_count) == ("", 0)


async def test_what_is_known_beforehand_is_what_the_hub_says_when_asked(provider: Provider) -> None:
    told = {offer.hardware: offer for offer in await provider.quote()}
    both = {offer.hardware for offer in KIND.listed} & told.keys()
    assert both >= {"t4-small", "l4x1", "a10g-small", "a10g-largex2"}
    for known in KIND.listed:
        if known.hardware in both:
            asked = told[known.hardware]
            assert (known.gpu, known.gpu_count, known.vram_gb) == (asked.gpu, asked.gpu_count, asked.vram_gb)
            assert known.price_micro_usd_per_hour == pytest.approx(asked.price_micro_usd_per_hour, abs=60)


async def test_the_account_says_what_its_token_may_do(provider: Provider) -> None:
    account = await provider.validate_credentials()
    assert (account.username, account.detail) == (USER, "user account, token may write")
    assert "settings/billing" in (await provider.balance()).note
