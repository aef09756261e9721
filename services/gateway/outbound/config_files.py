"""Saved training configs: `<name>/config.json` with its dataloader file beside it, or one `<name>.json`."""

import asyncio
from pathlib import Path
from typing import Any, cast

import msgspec

from services.gateway.domain.submission import LoadedConfig, check_name
from shared.contracts.training.problems import ConfigRejected, FieldProblem
from shared.contracts.training.values import bare_key
from shared.problems import Rejected

MAX_FILE_BYTES = 4 * 1024 * 1024
DATALOADER_KEY = "data_backend_config"
DATALOADER_FILE = "multidatabackend.json"


class ConfigFiles:
    """Reads one folder of the operator's; nothing outside it is ever opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    async def load(self, name: str) -> LoadedConfig:
        """The saved config of that name.

        Raises:
            Rejected: `config_not_found`, or `validation_error` for a name that is not a slug.
            ConfigRejected: a file cannot be read as what it should be, or the dataloader file is missing.
        """
        return await asyncio.to_thread(self._load, check_name(name))

    def _load(self, name: str) -> LoadedConfig:
        path = self._first_file([f"{name}/config.json", f"{name}.json", name])
        if path is None:
            raise Rejected("config_not_found", f"no saved config is named {name}", config_name=name)
        content = self._read(path)
        if not isinstance(content, dict):
            raise _unreadable("config", f"{name} holds no JSON object")
        config = cast("dict[str, Any]", content)
        # A file may hold what a request would send: both lists under their two names.
        inner, loader = config.get("config"), config.get("dataloader_config")
        if isinstance(inner, dict):
            config = cast("dict[str, Any]", inner)
        entries = loader if loader is not None else self._dataloader(name, path, config)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in cast("list[Any]", entries)):
            raise _unreadable(DATALOADER_KEY, "the dataloader file holds no list of objects")
        return LoadedConfig(name=name, config=config, dataloader=cast("list[dict[str, Any]]", entries))

    def _dataloader(self, name: str, path: Path, config: dict[str, Any]) -> Any:
        given = next((value for key, value in config.items() if bare_key(key) == DATALOADER_KEY), None)
        if given is not None and not isinstance(given, str):
            raise _unreadable(DATALOADER_KEY, "it is not a file name")
        own = path.parent.relative_to(self._folder).as_posix()
        # Configs written for SimpleTuner name the file from its working directory: config/<name>/<file>.
        candidates = [f"{own}/{given}", given, given.removeprefix("config/")] if given else [f"{own}/{DATALOADER_FILE}"]
        found = self._first_file(candidates)
        if found is None:
            raise _unreadable(
                DATALOADER_KEY, f"{given or DATALOADER_FILE} is not in the folder of saved configs ({name})"
            )
        return self._read(found)

    def _first_file(self, names: list[str]) -> Path | None:
        for name in names:
            path = (self._folder / name).resolve()
            if path.is_relative_to(self._folder) and path.suffix == ".json" and path.is_file():
                return path
        return None

    def _read(self, path: Path) -> Any:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _unreadable("config", f"{path.name} is larger than {MAX_FILE_BYTES} bytes")
        try:
            return msgspec.json.decode(path.read_bytes())
        except msgspec.DecodeError as error:
            raise _unreadable("config", f"{path.name} is not JSON: {error}") from error


def _unreadable(field: str, message: str) -> ConfigRejected:
    advice = "Correct the saved config, or send the config in the request."
    return ConfigRejected([FieldProblem(field=field, code="wrong_type", message=message, advice=advice)])
