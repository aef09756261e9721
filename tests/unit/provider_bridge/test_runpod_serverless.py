"""RunPod serverless: limits that are always sent, what can be found again, and what RunPod's answers mean."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stamina

from services.provider_bridge.outbound.egress import NetworkSettings
from services.provider_bridge.outbound.kinds import Materials
from services.provider_bridge.outbound.ports import CredentialRefused, Provider, StartOrder, StartRefused, Tag
from services.provider_bridge.outbound.vendors.runpod_serverless import KIND, MAX_RUN_S, RunPodServerlessSettings
from shared.contracts.run import RunSpec
from shared.ids import new_id
from shared.problems import Unavailable
from shared.settings import Secret
from tests.integration.provider_bridge import stand_in_trainer as stand_in
from tests.simulators.loopback import Answer, Call, Loopback
from tests.simulators.runpod_queue import ENDPOINT, KEY, POOL, QueuedJob, RunPodQueue

INSTALLATION = "0a1b2c3d"
WEEK_MS = 7 * 24 * 3600 * 1000


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def vendor(time: Time) -> Iterator[RunPodQueue]:
    with RunPodQueue(time) as simulator:
        yield simulator


@pytest.fixture
async def runpod(vendor: RunPodQueue, time: Time) -> AsyncIterator[Provider]:
    provider = connect(vendor, time)
    with stamina.set_testing(True, attempts=3, cap=True):
        yield provider
    await provider.close()


def connect(vendor: RunPodQueue, time: Time, network: NetworkSettings | None = None, **more: Any) -> Provider:
    settings: dict[str, Any] = {
        "endpoint_id": ENDPOINT,
        "api_url": vendor.api_url,
        "control_url": vendor.control_url,
        **more,
    }
    return KIND.build(
        Materials(
            credentials={"api_key": Secret(KEY)},
            settings=RunPodServerlessSettings(**settings),
            network=network or NetworkSettings(timeout_s=10),
            installation=INSTALLATION,
            clock=time,
        )
    )


def an_order(epoch: int = 1, tag: Tag | None = None, spec: RunSpec | None = None, **more: Any) -> StartOrder:
    tag = tag or Tag(attempt_id=new_id(), epoch=epoch)
    return StartOrder(tag=tag, spec=spec or stand_in.a_spec(tag.attempt_id), token="the-token", **more)


def the_job(vendor: RunPodQueue) -> QueuedJob:
    (job,) = vendor.jobs.values()
    return job


async def test_a_job_is_sent_with_both_limits_and_its_trainer_ends_before_runpod_ends_it(
    vendor: RunPodQueue, runpod: Provider
) -> None:
    order = an_order(max_run_s=3600)
    await runpod.submit(order)
    job = the_job(vendor)
    assert job.stored["policy"] == {"executionTimeout": 4500 * 1000, "ttl": (4500 + 86_400) * 1000}
    assert job.stored["input"]["max_run_s"] == 3600
    assert job.stored["input"]["run_spec"]["attempt_id"] == str(order.tag.attempt_id)
    assert job.stored["input"]["token"] == "the-token"
    assert job.label == order.tag.label(INSTALLATION)


async def test_a_job_that_says_no_limit_is_sent_with_one_and_no_life_is_longer_than_a_week(
    vendor: RunPodQueue, runpod: Provider, time: Time
) -> None:
    await runpod.submit(an_order())
    days = 24 * 3600 * 1000
    assert the_job(vendor).stored["policy"] == {"executionTimeout": 6 * days + 900_000, "ttl": 7 * days}
    longest = connect(vendor, time, max_run_s=MAX_RUN_S)
    await longest.submit(an_order())
    assert list(vendor.jobs.values())[-1].stored["policy"] == {"executionTimeout": WEEK_MS, "ttl": WEEK_MS}
    await longest.close()


async def test_more_than_a_week_is_refused_with_where_to_go(vendor: RunPodQueue, runpod: Provider) -> None:
    with pytest.raises(StartRefused) as refused:
        await runpod.submit(an_order(max_run_s=MAX_RUN_S + 1))
    assert "pods" in (refused.value.advice or "")
    assert not vendor.calls


async def test_a_job_that_is_too_large_for_runpod_is_refused_before_it_is_sent(
    vendor: RunPodQueue, runpod: Provider
) -> None:
    tag = Tag(attempt_id=new_id(), epoch=1)
    with pytest.raises(StartRefused):
        await runpod.submit(an_order(tag=tag, spec=stand_in.a_spec(tag.attempt_id, prompts="x" * 10_000_001)))
    assert not vendor.jobs


async def test_without_an_endpoint_nothing_is_offered_or_started(vendor: RunPodQueue, time: Time) -> None:
    provider = connect(vendor, time, endpoint_id="")
    assert await provider.quote() == []
    with pytest.raises(StartRefused) as refused:
        await provider.submit(an_order())
    assert "endpoint_id" in (refused.value.advice or "")
    assert "1 endpoints" in (await provider.validate_credentials()).detail
    await provider.close()


async def test_a_job_is_gone_once_its_life_is_over_though_it_ran(
    vendor: RunPodQueue, runpod: Provider, time: Time
) -> None:
    ref = await runpod.submit(an_order(max_run_s=60))
    vendor.begin(the_job(vendor))
    assert not await runpod.confirm_gone(ref)
    time.now += timedelta(days=2)
    assert await runpod.fetch(ref) is None
    assert await runpod.confirm_gone(ref)
    assert vendor.bill.open() == []


async def test_a_job_that_ran_too_long_is_over_and_its_seconds_are_known(
    vendor: RunPodQueue, runpod: Provider, time: Time
) -> None:
    ref = await runpod.submit(an_order(max_run_s=60))
    vendor.begin(the_job(vendor))
    time.now += timedelta(seconds=961)
    view = await runpod.fetch(ref)
    assert view is not None
    assert (view.word, view.billed_s, view.exit_code) == ("TIMED_OUT", 961, None)
    assert view.ended_at is not None
    assert view.started_at == view.ended_at - timedelta(seconds=961)


async def test_a_job_that_never_left_the_queue_is_free(vendor: RunPodQueue, runpod: Provider, time: Time) -> None:
    order = an_order()
    ref = await runpod.submit(order)
    time.now += timedelta(hours=1)
    await runpod.cancel(order.tag, ref, 1)
    view = await runpod.fetch(ref)
    assert view is not None
    assert (view.word, view.billed_s) == ("CANCELLED", 0)
    assert vendor.bill.lines == []


@pytest.mark.parametrize(
    ("output", "error", "code", "words"),
    [
        ({"exit_code": 0}, None, 0, ""),
        ("anything", None, 0, ""),
        ({"exit_code": 76}, "exit 76 (out_of_memory): too large", 76, "exit 76 (out_of_memory): too large"),
        (None, "exit 64 (bad_config): lora_rnk", 64, "exit 64 (bad_config): lora_rnk"),
        (None, json.dumps({"error_type": "KeyError", "error_message": "no such thing"}), None, "no such thing"),
        (None, "worker crashed", None, "worker crashed"),
    ],
)
async def test_what_the_handler_said_is_the_outcome(
    vendor: RunPodQueue, runpod: Provider, output: Any, error: str | None, code: int | None, words: str
) -> None:
    ref = await runpod.submit(an_order())
    vendor.begin(the_job(vendor))
    vendor.finish(the_job(vendor), output, error)
    view = await runpod.fetch(ref)
    assert view is not None
    assert (view.exit_code, view.last_words) == (code, words)


async def test_where_input_is_not_shown_a_job_is_known_by_what_its_handler_says(
    vendor: RunPodQueue, runpod: Provider, time: Time
) -> None:
    vendor.shows_input = False
    vendor.next_creates.append("lost reply")
    first = an_order()
    with pytest.raises(Unavailable):
        await runpod.submit(first)
    lost = the_job(vendor)
    newer = Tag(attempt_id=first.tag.attempt_id, epoch=2)
    assert await runpod.find(newer) is None  # it waits in the queue and nobody can know
    second = await runpod.submit(an_order(tag=newer))
    vendor.begin(lost)
    lost.output = {"phase": "preparing", "label": first.tag.label(INSTALLATION)}
    again = connect(vendor, time)
    assert [(run.tag.epoch, run.ref) for run in await again.list_ours()] == [(1, f"{ENDPOINT}/{lost.id}")]
    vendor.begin(vendor.jobs[second.partition("/")[2]])
    vendor.finish(lost, {"exit_code": 77, "label": first.tag.label(INSTALLATION)}, "exit 77 (superseded): it is over")
    assert await again.list_ours() == []
    await again.close()


async def test_where_there_is_no_list_nothing_is_found_and_runs_are_still_followed(
    vendor: RunPodQueue, runpod: Provider
) -> None:
    vendor.has_list = False
    order = an_order()
    ref = await runpod.submit(order)
    assert await runpod.find(order.tag) is None
    assert await runpod.list_ours() == []
    assert (await runpod.fetch(ref)) is not None


async def test_the_label_of_a_job_is_asked_for_once(vendor: RunPodQueue, runpod: Provider) -> None:
    for _ in range(3):
        await runpod.submit(an_order())
    await runpod.list_ours()
    vendor.calls.clear()
    assert len(await runpod.list_ours()) == 3
    assert [call.path for call in vendor.calls] == [f"/v2/{ENDPOINT}/requests"]


async def test_many_who_look_at_once_share_one_list(vendor: RunPodQueue, runpod: Provider) -> None:
    orders = [an_order() for _ in range(20)]
    refs = await asyncio.gather(*(runpod.submit(order) for order in orders))
    found = await asyncio.gather(*(runpod.find(order.tag) for order in orders))
    assert [view.ref for view in found if view is not None] == refs
    assert len([call for call in vendor.calls if call.path.endswith("/requests")]) <= 4


async def test_a_run_of_another_endpoint_is_still_followed_and_cancelled(
    vendor: RunPodQueue, runpod: Provider, time: Time
) -> None:
    order = an_order()
    ref = await runpod.submit(order)
    moved = connect(vendor, time, endpoint_id="another")
    assert await moved.fetch(ref) is not None
    await moved.cancel(order.tag, ref, 1)
    assert the_job(vendor).status == "CANCELLED"
    await moved.close()


async def test_pool_and_price_are_runpods_own_where_the_key_may_read_them(runpod: Provider) -> None:
    (offer,) = await runpod.quote()
    assert (offer.hardware, offer.price_micro_usd_per_hour, offer.availability) == (POOL, 4_180_000, "high")
    assert (offer.gpu, offer.vram_gb, offer.max_run_s) == ("H100 80GB", 80, MAX_RUN_S)


async def test_a_price_comes_from_the_table_where_the_catalogue_is_refused(vendor: RunPodQueue, time: Time) -> None:
    def refuse(call: Call) -> Answer:
        return Answer(403, {"detail": f"scope: {call.path}"})

    with Loopback(refuse) as control:
        provider = connect(vendor, time, control_url=control.url, gpu_pool="AMPERE_80", gpu_count=2)
        (offer,) = await provider.quote()
        assert offer.price_micro_usd_per_hour == round(0.00076 * 2 * 3600 * 1_000_000)
        await provider.close()
    own = connect(vendor, time, price_usd_per_s=0.001)
    assert (await own.quote())[0].price_micro_usd_per_hour == 3_600_000
    await own.close()


async def test_an_endpoint_of_somebody_else_is_told_from_an_outage(vendor: RunPodQueue, time: Time) -> None:
    provider = connect(vendor, time, endpoint_id="not-mine")
    with pytest.raises(CredentialRefused):
        await provider.validate_credentials()
    with pytest.raises(StartRefused):
        await provider.submit(an_order())
    vendor.always = "html"
    with pytest.raises(Unavailable):
        await provider.validate_credentials()
    await provider.close()


async def test_the_vendors_client_leaves_by_the_proxy_of_the_settings(vendor: RunPodQueue, time: Time) -> None:
    passed: list[Call] = []

    def proxy(call: Call) -> Answer:
        passed.append(call)
        return Answer(200, {"workers": {"idle": 3}})

    with Loopback(proxy) as forward:
        provider = connect(vendor, time, NetworkSettings(proxy_url=forward.url, timeout_s=10))
        assert (await provider.validate_credentials()).detail == "workers: 3 idle"
        await provider.close()
    assert passed
    assert not vendor.calls


async def test_what_the_vendor_sends_at_the_end_is_believed(vendor: RunPodQueue, runpod: Provider) -> None:
    taken: list[Call] = []
    statuses = iter([500, 200])

    def take(call: Call) -> Answer:
        taken.append(call)
        return Answer(next(statuses), {})

    with Loopback(take) as receiver:
        order = an_order(webhook_url=f"{receiver.url}/api/webhooks/runpod_serverless?attempt=x")
        ref = await runpod.submit(order)
        vendor.begin(the_job(vendor))
        vendor.finish(the_job(vendor), {"exit_code": 0})
        vendor.settle()
    first, second = [runpod.verify_webhook(call.headers, call.query, call.body) for call in taken]
    assert first == second
    assert (first.ref, first.word, first.attempt_id) == (ref, "COMPLETED", order.tag.attempt_id)
    assert KEY not in str(taken[0].query)
