"""Lambda machines: offers, error codes, what a machine is told and what is listed of it, and its pace."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
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
from services.provider_bridge.outbound.vendors import lambda_cloud as adapter
from services.provider_bridge.outbound.vendors.lambda_shapes import refusal_of
from shared.contracts.offers import Offer
from shared.contracts.run import RunSpec
from shared.ids import new_id
from shared.problems import Unavailable
from shared.settings import Secret
from tests.simulators import lambda_cloud as simulator
from tests.simulators.faults import Fault, Moment
from tests.support.waiting import eventually

NOON = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
INSTALLATION = "0a1b2c3d"
TOKEN = "the-run's-own-token-77c1"
Connect = Callable[..., adapter.LambdaCloud]


@pytest.fixture
def clock() -> Moment:
    return Moment(NOON)


@pytest.fixture
def account(clock: Moment) -> Iterator[simulator.LambdaCloud]:
    with simulator.LambdaCloud(clock) as running:
        running.call_every_s = running.launch_every_s = None
        yield running


@pytest.fixture
async def connect(account: simulator.LambdaCloud) -> AsyncIterator[Connect]:
    """Makes adapters of the account; settings by name."""
    made: list[adapter.LambdaCloud] = []

    def connected(**settings: Any) -> adapter.LambdaCloud:
        fast: dict[str, Any] = {"calls_per_s": 100, "launches_per_minute": 6000}
        chosen: dict[str, Any] = {"api_url": account.url, "git_url": "https://git.example/x", **fast, **settings}
        materials = Materials(
            credentials={"api_key": Secret(simulator.KEY)},
            settings=adapter.LambdaSettings(**chosen),
            network=NetworkSettings(timeout_s=5),
            installation=INSTALLATION,
            clock=account.clock,
        )
        made.append(adapter.LambdaCloud(materials))
        return made[-1]

    yield connected
    for provider in made:
        await provider.close()


def an_order(offer: Offer | None = None, **config: Any) -> StartOrder:
    attempt_id = new_id()
    spec = RunSpec(
        job_id="j",
        attempt_id=str(attempt_id),
        attempt_number=1,
        gateway_url="http://127.0.0.1:8001",
        config=config,
        dataloader=[],
        output_prefix="j",
    )
    return StartOrder(tag=Tag(attempt_id=attempt_id, epoch=3), spec=spec, token=TOKEN, offer=offer, max_run_s=3600)


async def test_offers_are_by_type_and_region_at_the_price_of_the_whole_machine(connect: Connect) -> None:
    found = await connect().quote()
    assert {(offer.hardware, offer.region, offer.price_micro_usd_per_hour, offer.availability) for offer in found} == {
        ("gpu_1x_a10", "us-west-2", 860_000, "medium"),
        ("gpu_1x_a10", "us-east-1", 860_000, "medium"),
        ("gpu_1x_h100_sxm5", "europe-central-1", 4_290_000, "medium"),
        ("gpu_8x_h100_sxm5", None, 31_920_000, "none"),
    }
    [eight] = [offer for offer in found if offer.hardware == "gpu_8x_h100_sxm5"]
    assert (eight.gpu, eight.gpu_count, eight.vram_gb) == ("H100 80GB SXM5", 8, 80)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "instance-operations/launch/insufficient-capacity", NoCapacity),
        (400, "global/quota-exceeded", NoFunds),
        (403, "global/account-inactive", NoFunds),
        (403, "global/invalid-address", NoFunds),
        (401, "global/invalid-api-key", CredentialRefused),
        (400, "global/invalid-parameters", StartRefused),
        (400, "global/object-does-not-exist", StartRefused),
        (400, "instance-operations/launch/file-system-in-wrong-region", StartRefused),
        (400, "provider/some-cloud-is-down", Unavailable),
        (400, "a-code/nobody-has-seen", StartRefused),
        (500, "global/internal-error", Unavailable),
    ],
)
async def test_only_the_code_of_an_error_says_what_it_means(
    account: simulator.LambdaCloud, connect: Connect, status: int, code: str, kind: type[Exception]
) -> None:
    account.launch_error = (status, code)
    with pytest.raises((StartRefused, Unavailable)) as refused:
        await connect().submit(an_order())
    assert type(refused.value) is kind
    assert account.bill.lines == []


@pytest.mark.parametrize("content", [None, [], {"error": None}, {"error": "text"}, {}])
def test_an_error_of_any_shape_is_told_by_its_text(content: Any) -> None:
    refused = refusal_of(VendorRefused(400, content, "odd"))
    assert isinstance(refused, StartRefused)
    assert "odd" in refused.message


def test_an_error_that_repeats_what_was_sent_is_told_without_the_token() -> None:
    content = {"error": {"code": "global/invalid-parameters", "message": f"user_data: TW_TOKEN={TOKEN} is odd"}}
    refused = refusal_of(VendorRefused(400, content, ""), TOKEN)
    assert isinstance(refused, StartRefused)
    assert "is odd" in refused.message
    assert TOKEN not in refused.message


async def test_a_machine_is_placed_where_the_offer_says(account: simulator.LambdaCloud, connect: Connect) -> None:
    offer = Offer(
        provider="lambda",
        hardware="gpu_1x_h100_sxm5",
        gpu="H100 80GB SXM5",
        gpu_count=1,
        vram_gb=80,
        price_micro_usd_per_hour=4_290_000,
        region="europe-central-1",
    )
    order = an_order(offer)
    ref = await connect(image_family="lambda-stack-24-04").submit(order)
    body = account.machines[ref].body
    assert (body["instance_type_name"], body["region_name"]) == ("gpu_1x_h100_sxm5", "europe-central-1")
    assert (body["ssh_key_names"], body["image"]) == (["laptop"], {"family": "lambda-stack-24-04"})
    assert body["name"] == order.tag.label(INSTALLATION)


@pytest.mark.parametrize(
    ("regions", "placed"),
    [((), "us-west-2"), (("europe-central-1", "us-east-1", "us-west-2"), "us-east-1"), (("us-west-2",), "us-west-2")],
)
async def test_without_an_offer_it_is_placed_in_the_best_region_that_has_one(
    account: simulator.LambdaCloud, connect: Connect, regions: tuple[str, ...], placed: str
) -> None:
    ref = await connect(regions=regions).submit(an_order())
    assert account.machines[ref].body["region_name"] == placed


async def test_what_lambda_says_it_lacks_is_not_launched_at_all(
    account: simulator.LambdaCloud, connect: Connect
) -> None:
    with pytest.raises(NoCapacity, match="europe-central-1"):
        await connect(regions=("europe-central-1",)).submit(an_order())
    with pytest.raises(StartRefused, match="no machines of the type gpu_9x"):
        await connect(instance_type="gpu_9x").submit(an_order())
    account.ssh_keys = []
    with pytest.raises(StartRefused, match="SSH key"):
        await connect().submit(an_order())
    with pytest.raises(StartRefused, match="nowhere to get the trainer from"):
        await connect(git_url="").submit(an_order())
    assert not [call for call in account.calls if account.is_create(call)]


async def test_the_token_is_in_nothing_that_can_be_listed(account: simulator.LambdaCloud, connect: Connect) -> None:
    provider = connect()
    ref = await provider.submit(an_order())
    account.begin(account.machines[ref])
    headers = {"Authorization": f"Bearer {simulator.KEY}"}
    async with httpx.AsyncClient(base_url=f"{account.url}/api/v1", headers=headers, trust_env=False) as client:
        for path in ("/instances", f"/instances/{ref}", "/instance-types"):
            assert TOKEN not in (await client.get(path)).text
    assert account.machines[ref].body["user_data"].count("77c1") == 1


async def test_the_launch_time_is_ours_and_outlives_the_bridge(
    account: simulator.LambdaCloud, connect: Connect, clock: Moment
) -> None:
    account.skew = timedelta(hours=5)
    order = an_order()
    ref = await connect().submit(order)
    clock.pass_s(500)
    view = await connect().fetch(ref)
    assert view is not None
    assert (view.word, view.started_at, view.epoch) == ("booting", NOON, 3)
    [ours] = await connect().list_ours()
    assert (ours.tag, ours.started_at, ours.price_micro_usd_per_hour) == (order.tag, NOON, 860_000)


async def test_a_launch_whose_reply_was_lost_is_found_by_its_tag(
    account: simulator.LambdaCloud, connect: Connect
) -> None:
    order = an_order()
    for fault in ("lost reply", "html after", "500 after"):
        account.next_creates.append(fault)
    with pytest.raises(Unavailable):
        await connect().submit(order)
    [machine] = account.machines.values()
    machine.body["name"] = "renamed by a person"
    assert await connect().submit(order) == machine.id
    assert len(account.bill.lines) == 1


@pytest.mark.parametrize("word", ["unhealthy", "preempted", "active"])
async def test_a_machine_costs_until_it_is_terminated_whatever_has_become_of_it(
    account: simulator.LambdaCloud, connect: Connect, clock: Moment, word: str
) -> None:
    provider, order = connect(), an_order()
    ref = await provider.submit(order)
    account.machines[ref].status = word
    assert not await provider.confirm_gone(ref)
    assert [run.ref for run in await provider.list_ours()] == [ref]
    account.terminating_for = timedelta(seconds=20)
    await provider.cancel(order.tag, ref, 30)
    assert not await provider.confirm_gone(ref), "it is terminating"
    await provider.cancel(order.tag, ref, 30)
    clock.pass_s(21)
    assert await provider.confirm_gone(ref)
    assert len([call for call in account.calls if call.path.endswith("/terminate")]) == 1
    assert account.bill.seconds() == 0


async def test_a_terminate_that_came_too_late_is_no_error(account: simulator.LambdaCloud, connect: Connect) -> None:
    provider, order = connect(), an_order()
    ref = await provider.submit(order)
    account.choose = lambda call: account.vanish(account.machines[ref]) if call.path.endswith("/terminate") else None
    await provider.cancel(order.tag, ref, 30)
    assert await provider.confirm_gone(ref)


@pytest.mark.parametrize("fault", ["429", "html"])
async def test_a_terminate_that_was_not_heard_is_told(
    account: simulator.LambdaCloud, connect: Connect, fault: Fault
) -> None:
    provider, order = connect(), an_order()
    ref = await provider.submit(order)
    account.choose = lambda call: fault if call.path.endswith("/terminate") else None
    if fault == "429":
        with pytest.raises(Unavailable):
            await provider.cancel(order.tag, ref, 30)
    else:
        await provider.cancel(order.tag, ref, 30)
    assert not await provider.confirm_gone(ref)


async def test_calls_are_never_sooner_than_lambda_allows(account: simulator.LambdaCloud, connect: Connect) -> None:
    account.call_every_s = 0.3
    provider = connect(calls_per_s=1 / 0.3)
    await asyncio.gather(provider.quote(), provider.list_ours(), provider.validate_credentials())
    assert len(account.calls) == 3, "none was told to wait and had to be repeated"


async def test_launches_take_turns_across_all_adapters_of_an_account(
    account: simulator.LambdaCloud, connect: Connect
) -> None:
    first, second = connect(launches_per_minute=5), connect(launches_per_minute=5)
    await first.submit(an_order())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await second.submit(an_order())
    assert len(account.machines) == 1


async def test_a_launch_that_waited_for_its_turn_is_not_sent_once_a_newer_epoch_has_asked(
    account: simulator.LambdaCloud, connect: Connect
) -> None:
    provider, order = connect(launches_per_minute=60), an_order()
    await provider.submit(an_order())
    account.calls.clear()
    submitting = asyncio.ensure_future(provider.submit(order))

    async def has_looked() -> bool:
        return bool(account.calls)

    await eventually(has_looked)
    assert await provider.find(Tag(attempt_id=order.tag.attempt_id, epoch=4)) is None
    with pytest.raises(StaleEpoch):
        await submitting
    assert len(account.machines) == 1


async def test_a_launch_that_would_wait_too_long_goes_back_to_the_queue(
    account: simulator.LambdaCloud, connect: Connect
) -> None:
    provider = connect(launches_per_minute=5, longest_launch_wait_s=0.1)
    await provider.submit(an_order())
    with pytest.raises(NoCapacity, match="5 launches a minute"):
        await provider.submit(an_order())
    assert len(account.machines) == 1


async def test_a_spec_that_no_machine_takes_is_refused_before_the_launch(
    account: simulator.LambdaCloud, connect: Connect
) -> None:
    with pytest.raises(StartRefused, match="too large"):
        await connect().submit(an_order(prompts=["x" * 1_000_000]))
    assert account.machines == {}


async def test_the_account_is_known_by_its_keys_alone(connect: Connect) -> None:
    account = await connect().validate_credentials()
    assert "laptop" in account.detail
    assert (await connect().balance()).micro_usd is None
