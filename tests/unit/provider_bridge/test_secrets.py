"""Secrets come from the first source that has them; a source that cannot be read is named, and shows nothing."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from services.provider_bridge.outbound.secrets import (
    EnvironmentSecrets,
    SecretChain,
    SecretFile,
    SourceBroken,
    by_name,
    normalised,
)
from shared.settings import Secret

TOKEN = "r8_something_secret"


def a_file(folder: Path, text: str, name: str = "secrets.json", mode: int = 0o600) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


class Source:
    """A source of a test's own; counts how often it is asked."""

    def __init__(self, title: str, values: dict[str, str] | None = None, broken: str | None = None) -> None:
        self.title = title
        self.values = values or {}
        self.broken = broken
        self.asked = 0
        self.hangs = False

    async def read(self) -> Mapping[str, Secret]:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.broken is not None:
            raise SourceBroken(self.title, self.broken, "mend it")
        return by_name(self.title, self.values)


@pytest.mark.parametrize(
    "name", ["REPLICATE_API_TOKEN", "replicate_api_token", "replicate-api-token", "replicate.api.token"]
)
async def test_every_spelling_is_the_same_name(name: str) -> None:
    assert normalised(name) == "REPLICATE_API_TOKEN"
    for chain in (SecretChain([EnvironmentSecrets({name: TOKEN})]), SecretChain([Source("file", {name: TOKEN})])):
        found = await chain.find("replicate-api-token")
        assert found is not None
        assert found.value.reveal() == TOKEN


async def test_the_plain_spelling_of_a_variable_wins() -> None:
    chain = SecretChain([EnvironmentSecrets({"hf-token": "odd", "HF_TOKEN": "plain"})])
    found = await chain.find("hf_token")
    assert found is not None
    assert found.value.reveal() == "plain"


async def test_the_first_source_that_has_it_wins_and_no_later_one_is_asked() -> None:
    first, second, third = Source("one"), Source("two", {"A_KEY": "2"}), Source("three", {"A_KEY": "3"})
    found = await SecretChain([first, second, third]).find("A_KEY")
    assert found is not None
    assert (found.value.reveal(), found.source) == ("2", "two")
    assert (first.asked, second.asked, third.asked) == (1, 1, 0)


async def test_a_broken_source_is_an_error_and_never_skipped() -> None:
    chain = SecretChain([Source("Vault", broken="sealed"), Source("later", {"A_KEY": "x"})])
    with pytest.raises(SourceBroken, match="Vault: sealed"):
        await chain.find("A_KEY")


async def test_a_source_before_the_broken_one_still_answers() -> None:
    chain = SecretChain([Source("env", {"A_KEY": "x"}), Source("Vault", broken="sealed")])
    assert await chain.find("A_KEY") is not None


async def test_a_source_that_never_answers_is_broken_after_its_time() -> None:
    slow = Source("Vault")
    slow.hangs = True
    with pytest.raises(SourceBroken, match="did not answer"):
        await SecretChain([slow], lookup_s=0.01).find("A_KEY")


async def test_what_a_source_holds_is_remembered_for_a_while() -> None:
    now = [100.0]
    source = Source("Vault", {"A_KEY": "old"})
    chain = SecretChain([source], ttl_s=60, now=lambda: now[0])
    await chain.find("A_KEY")
    source.values = {"A_KEY": "new"}
    now[0] += 59
    found = await chain.find("A_KEY")
    assert found is not None
    assert found.value.reveal() == "old"
    now[0] += 2
    found = await chain.find("A_KEY")
    assert found is not None
    assert found.value.reveal() == "new"
    assert source.asked == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [("secrets.json", f'{{"REPLICATE_API_TOKEN": "{TOKEN}"}}'), ("secrets.yaml", f"replicate-api-token: {TOKEN}\n")],
)
async def test_a_private_file_is_read(tmp_path: Path, name: str, text: str) -> None:
    values = await SecretFile([tmp_path / "nothing.json", a_file(tmp_path, text, name)], required=False).read()
    assert values["REPLICATE_API_TOKEN"].reveal() == TOKEN


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o622, 0o660])
async def test_a_file_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    path = a_file(tmp_path, f'{{"A": "{TOKEN}"}}', mode=mode)
    with pytest.raises(SourceBroken) as refused:
        await SecretFile([path], required=False).read()
    assert f"{mode:04o}" in refused.value.message
    assert refused.value.advice == f"Run: chmod 600 {path}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = a_file(tmp_path, "{}")
    os.chown(path, 12345, 12345)
    with pytest.raises(SourceBroken, match="another user"):
        await SecretFile([path], required=False).read()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("secrets.json", f'{{"A": "{TOKEN}"'),
        ("secrets.json", f'["{TOKEN}"]'),
        ("secrets.json", f'{{"A": ["{TOKEN}"]}}'),
        ("secrets.yaml", f"A: [{TOKEN}"),
        ("secrets.yaml", f"{TOKEN}"),
        ("secrets.json", f'{{"a-key": "{TOKEN}", "A_KEY": "other"}}'),
    ],
)
async def test_a_file_that_is_wrong_is_named_and_shows_nothing(tmp_path: Path, name: str, text: str) -> None:
    path = a_file(tmp_path, text, name)
    with pytest.raises(SourceBroken) as refused:
        await SecretFile([path], required=False).read()
    assert str(path) in str(refused.value)
    assert TOKEN not in f"{refused.value} {refused.value.advice} {refused.getrepr(style='long')}".replace(text, "")


async def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    missing = tmp_path / "mine.json"
    assert await SecretFile([missing], required=False).read() == {}
    with pytest.raises(SourceBroken, match=r"mine\.json"):
        await SecretFile([missing], required=True).read()


async def test_no_repr_shows_a_secret() -> None:
    source = Source("file", {"A_KEY": TOKEN})
    chain = SecretChain([source])
    found = await chain.find("A_KEY")
    assert TOKEN not in f"{found!r} {chain!r} {vars(chain)!r} {await source.read()!r}"
