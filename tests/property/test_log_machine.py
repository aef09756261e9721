"""Store, relay and projection together, hurt in every way, in memory: the rows stay a fold of the log."""

import pytest
import structlog
from hypothesis.stateful import run_state_machine_as_test

from tests.support.depth import depth, examples
from tests.support.log_machine import Backend, LogMachine
from tests.support.memory_backend import MemoryBackend


class MemoryMachine(LogMachine):
    """The machine without servers."""

    async def open_backend(self) -> Backend:
        return MemoryBackend()


@pytest.mark.timeout(depth(300))
def test_store_relay_and_projection_in_memory() -> None:
    with structlog.testing.capture_logs():
        run_state_machine_as_test(MemoryMachine, settings=examples(80, stateful_step_count=25))
