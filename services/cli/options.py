"""Parameter types that several commands share."""

from typing import Annotated

from cyclopts import Parameter

from services.cli.session import Session as _Session

Session = Annotated[_Session, Parameter(parse=False)]
"""Handed in by the launcher, never typed by a person."""
Watch = Annotated[bool, Parameter(name=["--watch", "-w"], help="Stay and show changes until Ctrl-C.")]
Follow = Annotated[bool, Parameter(name=["--follow", "-f"], help="Stay until the job ends and show what it says.")]
