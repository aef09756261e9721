"""RunPod pods: names of GPUs, offers, refusals, clocks, logs, the bill, and how a pod is ended."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.provider_bridge.outbound.egress import NetworkSettings, VendorRefused
from services.provider_bridge.outbound.kinds import Materials
from services.provider_bridge.outbound.ports import (
    CredentialRefused,
    NoCapacity,
    NoFunds,
    StaleEpoch,
    StartOrder,
    StartRefused,
    Tag,
)
from services.provider_bridge.outbound.vendors import runpod_pods as adapter
from services.provider_bridge.outbound.vendors.runpod_gpus import Profile, gpu_id
from services.provider_bridge.outbound.vendors.runpod_shapes import start_refused
from shared.contracts.offers import Offer
from shared.contracts.run import RunSpec
from shared.ids import new_id
from shared.problems import Unavailable
from shared.settings import Secret
from tests.simulators import runpod_pods as simulator
from tests.simulators.faults import Fault, Moment
from tests.support.waiting import eventually

NOON = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
INSTALLATION = "0a1b2c3d"
TOKEN = "the-run's-own-token-77c1"


@pytest.fixture
def clock() -> Moment:
    return Moment(NOON)


@pytest.fixture
def account(clock: Moment) -> Iterator[simulator.RunPodPods]:
    with simulator.RunPodPods(clock) as running:
        running.per_minute = None
        yield running


Connect = Callable[..., adapter.RunPodPods]


@pytest.fixture
async def connect(account: simulator.RunPodPods) -> AsyncIterator[Connect]:
    """Makes adapters of the account; settings by name."""
    made: list[adapter.RunPodPods] = []

    def connected(**settings: Any) -> adapter.RunPodPods:
        chosen: dict[str, Any] = {
            "api_url": account.url,
            "image": "someone/tunewright:1",
            "calls_per_minute": 6000,
            **settings,
        }
        materials = Materials(
            credentials={"api_key": Secret(simulator.KEY)},
            settings=adapter.RunPodSettings(**chosen),
            network=NetworkSettings(timeout_s=5),
            installation=INSTALLATION,
            clock=account.clock,
        )
        made.append(adapter.RunPodPods(materials))
        return made[-1]

    yield connected
    for provider in made:
        await provider.close()


def an_order(offer: Offer | None = None, max_run_s: int | None = None) -> StartOrder:
    attempt_id = new_id()
    spec = RunSpec(
        job_id="j",
        attempt_id=str(attempt_id),
        attempt_number=1,
        gateway_url="http://127.0.0.1:8001",
        config={},
        dataloader=[],
        output_prefix="j",
    )
    tag = Tag(attempt_id=attempt_id, epoch=3)
    return StartOrder(tag=tag, spec=spec, token=TOKEN, offer=offer, max_run_s=max_run_s)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("RTX 4090", "NVIDIA GeForce RTX 4090"),
        ("NVIDIA_RTX_4090", "NVIDIA GeForce RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090"),
        ("RTX A4000", "NVIDIA RTX A4000"),
        ("NVIDIA_RTX_A4000", "NVIDIA RTX A4000"),
        ("A100 40GB", "NVIDIA A100-SXM4-40GB"),
        ("A100_40GB", "NVIDIA A100-SXM4-40GB"),
        ("a100-80gb", "NVIDIA A100 80GB PCIe"),
        ("A100 80 GB", "NVIDIA A100 80GB PCIe"),
        ("NVIDIA A100 80GB PCIe", "NVIDIA A100 80GB PCIe"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB"),
        ("H100", "NVIDIA H100 80GB HBM3"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
        ("AMD Instinct MI300X OAM", "AMD Instinct MI300X OAM"),
        ("NVIDIA RTX 6000 Ada Generation", "NVIDIA RTX 6000 Ada Generation"),
    ],
)
def test_a_gpu_is_known_by_the_names_of_brief_003_and_by_runpods_own(name: str, found: str) -> None:
    assert gpu_id(name) == found


@pytest.mark.parametrize(
    ("profile", "text"),
    [
        (Profile("NVIDIA GeForce RTX 4090"), "NVIDIA GeForce RTX 4090"),
        (Profile("NVIDIA H100 80GB HBM3", 8), "NVIDIA H100 80GB HBM3 x8"),
        (Profile("NVIDIA A40", 2, "COMMUNITY"), "NVIDIA A40 x2 COMMUNITY"),
        (Profile("NVIDIA A40", 1, "COMMUNITY"), "NVIDIA A40 COMMUNITY"),
    ],
)
def test_an_offers_hardware_says_gpu_count_and_cloud(profile: Profile, text: str) -> None:
    assert str(profile) == text
    assert Profile.parse(text) == profile


async def test_offers_are_by_cloud_count_and_data_centre_at_the_price_of_the_whole_pod(connect: Connect) -> None:
    found = await connect().quote()
    assert {(offer.hardware, offer.region, offer.price_micro_usd_per_hour, offer.availability) for offer in found} >= {
        ("NVIDIA GeForce RTX 4090", "US-KS-2", 440_000, "high"),
        ("NVIDIA GeForce RTX 4090", "EU-RO-1", 440_000, "low"),
        ("NVIDIA GeForce RTX 4090 x8", "US-KS-2", 3_520_000, "unknown"),
        ("NVIDIA GeForce RTX 4090 x4 COMMUNITY", "US-KS-2", 1_240_000, "unknown"),
        ("NVIDIA H100 80GB HBM3", None, 3_290_000, "none"),
    }
    assert {offer.region for offer in found} == {"US-KS-2", "EU-RO-1", None}, "not where there are none"
    assert not [offer for offer in found if offer.hardware.endswith("x8 COMMUNITY")], "no machine has so many"
    assert not [offer for offer in found if "H100" in offer.hardware and "COMMUNITY" in offer.hardware]
    [one] = [offer for offer in found if offer.hardware == "NVIDIA H100 80GB HBM3"]
    assert (one.gpu, one.vram_gb, one.gpu_count) == ("H100 SXM 80GB", 80, 1)


async def test_offers_are_only_of_the_clouds_and_data_centres_that_may_be_used(
    account: simulator.RunPodPods, connect: Connect
) -> None:
    found = await connect(clouds=("COMMUNITY",), data_center_ids=("EU-RO-1",)).quote()
    assert {offer.region for offer in found} == {"EU-RO-1"}
    assert all(offer.hardware.endswith("COMMUNITY") for offer in found)
    await connect(clouds=("COMMUNITY",), gpu="RTX_4090").submit(an_order())
    [pod] = account.pods.values()
    assert (pod.body["cloud"], pod.body["gpu"]["id"]) == ("COMMUNITY", "NVIDIA GeForce RTX 4090")


async def test_a_pod_is_created_as_the_offer_says_with_all_that_the_entry_reads(
    account: simulator.RunPodPods, connect: Connect
) -> None:
    offer = Offer(
        provider="runpod",
        hardware="NVIDIA GeForce RTX 4090 x2 COMMUNITY",
        gpu="RTX 4090 24GB",
        gpu_count=2,
        vram_gb=24,
        price_micro_usd_per_hour=620_000,
        region="EU-RO-1",
    )
    order = an_order(offer, max_run_s=3600)
    await connect(network_volume_id="vol_1", disk_gb=80, min_cuda_version="13.0").submit(order)
    [pod] = account.pods.values()
    env = pod.body.pop("env")
    assert pod.body == {
        "name": order.tag.label(INSTALLATION),
        "image": "someone/tunewright:1",
        "gpu": {"id": "NVIDIA GeForce RTX 4090", "count": 2, "minCudaVersion": "13.0"},
        "cloud": "COMMUNITY",
        "disk": 80,
        "dataCenterIds": ["EU-RO-1"],
        "mounts": {"network": [{"volumeId": "vol_1", "path": "/runpod-volume"}]},
    }
    assert env.pop("TUNEWRIGHT_RUN_SPEC_BASE64")
    assert env == {
        "TUNEWRIGHT_ATTEMPT_TOKEN": TOKEN,
        "TUNEWRIGHT_GATEWAY_URL": "http://127.0.0.1:8001",
        "TUNEWRIGHT_MAX_RUN_S": "3600",
        "TUNEWRIGHT_AT_END": "terminate-runpod-pod",
        "TUNEWRIGHT_RUNPOD_API_URL": account.url,
    }
    assert account.bill.line(pod.id).price_micro_usd_per_hour == 620_000


@pytest.mark.parametrize(
    ("status", "detail", "kind"),
    [
        (400, simulator.NO_CAPACITY, NoCapacity),
        (400, "This machine does not have the resources to deploy your pod.", NoCapacity),
        (400, "No GPUs match the requested CUDA versions", NoCapacity),
        (400, "The requested GPU type is currently unavailable", NoCapacity),
        (400, "request could not be processed", StartRefused),
        (400, "mounts.persistent and mounts.network are mutually exclusive", StartRefused),
        (404, "template not found", StartRefused),
        (422, "There is no capacity field", StartRefused),
    ],
)
def test_want_of_machines_is_told_from_a_bad_request_by_its_sentence(
    status: int, detail: str, kind: type[StartRefused]
) -> None:
    refused = start_refused(VendorRefused(status, {"title": "x", "status": status, "detail": detail}, detail), TOKEN)
    assert type(refused) is kind
    assert detail in refused.message


@pytest.mark.parametrize("content", [None, [], {"detail": 7}, {"errors": "none"}])
def test_an_error_of_any_shape_is_told_by_its_text(content: Any) -> None:
    assert "odd" in start_refused(VendorRefused(400, content, "odd"), TOKEN).message


def test_an_error_that_repeats_what_was_sent_is_told_without_the_token() -> None:
    content = {"detail": "Request validation failed.", "errors": [f"$.env: '{TOKEN}' is too long"]}
    message = start_refused(VendorRefused(422, content, ""), TOKEN).message
    assert "is too long" in message
    assert TOKEN not in message


async def test_what_is_wrong_with_an_order_is_told_by_field(account: simulator.RunPodPods, connect: Connect) -> None:
    with pytest.raises(StartRefused, match="unknown gpu type NVIDIA Imaginary") as refused:
        await connect(gpu="NVIDIA Imaginary").submit(an_order())
    assert refused.value.advice is not None
    with pytest.raises(StartRefused, match="No image is set"):
        await connect(image="").submit(an_order())
    account.balance_usd = 0
    with pytest.raises(NoFunds):
        await connect().submit(an_order())
    account.refused_gpus = {"NVIDIA GeForce RTX 4090"}
    with pytest.raises(NoCapacity, match="403"):
        await connect().submit(an_order())
    assert account.bill.lines == []


@pytest.mark.parametrize("fault", ["500 after", "html after", "reset", "lost reply", "html", "429 with Retry-After"])
async def test_a_create_is_sent_once_whatever_comes_back(
    account: simulator.RunPodPods, connect: Connect, fault: Fault
) -> None:
    provider, order = connect(), an_order()
    account.next_creates.append(fault)
    with pytest.raises(Unavailable):
        await provider.submit(order)
    creates = [call for call in account.calls if account.is_create(call)]
    assert len(creates) == 1
    found = await provider.find(order.tag)
    assert (found is not None) == bool(account.bill.lines)


async def test_moments_are_by_our_clock_however_wrong_runpods_is(
    account: simulator.RunPodPods, connect: Connect, clock: Moment
) -> None:
    account.skew = timedelta(hours=-2)
    provider = connect()
    ref = await provider.submit(an_order())
    clock.pass_s(90)
    view = await provider.fetch(ref)
    assert view is not None
    assert view.started_at == NOON
    assert view.epoch == 3
    [ours] = await provider.list_ours()
    assert (ours.started_at, ours.price_micro_usd_per_hour) == (NOON, 440_000)


async def test_one_list_answers_for_every_run_and_one_call_more_for_one_that_is_in_none(
    account: simulator.RunPodPods, connect: Connect
) -> None:
    provider = connect()
    refs = [await provider.submit(an_order()) for _ in range(3)]
    account.calls.clear()
    for ref in refs:
        assert await provider.fetch(ref) is not None
    assert {call.path for call in account.calls} == {"/v2/pods"}
    account.vanish(account.pods[refs[0]])
    account.calls.clear()
    assert await provider.confirm_gone(refs[0])
    assert [call.path for call in account.calls] == ["/v2/pods", f"/v2/pods/{refs[0]}"]


async def test_a_pod_that_has_stopped_is_over_but_not_gone_until_it_is_deleted(
    account: simulator.RunPodPods, connect: Connect
) -> None:
    provider, order = connect(), an_order()
    ref = await provider.submit(order)
    account.exit(account.pods[ref])
    view = await provider.fetch(ref)
    assert view is not None
    assert (view.word, view.exit_code) == ("EXITED", None)
    assert not await provider.confirm_gone(ref)
    assert [run.ref for run in await provider.list_ours()] == [ref]
    assert account.bill.open()
    await provider.cancel(order.tag, ref, 30)
    assert await provider.confirm_gone(ref)
    assert account.bill.open() == []


async def test_a_running_pod_is_stopped_first_and_deleted_when_it_has_stopped(
    account: simulator.RunPodPods, connect: Connect
) -> None:
    provider, order = connect(), an_order()
    ref = await provider.submit(order)
    account.begin(account.pods[ref])
    await provider.cancel(order.tag, ref, 30)
    assert account.pods[ref].status == "EXITED"
    await provider.cancel(order.tag, ref, 30)
    assert account.pods[ref].status == "TERMINATED"


async def test_a_pod_that_heeds_no_stop_is_deleted_when_its_grace_is_over(
    account: simulator.RunPodPods, connect: Connect, clock: Moment
) -> None:
    provider, order = connect(), an_order()
    ref = await provider.submit(order)
    account.begin(account.pods[ref])
    account.choose = lambda call: "html" if call.path.endswith("/action") else None
    await provider.cancel(order.tag, ref, 30)
    for _ in range(3):
        clock.pass_s(9)
        await provider.cancel(order.tag, ref, 30)
        assert account.pods[ref].status == "RUNNING"
    clock.pass_s(4)
    await provider.cancel(order.tag, ref, 30)
    assert account.pods[ref].status == "TERMINATED"


async def test_a_pod_without_a_container_yet_is_deleted_at_once(
    account: simulator.RunPodPods, connect: Connect
) -> None:
    provider, order = connect(), an_order()
    ref = await provider.submit(order)
    await provider.cancel(order.tag, ref, 30)
    assert account.pods[ref].status == "TERMINATED"


async def test_the_log_is_read_on_behind_the_last_line_and_survives_a_cut(
    account: simulator.RunPodPods, connect: Connect
) -> None:
    provider = connect()
    ref = await provider.submit(an_order())
    pod = account.pods[ref]
    account.say(pod, "one", "two", "three")
    account.stream_cut_after = 2
    first = await provider.logs(ref, None)
    assert first.lines == ["one", "two"]
    account.stream_cut_after = None
    account.say(pod, "four")
    second = await provider.logs(ref, first.cursor)
    assert second.lines == ["three", "four"]
    assert (await provider.logs(ref, second.cursor)).lines == []
    account.vanish(pod)
    gone = await provider.logs(ref, second.cursor)
    assert (gone.lines, gone.cursor) == ([], second.cursor)


async def test_runpods_own_bill_counts_once_its_last_hour_is_over(
    account: simulator.RunPodPods, connect: Connect, clock: Moment
) -> None:
    provider = connect()
    ref = await provider.submit(an_order())
    clock.pass_s(4500)
    assert await provider.fetch(ref) is not None
    account.vanish(account.pods[ref])
    assert await provider.fetch(ref) is None, "the hour in progress is still added up"
    clock.pass_s(2700)
    view = await provider.fetch(ref)
    assert view is not None
    assert (view.word, view.billed_s) == ("TERMINATED", pytest.approx(4500))
    assert await provider.confirm_gone(ref)


async def test_account_and_balance_are_told_as_far_as_the_key_may_see_them(
    account: simulator.RunPodPods, connect: Connect
) -> None:
    provider = connect()
    assert (await provider.validate_credentials()).username == "dev@example.com"
    assert (await provider.balance()).micro_usd == 42_180_000
    account.choose = lambda _call: "403"
    unseen = await provider.balance()
    assert unseen.micro_usd is None
    assert "console" in unseen.note
    with pytest.raises(CredentialRefused):
        await provider.validate_credentials()


async def test_a_start_that_waited_for_its_turn_is_not_sent_once_a_newer_epoch_has_asked(
    account: simulator.RunPodPods, connect: Connect
) -> None:
    provider, order = connect(calls_per_minute=12), an_order()
    await asyncio.gather(*(provider.balance() for _ in range(11)))  # the list is the twelfth; a turn comes every 5 s
    submitting = asyncio.ensure_future(provider.submit(order))

    async def has_looked() -> bool:
        return any(call.path == "/v2/pods" for call in account.calls)

    await eventually(has_looked)
    finding = asyncio.ensure_future(provider.find(Tag(attempt_id=order.tag.attempt_id, epoch=4)))
    with pytest.raises(StaleEpoch):
        await submitting
    assert await finding is None
    assert account.pods == {}


async def test_the_pace_keeps_within_what_runpod_allows(account: simulator.RunPodPods, connect: Connect) -> None:
    account.per_minute = 5
    provider = connect(calls_per_minute=5)
    for _ in range(5):
        await provider.balance()
    before = len(account.calls)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await provider.balance()
    assert len(account.calls) == before, "it waits for its turn instead of being told to"
