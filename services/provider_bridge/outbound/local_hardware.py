"""What GPUs this machine has, as NVIDIA's own program tells it."""

import asyncio
import shutil

from shared.contracts.offers import Offer

_QUERY = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
_TIMEOUT_S = 10.0
_MIB_PER_GB = 1024


async def offer(provider: str, hardware: str) -> Offer:
    """The machine as one offer without a price; a machine without a GPU, or with a broken driver, offers none."""
    found = [line.rpartition(",") for line in (await _listed()).splitlines() if "," in line]
    memory_mib = [int(memory) for _, _, memory in found if memory.strip().isdigit()]
    return Offer(
        provider=provider,
        hardware=hardware,
        gpu=found[0][0].strip() if found else "",
        gpu_count=len(found),
        vram_gb=round(min(memory_mib) / _MIB_PER_GB) if memory_mib else 0,
        price_micro_usd_per_hour=0,
        availability="high",
    )


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
