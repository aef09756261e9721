"""Runs the real stack with small children: `python -m tests.integration.embedded.driver`, with the options of `up`."""

import dataclasses
import sys
from pathlib import Path

from deploy.embedded.children import CHILDREN
from deploy.embedded.console import run_stack
from deploy.embedded.options import options_from
from shared.eventstore.migrate import migrate

PROGRAM = str(Path(__file__).with_name("child_program.py"))


def main(arguments: list[str]) -> int:
    broken = arguments.pop(arguments.index("--break") + 1) if "--break" in arguments else ""
    options = options_from([argument for argument in arguments if argument != "--break"])

    def kind(name: str) -> str:
        return "broken" if name == broken else "gateway" if name == "gateway" else "service"

    children = [dataclasses.replace(child, arguments=(PROGRAM, kind(child.name))) for child in CHILDREN]
    return run_stack(options, children=children, prepare=migrate)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
