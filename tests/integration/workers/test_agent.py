"""`tunewright worker` as a process of its own against a whole Tunewright; only the trainer is stood in for."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.integration.gateway.conftest import OTHERS, Site, Trainer
from tests.integration.provider_bridge import stand_in_trainer as stand_in
from tests.support.bus import ServiceSettings
from tests.support.sources import ROOT
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow


@dataclass
class Agent:
    """A machine with one worker's token; its process is started, killed and started again."""

    site: Site
    folder: Path
    worker_id: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    async def create(self, **body: Any) -> None:
        """Makes the worker, and puts its token where the agent reads it."""
        answer = await self.site.http.post("/api/admin/workers", json={"name": "machine", **body})
        self.worker_id = answer.json()["worker_id"]
        self.put_token(answer.json()["token"])

    def put_token(self, token: str) -> None:
        self.token_file.write_text(token, encoding="utf-8")
        self.token_file.chmod(0o600)

    def start(self) -> None:
        command = [sys.executable, "-m", "services.cli", "worker", "--server", f"http://127.0.0.1:{self.site.port}"]
        options = ["--token-file", self.token_file, "--state-dir", self.folder / "state", "--heartbeat-s", "0.5"]
        env = {**os.environ, "BRIDGE_TRAINER_PYTHON": str(stand_in.install(self.folder))}
        with (self.folder / "agent.log").open("ab") as log:
            self.process = subprocess.Popen([*map(str, [*command, *options])], cwd=ROOT, env=env, stderr=log)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def said(self) -> str:
        return (self.folder / "agent.log").read_text(encoding="utf-8")

    async def until_said(self, text: str) -> None:
        """Returns when it has said so."""

        async def said() -> bool:
            return text in self.said()

        await eventually(said)

    async def listed(self) -> dict[str, Any]:
        workers = (await self.site.http.get("/api/admin/workers")).json()["workers"]
        return next(one for one in workers if one["worker_id"] == self.worker_id)

    async def until_listed(self, **wanted: Any) -> dict[str, Any]:
        async def so() -> bool:
            item = await self.listed()
            return all(item[name] == value for name, value in wanted.items())

        await eventually(so)
        return await self.listed()

    async def until_over(self) -> int:
        """The process's exit code, once it has ended by itself."""
        process = self.process
        assert process is not None

        async def over() -> bool:
            return process.poll() is not None

        await eventually(over)
        return process.wait()

    async def job(self) -> UUID:
        """A job that only workers may run."""
        answer = await self.site.http.post("/api/cloud/jobs/submit?provider=worker", json=self.site.body())
        assert answer.json().get("success") is True, answer.text
        return UUID(answer.json()["job_id"])

    async def started(self, job_id: UUID) -> dict[str, Any]:
        """What the one trainer of the job's run wrote down of itself."""
        found: list[dict[str, Any]] = []

        async def runs() -> bool:
            for attempt in (await self.site.http.get(f"/api/v1/jobs/{job_id}/attempts")).json()["attempts"]:
                attempt_id = UUID(attempt["attempt_id"])
                starts = stand_in.starts(self.folder / "state", attempt_id)
                found.extend({**start, "attempt_id": attempt_id} for start in starts)
            return bool(found)

        await eventually(runs)
        return found[0]

    def finish(self, start: dict[str, Any]) -> None:
        stand_in.finish(self.folder / "state", start["attempt_id"])

    def starts(self, start: dict[str, Any]) -> int:
        return len(stand_in.starts(self.folder / "state", start["attempt_id"]))


async def report(agent: Agent, job_id: UUID, start: dict[str, Any], *types: str) -> None:
    """What the trainer of the run says of itself, under the token that it was given on the machine."""
    trainer = Trainer(agent.site, job_id, start["attempt_id"], start["token"].strip())
    ends: dict[str, Any] = {"steps": 1, "final_loss": 0.5, "artifacts": [], "undelivered": []}
    bodies: dict[str, dict[str, Any]] = {"hello": {"device": "stand-in", "trainer_version": "0"}, "done": ends}
    answer = await trainer.report([(type_, bodies[type_]) for type_ in types])
    assert answer.status_code == 200, answer.text


@pytest.fixture
async def site(service_settings: ServiceSettings, tmp_path: Path) -> AsyncGenerator[Site]:
    async with AsyncExitStack() as stack:
        opened = Site(service_settings, tmp_path, stack)
        (tmp_path / "configs").mkdir()
        await opened.start(*OTHERS, "gateway", gateway_providers="local,worker")
        opened.http = await stack.enter_async_context(opened.client())
        yield opened


@pytest.fixture
async def agent(site: Site, tmp_path: Path) -> AsyncGenerator[Agent]:
    folder = tmp_path / "machine"
    folder.mkdir()
    made = Agent(site, folder)
    await made.create()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.kill()
    stand_in.end_all(folder)


