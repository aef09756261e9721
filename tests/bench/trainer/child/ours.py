# pyright: basic
"""`python -m tests.bench.trainer.child.ours MODULE SPEC WORK_DIR DEVICE`: one attempt of our trainer, whole, timed.

MODULE is what this kind of training imports; it is loaded before the memory of the libraries is read.
"""

import sys
from importlib import import_module
from pathlib import Path

from tests.bench.trainer.child.clock import clock_from_environment
from trainer.control import Control
from trainer.entry.attempt import Options, run_attempt


def main() -> int:
    """The attempt's exit code."""
    module, spec, work_dir, device = sys.argv[1:]
    for each in ("trainer.entry.session", module):
        import_module(each)
    clock = clock_from_environment()
    clock.start()
    clock.imported()
    return int(run_attempt(Options(Path(spec), Path(work_dir), device=device, offline=True), Control()))


if __name__ == "__main__":
    sys.exit(main())
