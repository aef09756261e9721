"""The SkyPilot adapter against a simulator of its API server, where it is more than the contract of all providers."""

import base64
import json
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest
import stamina

from services.provider_bridge.outbound.ports import (
    CredentialRefused,
    NoCapacity,
    Provider,
    StartOrder,
    StartRefused,
    Tag,
)
from services.provider_bridge.outbound.vendors.skypilot import SkyPilotSettings
from shared.contracts.offers import Offer
from shared.ids import new_id
from shared.problems import Unavailable
from tests.contract.providers.hugging_face import IMAGE
from tests.contract.providers.skypilot import a_provider
from tests.integration.provider_bridge.stand_in_trainer import a_spec
from tests.simulators.skypilot import SkyFailed, SkyPilot

INSTALLATION = "0a1b2c3d"


@pytest.fixture
def server() -> Iterator[SkyPilot]:
    with SkyPilot() as simulator:
        yield simulator


@pytest.fixture
async def provider(server: SkyPilot) -> AsyncIterator[Provider]:
    built = a_provider(server.url, settings=SkyPilotSettings(api_url=server.url, image=IMAGE, infra="aws/us-east-1"))
    yield built
    await built.close()


@pytest.fixture
def without_pauses() -> Iterator[None]:
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


def an_order(tag: Tag | None = None) -> StartOrder:
    tag = tag or Tag(attempt_id=new_id(), epoch=1)
    offer = Offer(provider="skypilot", hardware="L4:2", gpu="L4", gpu_count=2, vram_gb=24, price_micro_usd_per_hour=1)
    return StartOrder(tag=tag, spec=a_spec(tag.attempt_id), token="t-79", offer=offer, max_run_s=3600)


async def test_the_task_names_its_run_its_limit_and_its_machine_and_hides_its_token(
    server: SkyPilot, provider: Provider
) -> None:
    order = an_order()
    assert await provider.submit(order) == order.tag.label(INSTALLATION)
    [job] = server.jobs
    assert job.name == job.task["name"] == order.tag.label(INSTALLATION)
    assert job.task["resources"] == {
        "accelerators": "L4:2",
        "image_id": f"docker:{IMAGE}",
        "infra": "aws/us-east-1",
    }
    assert job.task["envs"] == {"TUNEWRIGHT_MAX_RUN_S": "3600"}
    assert "timeout --kill-after=60 4500 .venv-trainer/bin/python -m trainer.entry.container" in job.task["run"]
    assert job.task["secrets"]["TUNEWRIGHT_ATTEMPT_TOKEN"] == "t-79"
    spec = json.loads(base64.b64decode(job.task["secrets"]["TUNEWRIGHT_RUN_SPEC_BASE64"]))
    assert spec["attempt_id"] == str(order.tag.attempt_id)
    assert "t-79" not in json.dumps({**job.task, "secrets": None})


async def test_a_launch_that_takes_its_time_is_accepted_found_and_never_sent_twice(
    server: SkyPilot,
    provider: Provider,
    without_pauses: None,  # noqa: ARG001 - a fixture
) -> None:
    server.slow = True
    order = an_order()
    ref = await provider.submit(order)
    view = await provider.fetch(ref)
    assert view is not None
    assert (view.word, view.epoch) == ("PENDING", 1)
    assert [run.ref for run in await provider.list_ours()] == [ref]
    assert not await provider.confirm_gone(ref)
    assert await provider.submit(order) == ref
    server.arrive()
    assert len(server.jobs) == 1
    found = await provider.find(Tag(attempt_id=order.tag.attempt_id, epoch=2))
    assert found is not None
    assert found.ref == ref


async def test_a_launch_on_its_way_can_be_called_off(
    server: SkyPilot,
    provider: Provider,
    without_pauses: None,  # noqa: ARG001 - a fixture
) -> None:
    server.slow = True
    order = an_order()
    ref = await provider.submit(order)
    await provider.cancel(order.tag, ref, 0)
    assert await provider.confirm_gone(ref)
    server.arrive()
    assert not server.jobs


@pytest.mark.parametrize(
    ("kind", "refusal"),
    [
        ("ResourcesUnavailableError", NoCapacity),
        ("ManagedJobReachedMaxRetriesError", NoCapacity),
        ("PermissionDeniedError", CredentialRefused),
        ("NoCloudAccessError", StartRefused),
        ("SomethingNewError", StartRefused),
        ("RequestInterruptedError", Unavailable),
        ("ConnectionError", Unavailable),
    ],
)
async def test_a_failed_launch_is_read_by_the_type_of_its_error(
    server: SkyPilot, provider: Provider, kind: str, refusal: type[Exception]
) -> None:
    server.launch_failure = SkyFailed(kind, "see \x1b[1msky check\x1b[0m")
    with pytest.raises(refusal, match="see sky check") as caught:
        await provider.submit(an_order())
    assert type(caught.value) is refusal


async def test_a_gateway_on_loopback_is_refused_though_the_api_server_is_there_too(
    server: SkyPilot, provider: Provider
) -> None:
    order = an_order()
    spec = msgspec.structs.replace(order.spec, gateway_url="http://127.0.0.1:8001")
    with pytest.raises(StartRefused) as refused:
        await provider.submit(msgspec.structs.replace(order, spec=spec))
    assert refused.value.advice is not None
    assert "TUNEWRIGHT_PUBLIC_URL" in refused.value.advice
    assert not server.jobs


async def test_without_an_image_nothing_is_sent(server: SkyPilot) -> None:
    provider = a_provider(server.url, settings=SkyPilotSettings(api_url=server.url))
    with pytest.raises(StartRefused, match="no container"):
        await provider.submit(an_order())
    await provider.close()
    assert not server.calls


async def test_offers_are_the_cheapest_machine_for_each_gpu_and_number(provider: Provider) -> None:
    offers = {offer.hardware: offer for offer in await provider.quote()}
    assert set(offers) == {"A10G:1", "A10G:4"}, "half a GPU is none"
    one = offers["A10G:1"]
    assert (one.price_micro_usd_per_hour, one.region, one.gpu, one.vram_gb) == (900_000, "runpod us", "A10G 24GB", 24)
    assert offers["A10G:4"].gpu_count == 4


async def test_a_failure_keeps_the_programs_own_exit_code_and_last_words(server: SkyPilot, provider: Provider) -> None:
    ref = await provider.submit(an_order())
    [job] = server.jobs
    server.begin(job)
    job.lines.append("ERROR trainer.entry.container: exit 65 (bad_data): no pictures. Look at the dataset")
    server.end(job, "FAILED", "user code failed")
    view = await provider.fetch(ref)
    assert view is not None
    assert view.exit_code == 65
    assert "no pictures" in view.last_words
    assert view.started_at is not None
    assert view.ended_at is not None


async def test_what_is_no_api_server_is_not_believed(server: SkyPilot, provider: Provider) -> None:
    server.always = "html"
    with stamina.set_testing(True, attempts=2, cap=True), pytest.raises(Unavailable):
        await provider.list_ours()