async def test_a_job_for_workers_runs_on_the_machine_and_its_end_is_told(site: Site, agent: Agent) -> None:
    agent.start()
    item = await agent.until_listed(status="idle", connected=True)
    assert item["gpu_info"]["name"]
    job_id = await agent.job()
    start = await agent.started(job_id)
    assert agent.token_file.read_text() not in str(start)
    assert "DATABASE_URL" not in start["env"]
    await report(agent, job_id, start, "hello")
    await site.until_status(job_id, "running")
    await agent.until_listed(status="busy", current_job_id=str(job_id))
    await report(agent, job_id, start, "done")
    agent.finish(start)
    await site.until_status(job_id, "completed")
    await agent.until_listed(status="idle", current_job_id=None)
    assert not (agent.folder / "state" / "current.json").exists()
    assert agent.stop() == 0


async def test_an_agent_that_is_killed_and_started_again_goes_on_with_its_run(site: Site, agent: Agent) -> None:
    agent.start()
    job_id = await agent.job()
    start = await agent.started(job_id)
    await agent.until_listed(status="busy")
    await report(agent, job_id, start, "hello")
    agent.kill()
    assert stand_in.is_running(start["pid"])
    agent.start()
    await agent.until_said(f"going on with job {job_id}")
    assert agent.starts(start) == 1
    await report(agent, job_id, start, "done")
    agent.finish(start)
    await site.until_status(job_id, "completed")
    await agent.until_listed(status="idle")


async def test_a_run_that_ended_while_no_agent_was_there_is_told_by_the_next_one(site: Site, agent: Agent) -> None:
    agent.start()
    job_id = await agent.job()
    start = await agent.started(job_id)
    await report(agent, job_id, start, "hello")
    await agent.until_listed(status="busy")
    assert agent.stop() == 0
    assert stand_in.is_running(start["pid"])
    await report(agent, job_id, start, "done")
    agent.finish(start)
    agent.start()
    await agent.until_listed(status="idle")
    await site.until_status(job_id, "completed")


async def test_a_cancelled_job_ends_on_the_machine(site: Site, agent: Agent) -> None:
    agent.start()
    job_id = await agent.job()
    start = await agent.started(job_id)
    await report(agent, job_id, start, "hello")
    answer = await site.http.post(f"/api/cloud/jobs/{job_id}/cancel")
    assert answer.status_code == 200
    await site.until_status(job_id, "cancelled")
    assert not stand_in.is_running(start["pid"])
    await agent.until_listed(status="idle")


async def test_a_drained_worker_finishes_its_job_and_ends(site: Site, agent: Agent) -> None:
    agent.start()
    job_id = await agent.job()
    start = await agent.started(job_id)
    await report(agent, job_id, start, "hello")
    await site.http.post(f"/api/admin/workers/{agent.worker_id}/drain")
    await agent.until_said("draining")
    assert stand_in.is_running(start["pid"])
    await report(agent, job_id, start, "done")
    agent.finish(start)
    assert await agent.until_over() == 0
    await site.until_status(job_id, "completed")


async def test_a_rotated_token_is_taken_up_from_the_file_while_the_run_goes_on(site: Site, agent: Agent) -> None:
    agent.start()
    job_id = await agent.job()
    start = await agent.started(job_id)
    await report(agent, job_id, start, "hello")
    await agent.until_listed(status="busy")
    answer = await site.http.post(f"/api/admin/workers/{agent.worker_id}/token")
    await agent.until_said("does not accept our token")
    agent.put_token(answer.json()["token"])
    await agent.until_said("going on with job")
    await report(agent, job_id, start, "done")
    agent.finish(start)
    await site.until_status(job_id, "completed")
    assert agent.starts(start) == 1


async def test_a_worker_that_is_removed_by_force_ends_its_run_and_itself(site: Site, agent: Agent) -> None:
    agent.start()
    start = await agent.started(await agent.job())
    await agent.until_listed(status="busy")
    answer = await site.http.delete(f"/api/admin/workers/{agent.worker_id}")
    assert (answer.status_code, answer.json()["code"]) == (400, "worker_busy")
    answer = await site.http.delete(f"/api/admin/workers/{agent.worker_id}?force=true")
    assert answer.status_code == 200
    assert await agent.until_over() == 0
    assert not stand_in.is_running(start["pid"])


async def test_two_agents_do_not_share_a_folder(agent: Agent) -> None:
    agent.start()
    await agent.until_listed(status="idle")
    other = Agent(agent.site, agent.folder)
    other.start()
    assert await other.until_over() == 1
    assert "another worker runs in" in other.said()


async def test_a_token_file_that_others_can_read_is_refused(agent: Agent) -> None:
    agent.token_file.chmod(0o644)
    agent.start()
    assert await agent.until_over() == 1
    assert "chmod 600" in agent.said()
