"""`python -m tests.bench.trainer [NAMES…]` compares our trainer with diffusers' example scripts and TRL's trainers.

Same tiny model, same data, same batch, same settings, in turns, one thread. Speed is optimizer steps per second of the
process' own CPU time after ten steps of warm-up; the loss of both adapters is judged by one program on held-out data.
"""

import argparse
import datetime as dt
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from tests.bench.bench import Figures, Stopwatch
from tests.bench.machine import Stolen
from tests.bench.report import ROOT, Run, kept_machine, write
from tests.bench.trainer import diffusion, language
from tests.bench.trainer.comparison import Comparison, compare
from tests.bench.trainer.scripts import HOW_TO_GET_THEM, Scripts
from tests.bench.trainer.sides import Place

_PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "trl", "datasets")
_VERSIONS = "import importlib.metadata as m, sys; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="just bench-trainer", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="comparisons by name; all without one")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side is run; %(default)s")
    parser.add_argument("--steps", type=int, default=120, help="optimizer steps of a run; %(default)s")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-bench" / "bin" / "python")
    given = os.environ.get("DIFFUSERS_EXAMPLES")
    parser.add_argument("--diffusers-examples", type=Path, default=Path(given) if given else None, help=HOW_TO_GET_THEM)
    parser.add_argument("--write", action="store_true", help="keep the figures in docs/benchmarks.*")
    return parser.parse_args(arguments)


def _chosen(options: argparse.Namespace, home: Path) -> list[Comparison]:
    found = Scripts(options.diffusers_examples)
    made = [*diffusion.comparisons(home, found), *language.comparisons(home)]
    absent = [name for name in diffusion.SCRIPTS if found.find(name) is None]
    if absent:
        print(f"not measured, for the script is not there: {', '.join(absent)}. {HOW_TO_GET_THEM}", flush=True)
    unknown = sorted(set(options.names) - {each.name for each in made})
    if unknown:
        known = ", ".join(each.name for each in made)
        raise SystemExit(f"there is no comparison {', '.join(unknown)}; there are {known}")
    return [each for each in made if not options.names or each.name in options.names]


def _software(python: Path) -> str:
    command = [str(python), "-c", _VERSIONS, *_PACKAGES]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _commit() -> str:
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _measured(comparison: Comparison, place: Place, rounds: int) -> Run:
    print(f"\n{comparison.title}", flush=True)
    figures, watch, stolen, load_before = Figures(), Stopwatch(), Stolen(), os.getloadavg()[0]
    compare(comparison, place, rounds, figures)
    now = dt.datetime.now(dt.UTC)
    return Run(
        title=f"{comparison.title}, beside {comparison.peer_is}",
        measured_at=f"{now:%Y-%m-%d %H:%M} UTC",
        commit=_commit(),
        seconds=watch.seconds,
        stolen_percent=round(stolen.percent, 1),
        software=f"{rounds} rounds of {place.steps} steps on {place.device}, load {load_before:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after; {_software(place.python)}.",
        results=figures.results,
    )


def main(arguments: list[str]) -> int:
    """Runs what was asked for; 1 when a target was missed or a side broke."""
    options = _options(arguments)
    if not options.python.exists():
        raise SystemExit(f"there is no {options.python}: run `just setup-bench`")
    home = Path(tempfile.mkdtemp(prefix="tw-bench-trainer-"))
    missed: list[str] = []
    place = Place(options.python, home, options.device, options.steps)
    try:
        chosen = _chosen(options, home)
        place.run("prepare", str(home))
        for comparison in chosen:
            try:
                run = _measured(comparison, place, options.rounds)
            except Exception:  # noqa: BLE001 - shown here, and the exit code tells; the others have figures to give
                traceback.print_exc()
                missed.append(f"{comparison.name}: it broke")
                continue
            missed += [one.name for one in run.results if one.met is False]
            if options.write:
                write(kept_machine(), {f"g_{comparison.name}": run})
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print("\nevery target met" if not missed else "\nmissed:\n  " + "\n  ".join(missed), flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
