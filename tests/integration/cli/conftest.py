"""Embedded mode as `tunewright up` starts it, once for all tests of the CLI."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.system import TRAINER_PYTHON, System, demo_body, demo_pictures


class Shell:
    """What a person has: a running Tunewright, and the files to submit."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        self.folder = folder
        self._pictures = demo_pictures(folder / "digits")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`tunewright …` as a process of its own, stdout and stderr kept apart."""
        return self.system.tunewright(*arguments)

    def files(self, name: str, **settings: object) -> list[str]:
        """CONFIG and --dataloader of a job with these settings, as arguments for submit."""
        body = demo_body(self._pictures, validation_disable=True, **settings)
        config, loader = self.folder / f"{name}.json", self.folder / f"{name}-loader.json"
        config.write_text(json.dumps(body["config"]), encoding="utf-8")
        loader.write_text(json.dumps(body["dataloader_config"]), encoding="utf-8")
        return [str(config), "--dataloader", str(loader), "--name", name]


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Starts everything, and stops it at the end."""
    if not TRAINER_PYTHON.exists():
        pytest.skip("the trainer's environment is not there")
    folder = tmp_path_factory.mktemp("cli")
    system = System(folder)
    system.start()
    yield Shell(system, folder)
    system.stop()
