"""The Spaces adapter against the Hub's simulator, and beside the vendor's own client."""

import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, SpaceHardware
from huggingface_hub.utils import close_session

from services.provider_bridge.outbound.ports import Provider, StartOrder, StartRefused, Tag
from services.provider_bridge.outbound.vendors.hugging_face_spaces import SpacesSettings
from shared.ids import new_id
from shared.problems import Unavailable
from tests.contract.providers.hf_spaces import a_provider
from tests.contract.providers.hugging_face import IMAGE
from tests.integration.provider_bridge.stand_in_trainer import a_spec
from tests.simulators.hugging_face import TOKEN, USER, HuggingFace

Connect = Callable[..., Provider]
INSTALLATION = "0a1b2c3d"


@pytest.fixture
def hub() -> Iterator[HuggingFace]:
    with HuggingFace() as simulator:
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


def a_tag(epoch: int = 1) -> Tag:
    return Tag(attempt_id=new_id(), epoch=epoch)


def an_order(tag: Tag, max_run_s: int | None = None) -> StartOrder:
    return StartOrder(tag=tag, spec=a_spec(tag.attempt_id), token="t-78", max_run_s=max_run_s)


async def test_a_space_is_created_and_filled_as_the_vendors_client_does_it(
    hub: HuggingFace, provider: Provider, vendors: HfApi
) -> None:
    ours = hub.spaces[await provider.submit(an_order(a_tag(), max_run_s=3600))]
    secrets: list[Any] = ours.created["secrets"]
    vendors.create_repo(
        repo_id=f"{USER}/by-hand",
        repo_type="space",
        space_sdk="docker",
        visibility="private",
        space_hardware=SpaceHardware.A10G_SMALL,
        space_secrets=secrets,
        space_variables=[{"key": "TUNEWRIGHT_MAX_RUN_S", "value": "3600"}],
    )
    theirs = hub.spaces[f"{USER}/by-hand"]
    assert {**theirs.created, "name": ours.name} == ours.created
    vendors.create_commit(
        repo_id=theirs.id,
        repo_type="space",
        operations=[CommitOperationAdd("Dockerfile", ours.files["Dockerfile"].encode())],
        commit_message="One run of Tunewright",
    )
    header, dockerfile, readme = ours.commits[0]
    assert theirs.commits == [[header, dockerfile]]
    assert readme["value"]["path"] == "README.md"
    assert vendors.get_space_runtime(ours.id).stage == "BUILDING"


async def test_the_space_is_built_on_the_image_and_holds_the_run_in_its_secrets_alone(
    hub: HuggingFace, provider: Provider
) -> None:
    order = an_order(a_tag())
    ref = await provider.submit(order)
    assert ref == f"{USER}/{order.tag.label(INSTALLATION)}"
    space = hub.spaces[ref]
    assert f"ARG TRAINER_IMAGE={IMAGE}\n" in space.files["Dockerfile"]
    assert "sdk: docker" in space.files["README.md"]
    assert space.secrets["TUNEWRIGHT_ATTEMPT_TOKEN"] == "t-78"
    assert space.secrets["HF_TOKEN"] == TOKEN
    spec = json.loads(base64.b64decode(space.secrets["TUNEWRIGHT_RUN_SPEC_BASE64"]))
    assert spec["attempt_id"] == str(order.tag.attempt_id)
    elsewhere = json.dumps({**space.created, "secrets": None}) + "".join(space.files.values())
    assert "t-78" not in elsewhere
    assert TOKEN not in elsewhere
    assert space.created["variables"] == [{"key": "TUNEWRIGHT_MAX_RUN_S", "value": "86400"}]


@pytest.mark.parametrize("image", ["", "trainer\nRUN curl evil.example", "two words", "a;b"])
async def test_what_is_no_image_is_written_into_no_dockerfile(hub: HuggingFace, connect: Connect, image: str) -> None:
    provider = connect(settings=SpacesSettings(api_url=hub.url, image=image))
    with pytest.raises(StartRefused, match="no image"):
        await provider.submit(an_order(a_tag()))
    assert not hub.spaces


async def test_a_repository_without_files_is_no_run_and_a_newer_epoch_deletes_it(
    hub: HuggingFace, provider: Provider, connect: Connect
) -> None:
    tag = a_tag()
    hub.choose = lambda call: "lost reply" if call.path == "/api/repos/create" else None
    with pytest.raises(Unavailable):
        await provider.submit(an_order(tag))
    hub.choose = None
    assert list(hub.spaces) == [f"{USER}/{tag.label(INSTALLATION)}"]
    newer = Tag(attempt_id=tag.attempt_id, epoch=2)
    assert await connect().find(newer) is None
    assert await provider.list_ours() == []
    ref = await connect().submit(an_order(newer))
    assert list(hub.spaces) == [ref]
    assert hub.starts == [newer.label(INSTALLATION)]


