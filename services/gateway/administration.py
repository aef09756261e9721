"""Questions to every service at once: who answers, what was given up, and do the read models equal the log."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from services.gateway.domain.job_body import iso
from services.gateway.domain.refusals import invalid
from services.gateway.handlers import Principal
from services.gateway.projections.jobs import JobsView
from shared.contracts.admin import ListParked, Ping, RebuildProjections, ReplayParked
from shared.contracts.job import Command
from shared.contracts.subjects import SERVICES
from shared.ids import new_id
from shared.problems import Rejected, Unavailable
from shared.service import Runtime

PING_S = 2.0
REBUILD_S = 600.0


class Component(msgspec.Struct, frozen=True, kw_only=True):
    """One part of Tunewright: does it answer, how fast, and what is wrong if not."""

    name: str
    status: Literal["healthy", "degraded", "unhealthy"]
    latency_ms: float | None = None
    message: str | None = None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The documented health answer; `status` is the worst of the components'."""

    status: Literal["healthy", "unhealthy"]
    version: str
    uptime_seconds: float
    components: list[Component]
    timestamp: str


class Services:
    """Asks the owners over the bus, the gateway's own replicas included."""

    def __init__(self, runtime: Runtime, jobs: JobsView, version: str) -> None:
        self._runtime = runtime
        self._jobs = jobs
        self._version = version
        self._started = time.monotonic()

    async def health(self) -> Health:
        """Every part asked at the same time, each with a deadline."""
        probes: list[tuple[str, Callable[[], Awaitable[str | None]]]] = [
            ("postgres", self._postgres),
            ("nats", self._nats),
            *((service, self._ping(service)) for service in SERVICES),
        ]
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(_probed(name, probe)) for name, probe in probes]
        components = [task.result() for task in asked]
        now: datetime = self._runtime.clock()
        return Health(
            status="healthy" if all(part.status != "unhealthy" for part in components) else "unhealthy",
            version=self._version,
            uptime_seconds=round(time.monotonic() - self._started, 3),
            components=components,
            timestamp=iso(now) or "",
        )

    async def require_ready(self) -> None:
        """Raises Unavailable naming every part that does not answer, or when this process is being stopped."""
        if self._runtime.stop.is_set():
            raise Unavailable("this gateway is stopping")
        away = [part.name for part in (await self.health()).components if part.status == "unhealthy"]
        if away:
            raise Unavailable(f"not ready: {', '.join(away)}")

    async def rebuild(self, service: str | None, principal: Principal) -> dict[str, Any]:
        """Refolds the read models of one service or all; `equal` says whether every row came out as it was."""
        answers: dict[str, Any] = {}
        for name in _named(service):
            answers[name] = await self._ask(name, RebuildProjections(), principal, timeout_s=REBUILD_S)
        projections = [one for answer in answers.values() for one in answer.get("projections", [])]
        unasked = [name for name, answer in answers.items() if "error" in answer]
        return {"services": answers, "equal": not unasked and all(one["equal"] for one in projections)}

    async def parked(self, service: str | None, principal: Principal) -> dict[str, Any]:
        """Messages that were given up, by service."""
        names = _named(service)
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._ask(name, ListParked(), principal, timeout_s=5.0)) for name in names]
        return {"services": {name: task.result() for name, task in zip(names, asked, strict=True)}}

    async def replay(self, service: str, durable: str, position: int, principal: Principal) -> dict[str, Any]:
        """Handles one parked message again."""
        (name,) = _named(service)
        reply = await self._runtime.sender.send(
            name,
            ReplayParked(durable=durable, position=position),
            correlation_id=new_id(),
            actor=principal.actor,
            source_ip=principal.source_ip,
            timeout_s=60.0,
        )
        return {"service": name, **reply.data}

    async def _ask(self, service: str, command: Command, principal: Principal, *, timeout_s: float) -> dict[str, Any]:
        """One service's answer; one that is away or refuses is named in the report, and the others are asked still."""
        try:
            reply = await self._runtime.sender.send(
                service,
                command,
                correlation_id=new_id(),
                actor=principal.actor,
                source_ip=principal.source_ip,
                timeout_s=timeout_s,
            )
        except (Unavailable, Rejected) as problem:
            return {"error": problem.detail}
        return reply.data

    def _ping(self, service: str) -> Callable[[], Awaitable[str | None]]:
        async def ping() -> str | None:
            reply = await self._runtime.sender.send(service, Ping(), correlation_id=new_id(), timeout_s=PING_S)
            behind = {name: lag for name, lag in reply.data.get("lag", {}).items() if lag}
            return f"behind the log: {behind}" if behind else None

        return ping

    async def _postgres(self) -> str | None:
        async with asyncio.timeout(PING_S):
            await self._jobs.alive()
        return None

    async def _nats(self) -> str | None:
        if not self._runtime.bus.is_connected:
            raise Unavailable("not connected")
        return None


async def _probed(name: str, probe: Callable[[], Awaitable[str | None]]) -> Component:
    started = time.perf_counter()
    try:
        message = await probe()
    except (Unavailable, Rejected) as problem:
        return Component(name=name, status="unhealthy", message=problem.detail)
    except TimeoutError:
        return Component(name=name, status="unhealthy", message=f"no answer within {PING_S:g} s")
    latency_ms = round((time.perf_counter() - started) * 1000, 3)
    return Component(name=name, status="healthy", latency_ms=latency_ms, message=message)


def _named(service: str | None) -> Sequence[str]:
    """All services, or the one that is meant; the hyphen of compose names is understood."""
    if service is None:
        return SERVICES
    name = service.replace("-", "_")
    if name not in SERVICES:
        raise invalid("service", f"{service!r} is not a service", f"Use one of {', '.join(SERVICES)}.")
    return (name,)
