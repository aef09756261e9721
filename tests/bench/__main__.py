"""`python -m tests.bench [NAMES…]` runs the benchmarks whose letter or name is given, all without one.

Prints each figure beside what the machine or a peer gives in the same run. `--write` keeps figures and machine in docs.
"""

import argparse
import datetime as dt
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import asyncpg
import uvloop

from deploy.embedded.postgres import EmbeddedPostgres
from shared.observability import logging
from tests.bench.bench import ROUNDS, Bench, Stopwatch
from tests.bench.machine import Machine, Stolen, control, describe
from tests.bench.report import ROOT, Run, write


def _known() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]_*.py"))


def _wanted(names: list[str]) -> list[str]:
    chosen = [one for one in _known() if not names or {one, one[0], one.partition("_")[2]} & set(names)]
    unknown = [name for name in names if not any(name in {one, one[0], one.partition("_")[2]} for one in chosen)]
    if unknown:
        raise SystemExit(f"no benchmark {', '.join(unknown)}; there are {', '.join(_known())}")
    return chosen


def _commit() -> str:
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


async def _run_one(name: str, home: Path, postgres: EmbeddedPostgres, rounds: int) -> Run:
    module = importlib.import_module(f"tests.bench.{name}")
    title = str(module.__doc__).splitlines()[0].rstrip(".")
    print(f"\n{name[0]}. {title}", flush=True)
    bench = Bench(name, home, postgres, rounds=rounds)
    before = await control(home, postgres)
    print(f"  control before: {before}", flush=True)
    watch, stolen = Stopwatch(), Stolen()
    await module.run(bench)
    seconds, stolen_percent = watch.seconds, stolen.percent
    after = await control(home, postgres)
    print(f"  control after: {after}; {seconds:.0f} s, {stolen_percent:.0f} % stolen", flush=True)
    now = dt.datetime.now(dt.UTC)
    return Run(
        title=title,
        measured_at=f"{now:%Y-%m-%d %H:%M} UTC",
        commit=_commit(),
        seconds=seconds,
        stolen_percent=round(stolen_percent, 1),
        before=before,
        after=after,
        results=bench.results,
    )


async def _describe(home: Path, postgres: EmbeddedPostgres) -> Machine:
    connection = await asyncpg.connect(postgres.superuser_dsn)
    version = str(await connection.fetchval("show server_version"))
    await connection.close()
    return describe(home, version)


def main(arguments: list[str]) -> int:
    """Runs what was asked for; 1 when a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"letter or name: {', '.join(_known())}")
    parser.add_argument("--write", action="store_true", help="keep figures and machine in docs/benchmarks.*")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each figure is measured; %(default)s")
    options = parser.parse_args(arguments)
    logging.configure("bench", level="ERROR")
    home = Path(tempfile.mkdtemp(prefix="tw-bench-"))
    home.chmod(0o711)  # Postgres runs as another user when we are root
    postgres = EmbeddedPostgres(home / "pg").start()
    runs: dict[str, Run] = {}
    broken: list[str] = []
    try:
        machine = uvloop.run(_describe(home, postgres))
        print(f"{machine}\nload {os.getloadavg()}", flush=True)
        for name in _wanted(options.names):
            try:
                runs[name] = uvloop.run(_run_one(name, home, postgres, options.rounds))
            except Exception:  # noqa: BLE001 - shown here, and the exit code tells; the others have figures to give
                traceback.print_exc()
                broken.append(name)
                continue
            if options.write:
                write(machine, {name: runs[name]})
    finally:
        postgres.stop()
        shutil.rmtree(home, ignore_errors=True)
    missed = [f"{name}: {one.name}" for name, run in runs.items() for one in run.results if one.met is False]
    missed += [f"{name}: it broke" for name in broken]
    print("\nevery target met" if not missed else "\nmissed:\n  " + "\n  ".join(missed), flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
