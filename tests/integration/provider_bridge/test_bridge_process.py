"""The real service, killed and paused by real signals at points a test can see."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from deploy.embedded.nats import EmbeddedNats
from services.provider_bridge.attempt_stream import attempt_stream
from shared.contracts import catalogue
from shared.contracts.admin import Ping, RebuildProjections
from shared.contracts.attempt import (
    AttemptAccepted,
    AttemptCancelled,
    AttemptFailed,
    AttemptLeased,
    AttemptLost,
    AttemptStartIntended,
    CancelAttempt,
    RequestAttempt,
)
from shared.contracts.job import Command, Event
from shared.eventstore.postgres import PostgresEventStore
from shared.ids import new_id
from shared.messaging.commands import CommandSender
from shared.problems import Unavailable
from tests.integration.provider_bridge import stand_in_trainer as stand_in
from tests.support.bus import ServiceSettings, connected_bus
from tests.support.log import StoreFor

ROOT = Path(__file__).resolve().parents[3]


class Bridges:
    """Bridge processes on one log, one bus and one state folder, and a scheduler that talks to them."""

    def __init__(self, environment: Mapping[str, str], store: PostgresEventStore, sender: CommandSender) -> None:
        self._environment = environment
        self._store = store
        self._sender = sender
        self.state_dir = Path(environment["BRIDGE_STATE_DIR"])
        self.processes: list[subprocess.Popen[bytes]] = []

    async def start(self) -> subprocess.Popen[bytes]:
        """A bridge that answers commands."""
        process = self.spawn()

        async def answers() -> bool:
            assert process.poll() is None
            try:
                await self.send(Ping(), new_id(), timeout_s=1)  # the bus may give it to one that was just killed
            except Unavailable:
                return False
            return True

        await stand_in.eventually("the bridge answers", answers)
        return process

    def spawn(self) -> subprocess.Popen[bytes]:
        """A bridge, perhaps not ready."""
        environment = {"PATH": os.environ["PATH"], **self._environment}
        command = [sys.executable, "-m", "services.provider_bridge"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sys.stderr, process_group=0)
        self.processes.append(process)
        return process

    async def send(self, command: Command, job_id: UUID, *, timeout_s: float = 60) -> dict[str, Any]:
        """What the bridge answers."""
        reply = await self._sender.send("provider_bridge", command, correlation_id=job_id, timeout_s=timeout_s)
        return reply.data

    async def request(self, **plan: Any) -> UUID:
        """An accepted request for an attempt whose stand-in does as `plan` says."""
        attempt_id, job_id = new_id(), new_id()
        command = RequestAttempt(
            attempt_id=attempt_id,
            job_id=job_id,
            attempt_number=1,
            provider="local",
            config=plan,
            dataloader=[],
            datasets=[],
            resume=None,
            price_micro_usd_per_hour=0,
        )
        await self.send(command, job_id)
        return attempt_id

    async def history(self, attempt_id: UUID) -> list[Event]:
        """The attempt's events."""
        recorded = await self._store.read_stream(attempt_stream(attempt_id))
        return [event for row in recorded if (event := catalogue.decode(row)) is not None]

    async def row(self, attempt_id: UUID, phase: str) -> asyncpg.Record:
        """The attempt in the read model, once it shows that phase."""
        connection = await asyncpg.connect(self._environment["DATABASE_URL"])

        async def reached() -> asyncpg.Record | None:
            found = await connection.fetchrow("SELECT * FROM attempts WHERE attempt_id = $1", attempt_id)
            return found if found and found["phase"] == phase else None

        try:
            return await stand_in.eventually(f"the read model shows {phase}", reached)
        finally:
            await connection.close()

    async def until(self, attempt_id: UUID, kind: type[Event], count: int = 1) -> Any:
        """The `count`-th event of that kind, once it is in the log."""

        async def reached() -> Event | None:
            found = [event for event in await self.history(attempt_id) if isinstance(event, kind)]
            return found[count - 1] if len(found) >= count else None

        return await stand_in.eventually(f"{kind.__name__} number {count}", reached)

    async def until_file(self, attempt_id: UUID, name: str) -> Path:
        """A file of the attempt's folder, once it is there."""
        path = self.state_dir / "attempts" / str(attempt_id) / name

        async def there() -> bool:
            return path.exists()

        await stand_in.eventually(name, there)
        return path

    async def the_one_start(self, attempt_id: UUID) -> dict[str, Any]:
        """The only trainer process ever started, which must hold the newest token of the history."""

        async def started() -> list[dict[str, Any]]:
            return stand_in.starts(self.state_dir, attempt_id)

        await stand_in.eventually("the trainer runs", started)
        [start] = stand_in.starts(self.state_dir, attempt_id)
        intents = [event for event in await self.history(attempt_id) if isinstance(event, AttemptStartIntended)]
        assert intents[-1].token_sha256 == hashlib.sha256(start["token"].encode()).hexdigest()
        return start


