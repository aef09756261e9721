"""The gateway with everything it talks to: the four other services, their relay, Postgres and NATS, all real.

Only the trainer is stood in for: a small program that waits, so that a test can report under its token.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest

from deploy.embedded.process import free_port
from services.billing.app import build as build_billing
from services.billing.settings import Settings as BillingSettings
from services.gateway.app import build as build_gateway
from services.gateway.settings import Settings as GatewaySettings
from services.provider_bridge.app import build as build_bridge
from services.provider_bridge.settings import Settings as BridgeSettings
from services.scheduler.app import build as build_scheduler
from services.scheduler.settings import Settings as SchedulerSettings
from services.storage.app import build as build_storage
from services.storage.settings import Settings as StorageSettings
from shared.clock import utc_now
from shared.service import Runtime, running_service
from shared.settings import load
from tests.integration.provider_bridge import stand_in_trainer
from tests.support.bus import ServiceSettings
from tests.support.waiting import eventually

OTHERS = ("storage", "billing", "provider_bridge", "scheduler")
BASE_MODEL = "black-forest-labs/FLUX.1-dev"


@dataclass
class Site:
    """A running Tunewright in this process; `http` reaches the gateway as a client does."""

    settings: ServiceSettings
    folder: Path
    stack: AsyncExitStack
    port: int = field(default_factory=free_port)
    storage_port: int = field(default_factory=free_port)
    runtimes: dict[str, Runtime] = field(default_factory=dict[str, Runtime])
    http: httpx.AsyncClient = field(init=False)

    async def start(self, *services: str, **extra: str) -> None:
        """Starts services; `extra` overrides the gateway's settings."""
        for name in services:
            context = getattr(self, f"_{name}")(extra)
            self.runtimes[name] = await self.stack.enter_async_context(context)

    def client(self, **options: Any) -> httpx.AsyncClient:
        """A client of the gateway with options of its own."""
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=60, **options)

    def _gateway(self, extra: dict[str, str]) -> Any:
        environ = self.settings(
            "gateway",
            gateway_port=self.port,
            gateway_storage_url=f"http://127.0.0.1:{self.storage_port}",
            gateway_storage_token="storage-token",
            gateway_config_dir=self.folder / "configs",
            **extra,
        )
        return running_service("gateway", load(GatewaySettings, environ), build_gateway)

    def _storage(self, _extra: dict[str, str]) -> Any:
        environ = self.settings(
            "storage",
            storage_root=self.folder / "objects",
            storage_http_port=self.storage_port,
            storage_http_token="storage-token",
            storage_min_free_bytes=1,
        )
        return running_service("storage", load(StorageSettings, environ), build_storage)

    def _billing(self, _extra: dict[str, str]) -> Any:
        environ = self.settings("billing", billing_local_micro_usd_per_hour=3_600_000)
        return running_service("billing", load(BillingSettings, environ), build_billing)

    def _scheduler(self, _extra: dict[str, str]) -> Any:
        return running_service("scheduler", load(SchedulerSettings, self.settings("scheduler")), build_scheduler)

    def _provider_bridge(self, extra: dict[str, str]) -> Any:
        environ = self.settings(
            "provider_bridge",
            bridge_gateway_url=f"http://127.0.0.1:{self.port}",
            bridge_state_dir=self.folder / "bridge",
            bridge_trainer_dir=self.folder,
            bridge_trainer_python=stand_in_trainer.install(self.folder / "trainer"),
            bridge_reconcile_interval_s=0.2,
            bridge_cancel_grace_s=2,
            **extra,
        )
        return running_service("provider_bridge", load(BridgeSettings, environ), build_bridge)

    # ---- what tests do -----------------------------------------------------------------------------------------------

    def pictures(self) -> Path:
        """A folder with one captioned file that storage can pack."""
        folder = self.folder / "pictures"
        folder.mkdir(exist_ok=True)
        (folder / "one.png").write_bytes(b"\x89PNG not really")
        (folder / "one.txt").write_text("a picture", encoding="utf-8")
        return folder

    def body(self, **extra: Any) -> dict[str, Any]:
        """The tutorial's inline body, with a folder that is there."""
        entry = {
            "id": "training-images",
            "type": "local",
            "dataset_type": "image",
            "instance_data_dir": str(self.pictures()),
            "caption_strategy": "textfile",
            "resolution": 1024,
        }
        return {"config": a_config(), "dataloader_config": [entry], **extra}

    async def submit(self, **extra: Any) -> UUID:
        """Submits the tutorial's job."""
        answer = await self.http.post("/api/cloud/jobs/submit?provider=local", json=self.body(**extra))
        assert answer.status_code == 200, answer.text
        return UUID(answer.json()["job_id"])

    async def job(self, job_id: UUID) -> dict[str, Any]:
        """The job as the documented contract shows it."""
        answer = await self.http.get(f"/api/cloud/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()["job"]

    async def until_status(self, job_id: UUID, *words: str) -> dict[str, Any]:
        """The job once its status is one of the words."""

        seen: list[dict[str, Any]] = []

        async def reached() -> bool:
            seen.append(await self.job(job_id))
            return seen[-1]["status"] in words

        await eventually(reached)
        return seen[-1]

    async def trainer(self, job_id: UUID) -> "Trainer":
        """The token and id of the job's attempt, once its trainer was started."""
        found: list[Trainer] = []

        async def started() -> bool:
            attempts = (await self.http.get(f"/api/v1/jobs/{job_id}/attempts")).json()["attempts"]
            for attempt in attempts:
                attempt_id = UUID(attempt["attempt_id"])
                starts = stand_in_trainer.starts(self.folder / "bridge", attempt_id)
                found.extend(Trainer(self, job_id, attempt_id, start["token"].strip()) for start in starts)
            return bool(found)

        await eventually(started)
        return found[-1]

    async def running(self, **extra: Any) -> "Trainer":
        """A submitted job whose trainer has said hello."""
        trainer = await self.trainer(await self.submit(**extra))
        answer = await trainer.report([("hello", {"device": "stand-in", "trainer_version": "0"})])
        assert answer.status_code == 200, answer.text
        await self.until_status(trainer.job_id, "running")
        return trainer


@dataclass
class Trainer:
    """Speaks to the gateway as a trainer does."""

    site: Site
    job_id: UUID
    attempt_id: UUID
    token: str
    seq: int = 0

    def lines(self, reports: list[tuple[str, dict[str, Any]]]) -> bytes:
        """Numbered report lines, as NDJSON."""
        texts: list[bytes] = []
        for type_, data in reports:
            self.seq += 1
            line = {
                "v": 1,
                "job": str(self.job_id),
                "attempt": str(self.attempt_id),
                "seq": self.seq,
                "ts": utc_now(),
                "type": type_,
                "data": data,
            }
            texts.append(msgspec.json.encode(line) + b"\n")
        return b"".join(texts)

    async def send(self, body: bytes, token: str | None = None) -> httpx.Response:
        """Posts an NDJSON body under the attempt's token."""
        headers = {"Authorization": f"Bearer {token or self.token}", "Content-Type": "application/x-ndjson"}
        return await self.site.http.post(f"/api/v1/attempts/{self.attempt_id}/events", content=body, headers=headers)

    async def report(self, reports: list[tuple[str, dict[str, Any]]]) -> httpx.Response:
        """Reports new lines."""
        return await self.send(self.lines(reports))

    async def log(self, *messages: str) -> httpx.Response:
        """Reports log lines."""
        return await self.report([("log", {"level": "info", "message": message}) for message in messages])

    async def put(self, name: str, content: Any, **headers: str) -> httpx.Response:
        """Uploads an object below the job's own folder."""
        names = {"X-Upload-Token": self.token, **{key.replace("_", "-"): value for key, value in headers.items()}}
        return await self.site.http.put(
            f"/api/cloud/storage/outputs/{self.job_id}/{name}", content=content, headers=names
        )

    def finish(self) -> None:
        """Lets the stand-in's process end."""
        stand_in_trainer.finish(self.site.folder / "bridge", self.attempt_id)


def a_config(**overrides: Any) -> dict[str, Any]:
    """The tutorial's inline config."""
    return {
        "--model_family": "flux",
        "--model_type": "lora",
        "--pretrained_model_name_or_path": BASE_MODEL,
        "--output_dir": "/outputs/flux-lora",
        "--max_train_steps": 1000,
        "--lora_rank": 16,
        **overrides,
    }


@pytest.fixture(autouse=True)
def patient_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list waits a second for its view and then answers with what there is; on a busy machine that is too little."""
    for place in ("reads.OWN_WRITES_S", "access.CATCH_UP_S", "inbound.http.jobs.CATCH_UP_S"):
        monkeypatch.setattr(f"services.gateway.{place}", 30.0)


OpenSite = Callable[..., Awaitable[Site]]


@pytest.fixture
async def open_site(service_settings: ServiceSettings, tmp_path: Path) -> AsyncIterator[OpenSite]:
    """`await open_site("scheduler", GATEWAY_…=…)`: a gateway with these other services (all when none is named).

    `is_public`: gateway and bridge are told that the rest of the world reaches the gateway at its own port.
    """
    async with AsyncExitStack() as stack:

        async def opened(*others: str, only_gateway: bool = False, is_public: bool = False, **extra: str) -> Site:
            site = Site(service_settings, tmp_path, stack)
            if is_public:
                extra["tunewright_public_url"] = f"http://127.0.0.1:{site.port}"
            (tmp_path / "configs").mkdir(exist_ok=True)
            chosen = () if only_gateway else (others or OTHERS)
            await site.start(*chosen, "gateway", **extra)
            site.http = await stack.enter_async_context(site.client())
            return site

        yield opened
    stand_in_trainer.end_all(tmp_path / "bridge")  # and not the NATS that lives beside it


@pytest.fixture
async def site(open_site: OpenSite) -> Site:
    """A gateway with every other service."""
    return await open_site()
