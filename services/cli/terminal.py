"""What the person sees: tables on a terminal, tab-separated lines in a pipe, JSON alone on stdout when asked for.

Results go to stdout; messages, progress and errors to stderr. Text from a server cannot steer the terminal.
"""

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli.failures import CliError

_STYLES = {"completed": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "queued": "blue"}
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


class Terminal:
    """Prints for one command."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.out = Console(soft_wrap=True, highlight=False)
        self.err = Console(stderr=True, soft_wrap=True, highlight=False)

    @property
    def is_pipe(self) -> bool:
        """Whether stdout is read by a program."""
        return not self.out.is_terminal

    def json(self, value: Any) -> None:
        """One JSON document: indented for a person, one line for a program."""
        text = msgspec.json.encode(value)
        if not self.is_pipe:
            text = msgspec.json.format(text, indent=2)
        self.line(text.decode())

    def line(self, text: str) -> None:
        """One line of a result, at once."""
        sys.stdout.write(f"{text if self.is_pipe else clean(text)}\n")
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """A message beside the result."""
        self.err.print(Text(clean(text)))

    def rows(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table on a terminal; without a header and tab-separated in a pipe."""
        if self.is_pipe:
            for row in rows:
                self.line("\t".join(_one_line(cell) for cell in row))
            return
        self.out.print(table(columns, rows))

    def facts(self, facts: Mapping[str, str | None]) -> None:
        """Names and values; what is None is left out."""
        rows = [(name, value) for name, value in facts.items() if value is not None]
        if self.is_pipe:
            self.rows((), rows)
            return
        grid = Table(box=None, show_header=False, pad_edge=False)
        grid.add_column(style="dim")
        grid.add_column(overflow="fold")
        for name, value in rows:
            grid.add_row(name, _styled(value))
        self.out.print(grid)

    def error(self, failure: CliError) -> None:
        """What is wrong, where, what to do."""
        self.err.print(Text("error: ", style="bold red").append(clean(failure.message), style="default"))
        for place in failure.places:
            self.err.print(Text(f"  {clean(place.where)}: {clean(place.message)}" if place.where else place.message))
            if place.advice:
                self.err.print(Text(f"    {clean(place.advice)}", style="dim"))
        if failure.advice:
            self.err.print(Text(f"  {clean(failure.advice)}", style="dim"))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A plain table; status words have their colour and stay words."""
    made = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(_styled(cell) for cell in row))
    return made


def clean(text: str) -> str:
    """The text without characters that steer a terminal; tabs and line ends stay."""
    return "".join(char if char in "\t\n" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def ago(moment: str | None, now: datetime | None = None) -> str:
    """How long ago an ISO time was, in its largest unit; empty for None."""
    if not moment:
        return ""
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(moment)).total_seconds()
    return f"{duration(max(0.0, seconds))} ago"


def duration(seconds: float | None) -> str:
    """Seconds in their two largest units, as `1 h 4 min`."""
    if seconds is None:
        return ""
    whole = int(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"


def dollars(amount_usd: float | None) -> str:
    """Dollars to the micro-dollar, without needless zeros beyond the cent."""
    if amount_usd is None:
        return ""
    return f"${amount_usd:.2f}" if round(amount_usd, 2) == round(amount_usd, 6) else f"${amount_usd:.6f}"


def size(size_bytes: int) -> str:
    """Bytes in the unit a person would use."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":  # noqa: PLR2004 - the step between the units
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the last unit takes everything")


def _styled(cell: str) -> Text:
    return Text(clean(cell), style=_STYLES.get(cell, ""))


def _one_line(cell: str) -> str:
    return cell.replace("\t", " ").replace("\n", " ").replace("\r", " ")
