"""What GPUs this machine has, as NVIDIA's own program tells it."""

import asyncio
import shutil

import msgspec

_QUERY = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
_TIMEOUT_S = 10.0
_MIB_PER_GB = 1024


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU; `vram_gb` 0 = not known."""

    name: str
    vram_gb: int


async def gpus() -> list[Gpu]:
    """Every GPU in the driver's order; none on a machine without one, or with a broken driver."""
    found = [line.rpartition(",") for line in (await _listed()).splitlines() if "," in line]
    return [Gpu(name=name.strip(), vram_gb=_gb(memory)) for name, _, memory in found]


def _gb(mebibytes: str) -> int:
    return round(int(mebibytes) / _MIB_PER_GB) if mebibytes.strip().isdigit() else 0


async def _listed() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        asked = await asyncio.create_subprocess_exec(
            program, *_QUERY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError:
        return ""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, _ = await asked.communicate()
    except TimeoutError:
        asked.kill()
        await asked.wait()
        return ""
    return output.decode("utf-8", "replace") if asked.returncode == 0 else ""
