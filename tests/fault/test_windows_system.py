"""Windows of the whole system, struck on purpose: a lost answer, an upload cut in the middle, a poison event."""

import asyncio
import hashlib
import json
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from deploy.embedded.children import REPOSITORY
from deploy.embedded.stack import role_dsn
from shared.clock import utc_now
from shared.contracts.account import AccountOpened, FundsReserved
from shared.contracts.attempt import AttemptCancelled, AttemptRequested, AttemptStarted, Quote
from shared.contracts.job import Event
from shared.contracts.subjects import BILLING_METERING
from shared.eventstore.postgres import PostgresEventStore
from shared.ids import new_id
from tests.fault.faults import Armed, Kind
from tests.fault.invariants import Observed, check
from tests.fault.system import DATABASE, PRICE_MICRO_USD_PER_HOUR, FaultSystem, running_system
from tests.fault.workload import STORIES, play
from tests.support.log import PASSWORDS, an_append
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def short_home() -> Iterator[Path]:
    """A short path that the user who runs Postgres for root can enter."""
    path = Path(tempfile.mkdtemp(prefix="tw-windows-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
async def system(short_home: Path) -> AsyncIterator[FaultSystem]:
    """One system for the module. It is entered and left by one task, as its task group demands."""
    begun: asyncio.Future[FaultSystem] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def hold() -> None:
        async with running_system(short_home / "system") as started:
            begun.set_result(started)
            await over.wait()

    holding = asyncio.create_task(hold())
    await asyncio.wait([holding, begun], return_when=asyncio.FIRST_COMPLETED)
    yield begun.result()
    over.set()
    await holding


async def strike(system: FaultSystem, number: int, story: str, step: str, kind: Kind) -> UUID:
    """Plays one story whose fault must have struck, and gives its job when every promise held."""
    fault = Armed(step, kind, 1, 0.2)
    scene = system.director.begin([fault])
    [job_id] = await play(system, 1_000_000 + number, [story], [0])
    status = await at_rest(system, job_id)
    await system.director.calm()
    assert fault.process, f"{step} was never reached"
    await system.ready()
    observed = Observed(
        superuser_dsn=system.superuser_dsn,
        gateway_url=system.gateway_url,
        bridge_state_dir=system.bridge_state_dir,
        job_ids=[job_id],
    )
    assert await check(observed) == [], "\n".join(map(str, scene.trace))
    assert status == {"fails": "failed", "saves": "completed"}[story]
    return job_id


async def at_rest(system: FaultSystem, job_id: UUID) -> str:
    """The job's last status."""
    async with httpx.AsyncClient(base_url=system.gateway_url, timeout=20) as http, asyncio.timeout(180):
        while True:
            with suppress(httpx.TransportError):
                answer = await http.get(f"/api/cloud/jobs/{job_id}")
                if answer.is_success and answer.json()["job"]["is_terminal"]:
                    return answer.json()["job"]["status"]
            await asyncio.sleep(0.05)  # the pace of asking


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("number", "step"),
    [
        pytest.param(1, "append:job.submitted.v1:committed", id="the commit's answer is lost"),
        pytest.param(3, "http:gateway:submit:answered", id="the client's answer is lost"),
    ],
)
async def test_killed_between_append_and_reply_the_repeat_under_the_key_is_the_one_job(
    system: FaultSystem, number: int, step: str
) -> None:
    kind: Kind = "server" if step.startswith("http") else "kill"
    job_id = await strike(system, number, "fails", step, kind)
    async with httpx.AsyncClient(base_url=system.gateway_url, timeout=20) as http:
        history = (await http.get(f"/api/v1/jobs/{job_id}/events")).json()["events"]
        jobs = (await http.get("/api/cloud/jobs", params={"limit": 100})).json()["jobs"]
    assert [event["type"] for event in history].count("job.submitted.v1") == 1
    assert len(jobs) == len({job["job_id"] for job in jobs})


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("number", "server"), [pytest.param(4, "storage", id="storage"), pytest.param(5, "gateway", id="gateway")]
)
async def test_killed_in_the_middle_of_an_upload_nothing_half_is_kept_and_the_repeat_arrives_whole(
    system: FaultSystem, number: int, server: str
) -> None:
    assert STORIES["saves"].attempts[0]["checkpoint"]
    job_id = await strike(system, number, "saves", f"http:{server}:put_object:mid-body", "server")
    async with httpx.AsyncClient(base_url=system.gateway_url, timeout=20) as http:
        stored = (await http.get(f"/api/v1/jobs/{job_id}/artifacts")).json()["artifacts"]
        assert len(stored) == 2  # the checkpoint and the model
        for artifact in stored:
            content = (await http.get(artifact["url"])).raise_for_status().content
            assert (hashlib.sha256(content).hexdigest(), len(content)) == (artifact["sha256"], artifact["size_bytes"])
    assert [path for path in (system.home / "objects" / "incoming").rglob("*") if path.is_file()] == []


