"""No trainer of a test outlives it."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.runs.folder import read_json
from tests.integration.provider_bridge import stand_in_trainer as stand_in


@pytest.fixture(autouse=True)
def no_trainer_left_behind(tmp_path: Path) -> Iterator[None]:
    yield
    for file in tmp_path.glob("**/attempts/*/started.json"):
        pid = (read_json(file) or {}).get("runner_pid")
        if pid and stand_in.is_running(pid):
            stand_in.kill(pid, signal.SIGKILL)
