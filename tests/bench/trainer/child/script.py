# pyright: basic
"""`python -m tests.bench.trainer.child.script SCRIPT ARGUMENTS…` runs one of diffusers' scripts unmodified, timed."""

import argparse
import runpy
import sys

import torch

from tests.bench.trainer.child import torchvision_on_pillow
from tests.bench.trainer.child.clock import clock_from_environment


def main() -> None:
    """Run the script as `__main__`."""
    script = sys.argv[1]
    # Libraries are loaded before the stand-ins come, so that none of them takes these for the real torchvision.
    import datasets  # noqa: F401, PLC0415 # pyright: ignore[reportMissingImports] -- in .venv-bench
    import diffusers  # noqa: F401, PLC0415
    import peft  # noqa: F401, PLC0415
    import transformers  # noqa: F401, PLC0415

    torchvision_on_pillow.install()
    torch.set_num_threads(1)
    clock = clock_from_environment()
    clock.start()
    parse = argparse.ArgumentParser.parse_args

    def parse_and_mark(self: argparse.ArgumentParser, *arguments: object, **options: object) -> argparse.Namespace:
        clock.imported()  # scripts import everything at their top, and read their arguments next
        return parse(self, *arguments, **options)  # pyright: ignore[reportArgumentType, reportReturnType, reportCallIssue] -- passed on as they came

    argparse.ArgumentParser.parse_args = parse_and_mark  # pyright: ignore[reportAttributeAccessIssue] -- as above
    sys.argv = sys.argv[1:]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