# ---- an event that a service cannot handle ---------------------------------------------------------------------------


async def append(system: FaultSystem, role: str, stream: str, story: UUID, *events: Event) -> int:
    """Events written as their category's owner would; the last one's position."""
    dsn = role_dsn(system.superuser_dsn, role, PASSWORDS[role], DATABASE)
    async with PostgresEventStore.open(dsn) as store:
        return (await store.append(an_append(stream, *events, correlation_id=story))).last_position


def a_run_of_five_seconds(job_id: UUID) -> list[Event]:
    """An attempt that ended, of a job for which nobody has reserved anything."""
    now = utc_now()
    requested = AttemptRequested(
        job_id=job_id,
        attempt_number=1,
        provider="local",
        quote=Quote(hardware="cpu", price_micro_usd_per_hour=PRICE_MICRO_USD_PER_HOUR),
        config={},
        dataloader=[],
        datasets=[],
        resume=None,
        requested_at=now,
    )
    started = AttemptStarted(started_at=now - timedelta(seconds=5), device="cpu")
    return [requested, started, AttemptCancelled(ended_at=now, billed_seconds=5)]


def a_reservation(job_id: UUID) -> list[Event]:
    """What was missing."""
    opened = AccountOpened(owner="ghost", month="2026-11", floor_micro_usd=None, opened_at=utc_now())
    reserved = FundsReserved(
        job_id=job_id,
        amount_micro_usd=0,
        price_micro_usd_per_hour=PRICE_MICRO_USD_PER_HOUR,
        postings=[],
        reserved_at=utc_now(),
    )
    return [opened, reserved]


async def tunewright(system: FaultSystem, *arguments: str) -> tuple[int, Any]:
    """The real CLI against the real gateway: its exit code and the JSON it printed."""
    environment = {**os.environ, "TUNEWRIGHT_URL": system.gateway_url}
    command = [sys.executable, "-m", "services.cli", *arguments, "--json"]
    done = await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY, env=environment, stdout=PIPE)
    output, _ = await done.communicate()
    assert done.returncode is not None
    return done.returncode, json.loads(output)


async def parked_by_billing(system: FaultSystem) -> list[dict[str, Any]]:
    """What `tunewright parked ls` lists of billing."""
    code, listed = await tunewright(system, "parked", "ls")
    assert code == 0, listed
    return listed["services"]["billing"]["parked"]


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_poison_event_is_parked_with_its_reason_others_flow_on_and_it_is_replayed_by_name(
    system: FaultSystem,
) -> None:
    ghost, attempt = new_id(), new_id()
    poison = await append(system, "provider_bridge", f"attempt-{attempt}", ghost, *a_run_of_five_seconds(ghost))

    async def is_parked() -> bool:
        return [one["position"] for one in await parked_by_billing(system)] == [poison]

    await eventually(is_parked, 60)
    [parked] = await parked_by_billing(system)
    assert (parked["durable"], parked["type"]) == (BILLING_METERING.name, "attempt.cancelled.v1")
    assert "Nothing was reserved for this job" in parked["reason"]

    [job_id] = await play(system, 2_000_000, ["fails"], [0])
    assert await at_rest(system, job_id) == "failed"
    observed = Observed(
        superuser_dsn=system.superuser_dsn,
        gateway_url=system.gateway_url,
        bridge_state_dir=system.bridge_state_dir,
        job_ids=[job_id],
        parked=frozenset({(BILLING_METERING.name, poison)}),
    )
    assert await check(observed) == []

    place = {"service": "billing", "durable": BILLING_METERING.name, "position": poison}
    async with httpx.AsyncClient(base_url=system.gateway_url, timeout=60) as http:
        again = (await http.post("/api/v1/admin/parked/replay", json=place)).raise_for_status().json()
    assert (again["replayed"], "Nothing was reserved" in again["reason"]) == (False, True)
    await append(system, "billing", f"account-{new_id()}", ghost, *a_reservation(ghost))
    code, replayed = await tunewright(system, "parked", "replay", "billing", BILLING_METERING.name, str(poison))
    assert (code, replayed["replayed"]) == (0, True)
    assert await parked_by_billing(system) == []
    async with httpx.AsyncClient(base_url=system.gateway_url, timeout=60) as http:
        events = (await http.get("/api/v1/events", params={"after": poison, "limit": 1000})).json()["events"]
    metered = [event["data"] for event in events if event["type"] == "account.usage_metered.v1"]
    assert [(one["attempt_id"], one["amount_micro_usd"]) for one in metered if one["job_id"] == str(ghost)] == [
        (str(attempt), 5 * PRICE_MICRO_USD_PER_HOUR // 3600)
    ]
