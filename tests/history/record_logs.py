"""Records the logs under tests/golden/histories from real runs: `python -m tests.history.record_logs [NAME ...]`.

A recorded log is never recorded over: it stands for what an earlier version stored. Add a scenario of another name.
Needs the trainer's environment; takes some minutes.
"""

import asyncio
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import psutil
import pytest

from shared.contracts.subjects import SERVICES
from shared.eventstore.hashing import StoredEvent
from shared.eventstore.queries import QUERIES
from shared.eventstore.rows import stored
from tests.history.refolding import TABLES, table_rows
from tests.history.stored_log import HISTORIES, Expected, rechained, write_log
from tests.support.system import ROOT, System, await_value, demo_body, demo_pictures

Stories = dict[str, str]
_LIMIT_S = 600.0
NOT_FOUND = 404


class Recording:
    """A system that is being told its stories, with what they need."""

    def __init__(self, system: System, pictures: Path) -> None:
        self.system = system
        self.pictures = pictures
        self.stories: Stories = {}

    def submit(self, name: str, **overrides: Any) -> str:
        """A small job that counts as one story."""
        small = {"max_train_steps": 12, "checkpointing_steps": 4, "validation_disable": True, **overrides}
        job_id = self.stories[name] = self.system.submit(demo_body(self.pictures, **small))
        return job_id

    def reached(self, job_id: str, type_: str, times: int = 1) -> None:
        """Returns when the story holds so many events of the type."""

        def told() -> bool:
            return [event["type"] for event in self.system.history(job_id)].count(type_) >= times

        await_value(_LIMIT_S, f"{type_} x{times} of {job_id}", told)

    def settled(self, job_id: str) -> None:
        """Returns when the job has ended and its money is settled."""
        self.reached(job_id, "account.funds_captured.v1")

    def processes(self, job_id: str) -> dict[str, list[psutil.Process]]:
        """The live runner and trainer of the job's newest attempt."""
        requested = [event for event in self.system.history(job_id) if event["type"] == "attempt.requested.v1"]
        attempt = requested[-1]["stream"].removeprefix("attempt-")
        found: dict[str, list[psutil.Process]] = {"runner": [], "trainer": []}
        for process in psutil.process_iter(["cmdline"]):
            line: list[str] = process.info["cmdline"] or []
            if attempt in " ".join(line):
                found["trainer" if "trainer" in line else "runner"].append(process)
        return found


def road(rec: Recording) -> None:
    """Ends of every kind, and three jobs that still live."""
    done = rec.submit("completed_with_checkpoints")
    rec.settled(done)
    rec.system.http.delete(f"/api/cloud/jobs/{done}").raise_for_status()

    no_model = rec.submit("failed_at_every_attempt", pretrained_model_name_or_path=str(rec.pictures / "no-such-model"))
    broken = rec.pictures.with_name("broken-pictures")
    broken.mkdir()
    (broken / "1.png").write_bytes(b"not a picture")
    bad = rec.stories["failed_bad_data"] = rec.system.submit(demo_body(broken, max_train_steps=12))
    rec.settled(bad)
    rec.settled(no_model)
    body = demo_body(rec.pictures.with_name("no-such-pictures"))
    nothing = rec.stories["dataset_refused"] = rec.system.submit(body)
    rec.settled(nothing)

    lost = rec.submit("completed_after_a_lost_attempt", max_train_steps=300, checkpointing_steps=50)
    preempted = rec.submit("completed_after_a_preemption", max_train_steps=300, checkpointing_steps=50)
    waits = rec.submit("cancelled_while_waiting", max_train_steps=100_000)
    rec.reached(waits, "job.wait_explained.v1")
    rec.system.http.post(f"/api/cloud/jobs/{waits}/cancel").raise_for_status()
    rec.settled(waits)
    rec.reached(lost, "job.checkpointed.v1")
    for process in [*rec.processes(lost)["runner"], *rec.processes(lost)["trainer"]]:
        os.kill(process.pid, signal.SIGKILL)
    rec.reached(preempted, "job.checkpointed.v1")
    os.kill(rec.processes(preempted)["trainer"][0].pid, signal.SIGTERM)
    rec.settled(lost)
    rec.settled(preempted)

    killed = rec.submit("completed_while_the_bridge_was_killed", max_train_steps=60, checkpointing_steps=20)
    cancelled = rec.submit("cancelled_while_training", max_train_steps=100_000, checkpointing_steps=50)
    rec.reached(killed, "job.started.v1")
    rec.system.await_restarted("provider_bridge", rec.system.kill("provider_bridge"))
    rec.reached(cancelled, "job.checkpointed.v1")
    rec.system.http.post(f"/api/cloud/jobs/{cancelled}/cancel").raise_for_status()
    rec.settled(cancelled)
    rec.settled(killed)
    for name in ("still_training", "still_training_too"):
        rec.reached(rec.submit(name, max_train_steps=1_000_000, checkpointing_steps=1_000_000), "job.started.v1")
    rec.reached(rec.submit("still_waiting"), "job.wait_explained.v1")


