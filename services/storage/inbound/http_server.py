"""uvicorn as one loop of a service that has its own signal handling and its own stop event."""

import asyncio
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import uvicorn

SHUTDOWN_S = 10
KEEP_ALIVE_S = 75


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, Any, None]:
        """Signals belong to the service."""
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening socket: a port that is taken is found out before anything starts."""
    bound = socket.create_server((host, port), backlog=512)
    bound.setblocking(False)
    return bound


async def serve(app: Any, bound: socket.socket, stop: asyncio.Event) -> None:
    """Serves until `stop` is set, then lets requests in hand finish for at most SHUTDOWN_S seconds."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    server = _Server(config)
    with bound:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(_exit_when(server, stop))
            await server.serve(sockets=[bound])
            watch.cancel()


async def _exit_when(server: uvicorn.Server, stop: asyncio.Event) -> None:
    await stop.wait()
    server.should_exit = True
