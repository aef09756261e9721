"""What a seed asks of the system: a few jobs, each with its own story, driven by a client that does not give up."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import asyncpg
import httpx

from shared.eventstore.outages import OUTAGES
from tests.fault.system import FaultSystem

CancelWhen = Literal[
    "", "at_once", "job.dispatched.v1", "attempt.requested.v1", "attempt.started.v1", "attempt.lost.v1"
]
DEADLINE_S = 180.0
_LOOK_S = 0.02
_HUGE_STEPS = 10_000_000
_AGAIN = frozenset({404, 408, 409, 425, 429})
_OVER = "invalid_job_state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """How one job goes: how each attempt ends (the last one repeats), and what its client does."""

    attempts: Sequence[dict[str, Any]] = ({"end": "done"},)
    cancel: CancelWhen = ""
    """After which event of its story the client cancels it."""
    delete: bool = False
    has_data: bool = True
    is_affordable: bool = True


WAIT = {"end": "wait"}
STORIES: dict[str, Story] = {
    "completes": Story(),
    "saves": Story(attempts=({"end": "done", "checkpoint": True},)),
    "delivers": Story(attempts=({"end": "done", "deliver": True},)),
    "retried": Story(attempts=({"end": "preempted", "checkpoint": True}, {"end": "done", "checkpoint": True})),
    "fails": Story(attempts=({"end": "bad_data"},)),
    "breaks": Story(attempts=({"end": "gpu_fault", "checkpoint": True}, {"end": "done"})),
    "fails_silently": Story(attempts=({"end": "silent"},)),
    "no_data": Story(has_data=False),
    "no_funds": Story(is_affordable=False),
    "cancelled_at_once": Story(cancel="at_once"),
    "cancel_overtakes": Story(attempts=(WAIT,), cancel="job.dispatched.v1"),
    "cancelled_starting": Story(attempts=(WAIT,), cancel="attempt.requested.v1"),
    "cancelled_running": Story(attempts=(WAIT,), cancel="attempt.started.v1"),
    "finishes_anyway": Story(attempts=({"end": "finish_when_asked"},), cancel="attempt.started.v1"),
    "vanishes": Story(attempts=({"end": "vanish"},), cancel="attempt.lost.v1"),
    "deleted": Story(attempts=({"end": "bad_data"},), delete=True),
}


class Client:
    """A client of the gateway on a bad line: it repeats itself until it is answered, and looks into the log."""

    def __init__(self, system: FaultSystem, http: httpx.AsyncClient) -> None:
        self._system = system
        self._http = http
        self._log: asyncpg.Connection | None = None
        self._looking = asyncio.Lock()

    async def close(self) -> None:
        """Lets the log's connection go."""
        if self._log is not None:
            self._log.terminate()

    async def run(self, key: str, story: Story) -> UUID:
        """Plays one job's story up to its end."""
        job_id = await self._submit(key, story)
        if story.cancel:
            if story.cancel != "at_once":
                await self._await_event(job_id, story.cancel, *_ENDS)
            await self._persist("POST", f"/api/cloud/jobs/{job_id}/cancel")
        if story.delete:
            await self._await_event(job_id, *_ENDS)
            await self._persist("DELETE", f"/api/cloud/jobs/{job_id}")
        return job_id

    async def query(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """Rows from the log past every proxy; waits for a Postgres that is away."""
        deadline = time.monotonic() + DEADLINE_S
        async with self._looking:
            while True:
                try:
                    if self._log is None or self._log.is_closed():
                        self._log = await asyncpg.connect(self._system.superuser_dsn, timeout=5)
                    return await self._log.fetch(sql, *arguments, timeout=20)
                except OUTAGES:
                    if time.monotonic() > deadline:
                        raise
                    self._log = None
                    await asyncio.sleep(_LOOK_S)

    async def _submit(self, key: str, story: Story) -> UUID:
        body = _body(self._system.datasets / key, story)
        answer = await self._persist("POST", "/api/cloud/jobs/submit?provider=local", body, {"Idempotency-Key": key})
        return UUID(answer["job_id"])

    async def _persist(
        self, method: str, path: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """The answer, however often it takes; an action that came too late is answered too."""
        deadline = time.monotonic() + DEADLINE_S
        said = "nothing"
        while time.monotonic() < deadline:
            try:
                answer = await self._http.request(method, path, json=body, headers=headers)
            except httpx.HTTPError as error:
                said = repr(error)
            else:
                said = f"{answer.status_code} {answer.text[:500]}"
                if answer.is_success or _OVER in answer.text:
                    return answer.json()
                if answer.status_code not in _AGAIN and not answer.is_server_error:
                    break
            await asyncio.sleep(_LOOK_S)
        raise RefusedError(f"{method} {path} was not answered as it should be; the last word was {said}")

    async def _await_event(self, job_id: UUID, *types: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        sql = "select 1 from log.events where correlation_id = $1 and type = any($2::text[]) limit 1"
        while not await self.query(sql, job_id, list(types)):
            if time.monotonic() > deadline:
                raise RefusedError(f"job {job_id} did not come to {types[0]} within {DEADLINE_S:g} s")
            await asyncio.sleep(_LOOK_S)


class RefusedError(Exception):
    """The system did not do what a client may expect of it."""


_ENDS = ("job.completed.v1", "job.failed.v1", "job.cancelled.v1")


def _body(pictures: Path, story: Story) -> dict[str, Any]:
    if story.has_data:
        pictures.mkdir(exist_ok=True)
        (pictures / "one.txt").write_text(pictures.name * 50, encoding="utf-8")
    config = {
        "--model_family": "flux",
        "--model_type": "lora",
        "--pretrained_model_name_or_path": "none",
        "--max_train_steps": 10 if story.is_affordable else _HUGE_STEPS,
        "--modelspec_comment": json.dumps(list(story.attempts)),
    }
    return {"config": config, "dataloader_config": [{"id": "pictures", "instance_data_dir": str(pictures)}]}


async def play(system: FaultSystem, seed: int, names: Sequence[str], stagger_s: Sequence[float]) -> list[UUID]:
    """Plays the stories at once, each a little later than the one before; the ids of their jobs."""
    limits = httpx.Limits(max_keepalive_connections=0)  # a connection that breaks hurts one request
    async with httpx.AsyncClient(base_url=system.proxied_gateway_url, timeout=20, limits=limits) as http:
        client = Client(system, http)

        async def one(number: int, name: str) -> UUID:
            await asyncio.sleep(stagger_s[number])
            return await client.run(f"fault-{seed}-{number}", STORIES[name])

        try:
            async with asyncio.TaskGroup() as tasks:
                playing = [tasks.create_task(one(number, name)) for number, name in enumerate(names)]
        finally:
            await client.close()
    return [task.result() for task in playing]