def budget(rec: Recording) -> None:
    """An account with a limit that the second job does not fit under."""
    rec.settled(rec.submit("completed_within_the_limit"))
    refused = rec.submit("funds_refused", max_train_steps=50_000)
    rec.reached(refused, "job.failed.v1")


SCENARIOS: dict[str, tuple[Callable[[Recording], None], Mapping[str, str]]] = {
    "road": (road, {}),
    "budget": (budget, {"BILLING_DEFAULT_FLOOR_MICRO_USD": "-20000000"}),
}


async def snapshot(system: System, stories: Stories) -> tuple[list[StoredEvent], Expected]:
    """One moment of the database: the log, and every read model once it has read all of it."""
    dsn = system.superuser_dsn()
    deadline = asyncio.get_running_loop().time() + _LIMIT_S
    while asyncio.get_running_loop().time() < deadline:
        connection = await asyncpg.connect(dsn)
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                head = await connection.fetchval(QUERIES.head)
                if not await _behind(connection, head):
                    rows = [stored(row) for row in await connection.fetch(QUERIES.read_all, 0, head, 100_000)]
                    tables = {
                        service: {table: await table_rows(connection, service, table) for table in TABLES[service]}
                        for service in SERVICES
                    }
                    statuses = {name: shown_status(system, job_id) for name, job_id in stories.items()}
                    ids = {name: uuid.UUID(job_id) for name, job_id in stories.items()}
                    return rows, Expected(stories=ids, statuses=statuses, tables=tables)
        finally:
            await connection.close()
        await asyncio.sleep(0.2)
    raise AssertionError("the read models never caught up")


def shown_status(system: System, job_id: str) -> str:
    """The word that the HTTP API shows; `deleted` for a job that it no longer shows."""
    answer = system.http.get(f"/api/cloud/jobs/{job_id}")
    return "deleted" if answer.status_code == NOT_FOUND else answer.raise_for_status().json()["job"]["status"]


async def _behind(connection: asyncpg.Connection, head: int) -> bool:
    positions = [
        await connection.fetchval(f"select min(position) from {service}.checkpoint")  # noqa: S608 - our own names
        for service in SERVICES
    ]
    return any(position is None or position < head for position in positions)


def scrub(text: str, places: Mapping[str, str]) -> str:
    """The text without anything of the machine it was recorded on."""
    for found, instead in places.items():
        text = text.replace(found, instead)
    return text


def record(name: str) -> None:
    """Runs one scenario and writes its two files."""
    target = HISTORIES / f"{name}.jsonl"
    if target.exists():
        raise SystemExit(f"{target.name} is there already, and is never recorded over")
    tell, environment = SCENARIOS[name]
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory(prefix="tw-record-") as home:
        for variable, value in environment.items():
            patched.setenv(variable, value)
        pictures = demo_pictures(Path(home) / "pictures" / "digits")
        system = System(Path(home))
        system.start()
        recording = Recording(system, pictures)
        try:
            tell(recording)
            rows, expected = asyncio.run(snapshot(system, recording.stories))
        except BaseException:
            sys.stderr.write((Path(home) / "up.log").read_text(encoding="utf-8")[-3000:])
            raise
        finally:
            for job_id in recording.stories.values():
                system.http.post(f"/api/cloud/jobs/{job_id}/cancel")
            await_value(60, "nothing trains", lambda: not any(_training(recording)))
            system.stop()
    places = {home: "/home/tunewright", str(ROOT): "/opt/tunewright", socket.gethostname(): "machine"}
    clean = [
        msgspec.structs.replace(
            row, data=scrub(row.data.decode(), places).encode(), meta=scrub(row.meta.decode(), places).encode()
        )
        for row in rows
    ]
    write_log(target, rechained(clean))
    encoded = msgspec.json.format(msgspec.json.encode(expected, order="deterministic"), indent=1).decode()
    target.with_suffix(".expected.json").write_text(scrub(encoded, places) + "\n", encoding="utf-8")


def _training(recording: Recording) -> list[psutil.Process]:
    jobs = list(recording.stories.values())
    found = [recording.processes(job) for job in jobs if "attempt.requested.v1" in _types(recording.system, job)]
    return [process for group in found for process in [*group["runner"], *group["trainer"]]]


def _types(system: System, job_id: str) -> list[str]:
    return [event["type"] for event in system.history(job_id)]


if __name__ == "__main__":
    for scenario in sys.argv[1:] or sorted(SCENARIOS):
        record(scenario)