@pytest.fixture
def environment(service_settings: ServiceSettings, tmp_path: Path) -> Mapping[str, str]:
    return service_settings(
        "provider_bridge",
        bridge_gateway_url="http://127.0.0.1:9",
        bridge_state_dir=tmp_path / "state",
        bridge_trainer_python=stand_in.install(tmp_path),
        bridge_trainer_dir=tmp_path,
        bridge_lease_s=4,
        bridge_reconcile_interval_s=0.1,
        bridge_cancel_grace_s=0.3,
        bridge_report_grace_s=0.1,
    )


@pytest.fixture
async def bridges(
    environment: Mapping[str, str], bus_server: EmbeddedNats, store_for: StoreFor
) -> AsyncIterator[Bridges]:
    async with connected_bus(bus_server, "scheduler") as bus:
        made = Bridges(environment, await store_for("scheduler"), CommandSender(bus))
        yield made
        for process in made.processes:
            process.kill()
            process.wait(10)


async def test_killed_while_the_trainer_runs_a_restarted_bridge_takes_the_run_over(bridges: Bridges) -> None:
    first = await bridges.start()
    attempt = await bridges.request()
    await bridges.until(attempt, AttemptAccepted)
    start = await bridges.the_one_start(attempt)
    first.kill()
    first.wait(10)
    assert stand_in.is_running(start["pid"])
    await bridges.start()
    leased = await bridges.until(attempt, AttemptLeased, count=2)
    assert leased.epoch == 2
    stand_in.finish(bridges.state_dir, attempt)
    failed = await bridges.until(attempt, AttemptFailed)
    assert failed.exit_code == 0
    await bridges.the_one_start(attempt)


async def test_killing_the_bridges_whole_process_group_leaves_its_runs_alive(bridges: Bridges) -> None:
    first = await bridges.start()
    attempt = await bridges.request()
    await bridges.until(attempt, AttemptAccepted)
    start = await bridges.the_one_start(attempt)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(10)
    await bridges.start()
    await bridges.until(attempt, AttemptLeased, count=2)
    assert stand_in.is_running(start["pid"])


async def test_killed_between_intent_and_submit_starts_one_trainer(bridges: Bridges) -> None:
    first = await bridges.start()
    attempt = await bridges.request()
    await bridges.until(attempt, AttemptStartIntended)
    first.kill()
    first.wait(10)
    await bridges.start()
    await bridges.until(attempt, AttemptAccepted)
    await bridges.the_one_start(attempt)


async def test_killed_between_submit_and_recorded_outcome_finds_the_one_trainer(bridges: Bridges) -> None:
    first = await bridges.start()
    attempt = await bridges.request()
    await bridges.until_file(attempt, "started.json")
    first.kill()
    first.wait(10)
    await bridges.start()
    await bridges.until(attempt, AttemptAccepted)
    await bridges.the_one_start(attempt)


async def test_a_paused_bridge_is_replaced_and_does_nothing_when_it_wakes(bridges: Bridges) -> None:
    first = await bridges.start()
    attempt = await bridges.request()
    await bridges.until(attempt, AttemptAccepted)
    start = await bridges.the_one_start(attempt)
    first.send_signal(signal.SIGSTOP)
    bridges.spawn()
    leased = await bridges.until(attempt, AttemptLeased, count=2)
    first.send_signal(signal.SIGCONT)
    assert stand_in.is_running(start["pid"])
    await bridges.send(CancelAttempt(attempt_id=attempt, reason="test"), new_id())
    await bridges.until(attempt, AttemptCancelled)
    history = await bridges.history(attempt)
    assert [event.epoch for event in history if isinstance(event, AttemptLeased)] == [1, leased.epoch]
    assert not stand_in.is_running(start["pid"])
    await bridges.the_one_start(attempt)


async def test_asked_to_stop_it_drains_and_leaves_its_runs_alive(bridges: Bridges) -> None:
    first = await bridges.start()
    attempt = await bridges.request()
    await bridges.until(attempt, AttemptAccepted)
    start = await bridges.the_one_start(attempt)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0
    assert stand_in.is_running(start["pid"])


async def test_the_read_model_shows_each_phase_and_refolds_to_the_same_rows(bridges: Bridges) -> None:
    await bridges.start()
    running, ended = await bridges.request(), await bridges.request(code=64)
    await bridges.until(running, AttemptAccepted)
    await bridges.until(ended, AttemptFailed)
    row = await bridges.row(running, "accepted")
    assert (row["outcome"], row["epoch"], row["provider_ref"]) == (None, 1, str(running))
    assert (await bridges.row(ended, "ended"))["outcome"] == "failed"
    answer = await bridges.send(RebuildProjections(), new_id())
    [attempts] = answer["projections"]
    assert attempts["name"] == "attempts"
    assert attempts["equal"]


async def test_a_runner_that_was_killed_with_the_bridge_leaves_a_lost_attempt(bridges: Bridges) -> None:
    first = await bridges.start()
    attempt = await bridges.request()
    await bridges.until(attempt, AttemptAccepted)
    await bridges.the_one_start(attempt)
    claimed = await bridges.until_file(attempt, "started.json")
    first.kill()
    stand_in.kill(json.loads(claimed.read_text())["runner_pid"], signal.SIGKILL)
    first.wait(10)
    await bridges.start()
    await bridges.until(attempt, AttemptLost)
