"""`python -m tests.provider_faults [--seeds N] [--seed S] [--provider NAME]`: seeds against all vendors' simulators."""

import argparse
import asyncio
import collections
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
import structlog

from deploy.embedded.postgres import EmbeddedPostgres
from shared.eventstore.migrate import migrate
from tests.provider_faults.checks import Verdict
from tests.provider_faults.story import play
from tests.provider_faults.vendors import VENDORS
from tests.support.log import PASSWORDS

AT_ONCE = 4


def wanted(options: argparse.Namespace) -> list[int]:
    """The seeds to play; a provider's are every n-th."""
    if options.seed is not None:
        return [options.seed]
    seeds = range(options.first, options.first + options.seeds)
    names = sorted(VENDORS)
    return [seed for seed in seeds if options.provider in {None, names[seed % len(names)]}]


async def run(options: argparse.Namespace, dsn: str) -> list[Verdict]:
    """Every wanted seed, a few at a time."""
    verdicts: list[Verdict] = []
    slots = asyncio.Semaphore(AT_ONCE)
    async with asyncpg.create_pool(dsn, min_size=1, max_size=16) as pool:

        async def one(seed: int) -> None:
            async with slots:
                verdict = await play(seed, pool)
            verdicts.append(verdict)
            for violation in verdict.violations:
                sys.stdout.write(f"seed {seed} ({verdict.provider}): {violation}\n")
            if options.seed is not None:
                sys.stdout.write("\n".join(verdict.notes) + "\n")

        async with asyncio.TaskGroup() as tasks:
            for seed in wanted(options):
                tasks.create_task(one(seed))
    return verdicts


def report(verdicts: list[Verdict], took_s: float) -> None:
    """The figures, by provider."""
    by_name = collections.defaultdict[str, list[Verdict]](list)
    for verdict in verdicts:
        by_name[verdict.provider].append(verdict)
    for name, seeds in sorted(by_name.items()):
        billed, booked = sum(one.billed for one in seeds), sum(one.booked for one in seeds)
        off = f"{(booked - billed) / billed:+.3%}" if billed else "free"
        broken = sum(bool(one.violations) for one in seeds)
        runs, orphans = sum(one.runs for one in seeds), sum(one.orphans for one in seeds)
        sys.stdout.write(
            f"{name:18} {len(seeds):5} seeds {runs:6} runs {orphans:5} orphans, ledger {off}, {broken} broken\n"
        )
    broken = sum(bool(one.violations) for one in verdicts)
    sys.stdout.write(f"{len(verdicts)} seeds in {took_s:.0f} s, {broken} broken\n")


async def main() -> int:
    """0 when every seed held."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--provider", choices=sorted(VENDORS))
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tw-") as folder:
        os.chmod(folder, 0o711)  # noqa: PTH101, S103 - Postgres may run as another user, who must get in
        postgres = EmbeddedPostgres(Path(folder) / "pg", unsafe_fast=True).start()
        try:
            await migrate(postgres.superuser_dsn, "faults", PASSWORDS)
            dsn = postgres.dsn("provider_bridge", PASSWORDS["provider_bridge"], "faults")
            verdicts = await run(options, dsn)
        finally:
            postgres.stop()
    report(verdicts, time.monotonic() - began_s)
    return int(any(one.violations for one in verdicts))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
