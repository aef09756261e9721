"""uvicorn as a loop of the service: it starts and stops with the others, and signals belong to the service."""

import asyncio
import resource
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import structlog
import uvicorn
from litestar.types import ASGIApp

KEEP_ALIVE_S = 75
BACKLOG = 512
MAX_HEADER_BYTES = 64 * 1024

log = structlog.stdlib.get_logger()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, Any, None]:
        """Signals are the service's business: it sets the stop event."""
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. A port that is taken is found out before anything starts."""
    _raise_open_files()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.create_server((host, port), family=family, backlog=BACKLOG)
    bound.setblocking(False)
    return bound


def _raise_open_files() -> None:
    """Each open stream is an open file: as many are allowed as the system lets us have."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        except (OSError, ValueError) as error:  # some systems name a limit that they do not grant
            log.warning("gateway.open_files.kept", allowed=allowed, error=str(error))


async def serve(app: ASGIApp, bound: socket.socket, stop: asyncio.Event, *, drain_s: float) -> None:
    """Serves until `stop`; then takes no more, lets requests in flight finish for at most `drain_s`, and returns."""
    config = uvicorn.Config(
        app,  # pyright: ignore[reportArgumentType] - Litestar's and uvicorn's names for the same ASGI callable
        log_config=None,
        access_log=False,
        lifespan="off",
        http="httptools",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(drain_s),
    )
    server = _Server(config)
    host, port = bound.getsockname()[:2]
    log.info("gateway.http.listening", host=host, port=port)
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(_exit_at(server, stop))
        await server.serve(sockets=[bound])
        watching.cancel()


async def _exit_at(server: uvicorn.Server, stop: asyncio.Event) -> None:
    await stop.wait()
    server.should_exit = True
