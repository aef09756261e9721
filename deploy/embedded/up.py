"""`tunewright up`: everything on this machine, on one port, until it is told to stop."""

import sys

from deploy.embedded.children import CHILDREN
from deploy.embedded.console import run_stack
from deploy.embedded.options import UpOptions, options_from
from shared.eventstore.migrate import migrate
from shared.observability import logging

__all__ = ["UpOptions", "run_embedded"]


def run_embedded(options: UpOptions) -> int:
    """Runs Tunewright until SIGTERM or SIGINT; 0 after an orderly stop, 1 with the reason on stderr otherwise."""
    logging.configure("supervisor", log_format=options.log_format, level="WARNING")
    return run_stack(options, children=CHILDREN, prepare=migrate)


if __name__ == "__main__":
    sys.exit(run_embedded(options_from(sys.argv[1:])))
