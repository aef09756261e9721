"""`python -m trainer`: the command line. Secrets come from a file or the environment, never from arguments."""

import argparse
import os
import threading
from pathlib import Path

from trainer.control import Control
from trainer.entry import inference
from trainer.entry.attempt import Options, run_attempt

_STANDARD_INPUT = 0
_SECONDS = ("drain_s", "max_run_s")
"""Options whose default comes from the environment."""


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line says and return the exit code (`shared.contracts.run.ExitCode`)."""
    parsed = _parser().parse_args(arguments)
    if getattr(parsed, "device", "auto") != "cuda":
        # More threads make small models slower on a shared CPU and change the order of sums.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    return parsed.start(parsed)


def _run(parsed: argparse.Namespace) -> int:
    control = Control()
    control.install_signal_handlers()
    if parsed.stop_with_parent:
        threading.Thread(target=_stop_with_parent, args=(control,), name="parent-watch", daemon=True).start()
    options = Options(
        spec_path=parsed.spec,
        work_dir=parsed.work_dir.resolve(),
        token_file=parsed.token_file,
        # Taken out of the environment, so that no child process and no crash report carries it.
        token=os.environ.pop("TRAINER_TOKEN", ""),
        device=parsed.device,
        offline=parsed.offline,
        cache_dir=parsed.cache_dir,
        **{name: value for name in _SECONDS if (value := getattr(parsed, name)) is not None},
    )
    return int(run_attempt(options, control))


def _stop_with_parent(control: Control) -> None:
    """Ask for a stop once the other end of standard input is closed, which it is at the latest when the parent dies."""
    while os.read(_STANDARD_INPUT, 1):
        pass
    control.stop.set()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Fine-tune, and use what came of it.")
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="run the attempt that a spec file describes")
    run.add_argument("--spec", type=Path, required=True, help="RunSpec as JSON")
    run.add_argument("--work-dir", type=Path, required=True, help="everything the attempt writes lies below")
    run.add_argument("--token-file", type=Path, help="the attempt's bearer token; or set TRAINER_TOKEN")
    run.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    run.add_argument("--cache-dir", type=Path, help="share latents and text embeddings between attempts")
    run.add_argument("--offline", action="store_true", help="talk to no gateway; outputs stay in the work folder")
    run.add_argument("--drain-s", type=float, help="how long to wait for the gateway at the end (TRAINER_DRAIN_S)")
    run.add_argument("--max-run-s", type=float, help="save, deliver and exit 75 after so long (TRAINER_MAX_RUN_S)")
    run.add_argument("--stop-with-parent", action="store_true", help="stop when standard input is closed")
    run.set_defaults(start=_run)
    inference.add_commands(commands)
    return parser
