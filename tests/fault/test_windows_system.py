"""Windows of the whole system, struck on purpose: the answer that is lost, the upload that is cut in the middle."""

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from tests.fault.faults import Armed, Kind
from tests.fault.invariants import Observed, check
from tests.fault.system import FaultSystem, running_system
from tests.fault.workload import STORIES, play


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
    async with httpx.AsyncClient(base_url=system.gateway_url, timeout=20) as http, asyncio.timeout(90):
        while True:
            with suppress(httpx.TransportError):
                answer = await http.get(f"/api/cloud/jobs/{job_id}")
                if answer.is_success and answer.json()["job"]["is_terminal"]:
                    return answer.json()["job"]["status"]
            await asyncio.sleep(0.05)  # the pace of asking


@pytest.mark.slow
@pytest.mark.timeout(180)
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
@pytest.mark.timeout(180)
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