async def test_the_same_epoch_fills_its_repository_anew_with_the_token_that_counts(
    hub: HuggingFace, provider: Provider
) -> None:
    tag = a_tag()
    hub.choose = lambda call: "lost reply" if call.path == "/api/repos/create" else None
    with pytest.raises(Unavailable):
        await provider.submit(an_order(tag))
    hub.choose = None
    ref = await provider.submit(msgspec.structs.replace(an_order(tag), token="another"))
    assert hub.spaces[ref].secrets["TUNEWRIGHT_ATTEMPT_TOKEN"] == "another"


async def test_files_that_are_not_taken_leave_no_repository_with_secrets(hub: HuggingFace, provider: Provider) -> None:
    hub.commit_refusal = "This file is not allowed"
    with pytest.raises(StartRefused, match="not allowed"):
        await provider.submit(an_order(a_tag()))
    assert not hub.spaces


async def test_a_space_that_has_paused_itself_costs_nothing_and_is_deleted_when_that_is_confirmed(
    hub: HuggingFace, provider: Provider
) -> None:
    order = an_order(a_tag())
    ref = await provider.submit(order)
    hub.show_space(hub.spaces[ref], "RUNNING")
    [running] = await provider.list_ours()
    assert (running.ref, running.price_micro_usd_per_hour) == (ref, 1_000_020)
    assert not await provider.confirm_gone(ref)
    hub.show_space(hub.spaces[ref], "PAUSED")
    assert await provider.list_ours() == []
    assert await provider.confirm_gone(ref)
    assert ref not in hub.spaces
    assert await provider.confirm_gone(ref)
    assert await provider.fetch(ref) is None
    assert not hub.bill.open()


async def test_a_proxys_page_in_answer_to_the_deletion_leaves_no_secrets_behind(
    hub: HuggingFace, provider: Provider
) -> None:
    ref = await provider.submit(an_order(a_tag()))
    hub.show_space(hub.spaces[ref], "PAUSED")
    hub.choose = lambda call: "html" if call.path == "/api/repos/delete" else None
    assert not await provider.confirm_gone(ref)
    hub.choose = None
    assert await provider.confirm_gone(ref)
    assert ref not in hub.spaces


async def test_spaces_of_the_account_that_are_not_ours_are_left_alone(hub: HuggingFace, provider: Provider) -> None:
    space = hub.add_space(f"{USER}/my-demo", {})
    hub.show_space(space, "RUNNING")
    assert await provider.list_ours() == []
    await provider.cancel(a_tag(), space.id, 0)
    assert space.stage == "RUNNING"
    hub.show_space(space, "PAUSED")
    assert await provider.confirm_gone(space.id)
    assert space.id in hub.spaces


async def test_a_build_that_failed_says_why(hub: HuggingFace, provider: Provider) -> None:
    ref = await provider.submit(an_order(a_tag()))
    space = hub.spaces[ref]
    hub.show_space(space, "BUILD_ERROR")
    space.error = "manifest unknown"
    view = await provider.fetch(ref)
    assert view is not None
    assert (view.word, view.last_words) == ("BUILD_ERROR", "manifest unknown")


async def test_a_log_is_read_on_while_the_space_runs(hub: HuggingFace, provider: Provider) -> None:
    ref = await provider.submit(an_order(a_tag()))
    space = hub.spaces[ref]
    hub.show_space(space, "RUNNING")
    space.lines.append("one")
    first = await provider.logs(ref, None)
    space.lines.append("two")
    second = await provider.logs(ref, first.cursor)
    assert (first.lines, second.lines) == (["one"], ["two"])


async def test_a_proxys_page_in_answer_to_the_commit_is_no_start_and_the_next_one_starts_it(
    hub: HuggingFace, provider: Provider
) -> None:
    order = an_order(a_tag())
    hub.choose = lambda call: "html" if "/commit/" in call.path else None
    with pytest.raises(Unavailable, match="JSON was due"):
        await provider.submit(order)
    assert not hub.starts
    hub.choose = None
    assert hub.spaces[await provider.submit(order)].stage == "BUILDING"
    assert hub.starts == [order.tag.label(INSTALLATION)]
