"""Saved configs: every form that is understood, and nothing outside their folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.gateway.outbound.config_files import ConfigFiles
from shared.contracts.training.problems import ConfigRejected
from shared.problems import Rejected

LOADER = [{"id": "a", "type": "local", "instance_data_dir": "/a"}]


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "configs"


async def test_folder_with_the_default_dataloader_file(folder: Path) -> None:
    write(folder / "one/config.json", {"--lora_rank": 4})
    write(folder / "one/multidatabackend.json", LOADER)
    loaded = await ConfigFiles(folder).load("one")
    assert (loaded.name, loaded.config, loaded.dataloader) == ("one", {"--lora_rank": 4}, LOADER)


@pytest.mark.parametrize("given", ["loader.json", "one/loader.json", "config/one/loader.json"])
async def test_dataloader_key_is_read_from_where_configs_name_it(folder: Path, given: str) -> None:
    write(folder / "one/config.json", {"--data_backend_config": given})
    write(folder / "one/loader.json", LOADER)
    assert (await ConfigFiles(folder).load("one")).dataloader == LOADER


async def test_single_file_may_hold_both_lists(folder: Path) -> None:
    write(folder / "both.json", {"config": {"--lora_rank": 4}, "dataloader_config": LOADER})
    for name in ("both", "both.json"):
        loaded = await ConfigFiles(folder).load(name)
        assert (loaded.config, loaded.dataloader) == ({"--lora_rank": 4}, LOADER)


@pytest.mark.parametrize("given", ["../secret.json", "/etc/secret.json", "one/../../secret.json"])
async def test_dataloader_outside_the_folder_is_not_read(folder: Path, given: str) -> None:
    write(folder / "one/config.json", {"data-backend-config": given})
    write(folder.parent / "secret.json", LOADER)
    with pytest.raises(ConfigRejected) as error:
        await ConfigFiles(folder).load("one")
    assert error.value.problems[0].field == "data_backend_config"


async def test_link_that_leads_outside_the_folder_is_not_followed(folder: Path) -> None:
    write(folder.parent / "secret.json", {"--lora_rank": 4})
    link(folder / "link.json", folder.parent / "secret.json")
    with pytest.raises(Rejected) as error:
        await ConfigFiles(folder).load("link")
    assert error.value.code == "config_not_found"


@pytest.mark.parametrize("content", ["{not json", "[1, 2]", '{"config": {}, "dataloader_config": {"a": 1}}'])
async def test_file_that_is_no_config_says_so(folder: Path, content: str) -> None:
    write(folder / "odd.json", content)
    with pytest.raises(ConfigRejected):
        await ConfigFiles(folder).load("odd")


async def test_missing_config_and_missing_folder_are_config_not_found(folder: Path) -> None:
    with pytest.raises(Rejected) as error:
        await ConfigFiles(folder / "nowhere").load("one")
    assert error.value.code == "config_not_found"
