"""`python -m shared.ping`: asks the service whose environment this is whether it answers; exit code 0 if it does.

A container's health check: it goes the whole way over NATS to the service's command loop and back.
"""

import asyncio
import os
import sys

import msgspec

from shared.contracts.admin import Ping
from shared.ids import new_id
from shared.messaging.commands import CommandSender
from shared.messaging.connection import Bus, BusSettings
from shared.problems import Unavailable
from shared.settings import Secret, load

_TIMEOUT_S = 3.0


class PingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the service reaches NATS."""

    nats_url: str
    nats_user: str
    nats_password: Secret


async def ping(settings: PingSettings) -> None:
    """Returns when the service has answered; raises Unavailable or TimeoutError when it has not."""
    bus_settings = BusSettings(url=settings.nats_url, user=settings.nats_user, password=settings.nats_password)
    bus = await Bus.connect(bus_settings, service=settings.nats_user, timeout_s=_TIMEOUT_S)
    try:
        await CommandSender(bus).send(settings.nats_user, Ping(), correlation_id=new_id(), timeout_s=_TIMEOUT_S)
    finally:
        await bus.close()


def main() -> int:
    """0: it answers; 1: it does not, with the reason on stderr."""
    try:
        asyncio.run(ping(load(PingSettings, os.environ)))
    except (Unavailable, TimeoutError) as reason:
        sys.stderr.write(f"no answer: {reason!r}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
