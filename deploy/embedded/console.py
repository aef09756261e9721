"""Runs a stack in a terminal: what the operator reads, and the exit code."""

from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deploy.embedded.children import Child
from deploy.embedded.options import UpOptions
from deploy.embedded.process import EmbeddedError
from deploy.embedded.stack import Prepare, Stack, Started, Voice
from deploy.embedded.supervisor import RestartPolicy


def run_stack(
    options: UpOptions,
    *,
    children: Sequence[Child],
    prepare: Prepare,
    policy: RestartPolicy | None = None,
) -> int:
    """Runs the stack until it is told to stop; 0 after an orderly stop, 1 with the reason on stderr otherwise."""
    output, errors = Console(), Console(stderr=True)
    voice = Voice(
        say=lambda text: _print(output, escape(text)),
        started=lambda started: _print(output, _summary(started)),
    )
    code = 0
    try:
        Stack(options, children=children, prepare=prepare, voice=voice, policy=policy).run()
    except* EmbeddedError as group:
        for reason in _leaves(group):
            _print(errors, f"[bold red]error:[/] {escape(str(reason))}")
        code = 1
    return code


def _print(console: Console, what: str | Table) -> None:
    """Prints, unless the terminal has gone away, where rich would exit; what is said is in the supervisor's log too."""
    with suppress(OSError, SystemExit):
        console.print(what, soft_wrap=isinstance(what, str))


def _leaves(group: BaseExceptionGroup[EmbeddedError]) -> list[EmbeddedError]:
    found: list[EmbeddedError] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _summary(started: Started) -> Table:
    rows = Table(box=None, show_header=False, pad_edge=False, title="Tunewright is ready", title_justify="left")
    rows.add_column(style="bold")
    rows.add_column(overflow="fold")
    rows.add_row("Open", f"[link]{started.gateway_url}[/link]")
    rows.add_row("Data", str(started.data_dir))
    if started.postgres_home is not None and not started.postgres_home.is_relative_to(started.data_dir):
        rows.add_row("Database", f"{started.postgres_home} (root's Postgres user cannot enter the data directory)")
    rows.add_row("Logs", str(started.data_dir / "logs"))
    rows.add_row("Submit", "tunewright submit <config.json>")
    rows.add_row("Stop", "Ctrl-C; local training goes on and is found again at the next start")
    return rows
