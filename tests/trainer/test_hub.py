"""The hub's own client against a hub on loopback: repository, content, one commit; refusals and repeats."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.simulators.hub import TOKEN, Hub
from trainer.publish.credentials import Outside
from trainer.publish.hub import HubStore
from trainer.publish.upload import OutgoingFile, UploadDelayed, UploadRefused

# The client's own way of sending one file, which its HTTP library has come to dislike.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with Hub(part_bytes=256 * 1024) as running:
        yield running


@pytest.fixture
def files(tmp_path: Path) -> list[OutgoingFile]:
    """A card, small weights, and weights that come in three parts."""
    made: list[OutgoingFile] = []
    for name, content in {
        "README.md": b"---\ntags: [lora]\n---\n# A card\n",
        "lora.safetensors": b"w" * 1000,
        "big.safetensors": bytes(range(256)) * 2100,
    }.items():
        (tmp_path / name).write_bytes(content)
        made.append(OutgoingFile(tmp_path / name, name))
    return made


def store(hub: Hub, name: str = "ann/digits", *, token: str | None = TOKEN, private: bool = True) -> HubStore:
    return HubStore(name, private=private, outside=Outside(hub_token=token, hub_endpoint=hub.url))


def deliver(to: HubStore, files: list[OutgoingFile]) -> None:
    for file in files:
        to.put(file)
    to.complete()


def answers(*statuses: int, path: str, headers: dict[str, str] | None = None) -> Callable[[str, str], Any]:
    """Refuses the first requests of a path with these statuses."""
    left = list(statuses)

    def refuse(_method: str, asked: str) -> tuple[int, dict[str, str]] | None:
        return (left.pop(0), headers or {}) if left and re.search(path, asked) else None

    return refuse


def test_a_new_repository_is_private_and_gets_every_file_in_one_commit(hub: Hub, files: list[OutgoingFile]) -> None:
    there = store(hub)
    deliver(there, files)
    repository = hub.repositories["ann/digits"]
    assert repository.private is True
    assert repository.files == {file.name: file.path.read_bytes() for file in files}
    assert repository.commits == [["README.md", "big.safetensors", "lora.safetensors"]]
    assert repository.large == {"big.safetensors", "lora.safetensors"}
    assert hub.parts_received == 3
    assert (there.target, there.url) == ("hub:ann/digits", f"{hub.url}/ann/digits")


def test_a_public_repository_without_an_owner_is_made_under_the_tokens_name(
    hub: Hub, files: list[OutgoingFile]
) -> None:
    there = store(hub, "digits", private=False)
    deliver(there, files)
    assert hub.repositories["ann/digits"].private is False
    assert there.url == f"{hub.url}/ann/digits"


def test_delivering_again_sends_nothing_and_commits_nothing(hub: Hub, files: list[OutgoingFile]) -> None:
    deliver(store(hub), files)
    before = len(hub.asked)
    deliver(store(hub), files)
    assert hub.repositories["ann/digits"].commits == [["README.md", "big.safetensors", "lora.safetensors"]]
    assert not [asked for asked in hub.asked[before:] if asked.startswith("PUT") or "/commit/" in asked]


def test_a_changed_file_is_the_only_one_in_the_next_commit(hub: Hub, files: list[OutgoingFile]) -> None:
    deliver(store(hub), files)
    files[1].path.write_bytes(b"v" * 1000)
    deliver(store(hub), files)
    assert hub.repositories["ann/digits"].commits[1:] == [["lora.safetensors"]]
    assert hub.repositories["ann/digits"].files["lora.safetensors"] == b"v" * 1000


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub: Hub, files: list[OutgoingFile]) -> None:
    there = store(hub)
    lost = iter([True])
    hub.drop_answer = lambda _method, path: "/commit/" in path and next(lost, False)
    for file in files:
        there.put(file)
    with pytest.raises(UploadDelayed):
        there.complete()
    there.complete()
    assert len(hub.repositories["ann/digits"].commits) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_may_not_write_is_refused_and_never_shown(
    hub: Hub, files: list[OutgoingFile], status: int
) -> None:
    there = store(hub, token="hf_anotherToken" if status == 401 else TOKEN, name="ann/x" if status == 401 else "bob/x")
    with pytest.raises(UploadRefused, match=f"HTTP {status}") as refused:
        deliver(there, files)
    assert "hf_" not in str(refused.value)


def test_without_a_token_nothing_is_asked(hub: Hub, files: list[OutgoingFile]) -> None:
    with pytest.raises(UploadRefused, match="HF_TOKEN is not set"):
        deliver(store(hub, token=None), files)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("status", "path"), [(429, "/api/repos/create"), (500, "/api/repos/create"), (503, "/commit/"), (429, "/commit/")]
)
def test_a_hub_that_is_busy_delays_and_the_next_try_goes_on(
    hub: Hub, files: list[OutgoingFile], status: int, path: str
) -> None:
    hub.refuse = answers(status, path=path, headers={"Retry-After": "7"})
    there = store(hub)
    with pytest.raises(UploadDelayed, match=f"HTTP {status}") as delayed:
        deliver(there, files)
    assert delayed.value.response is not None
    assert delayed.value.response.headers["Retry-After"] == "7"
    deliver(there, files)
    assert len(hub.repositories["ann/digits"].commits) == 1


def test_a_refused_commit_is_a_refusal_without_addresses(hub: Hub, files: list[OutgoingFile]) -> None:
    hub.refuse = answers(400, path="/commit/")
    with pytest.raises(UploadRefused, match="HTTP 400") as refused:
        deliver(store(hub), files)
    assert "http://" not in str(refused.value)


def test_a_hub_that_is_away_delays(files: list[OutgoingFile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    away = HubStore("ann/x", private=True, outside=Outside(hub_token=TOKEN, hub_endpoint="http://127.0.0.1:9"))
    with pytest.raises(UploadDelayed):
        deliver(away, files)


def test_the_token_goes_to_the_hub_alone(hub: Hub, files: list[OutgoingFile]) -> None:
    deliver(store(hub), files)
    assert hub.tokens == {TOKEN}
