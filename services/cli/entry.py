"""`tunewright`: reads the command line, runs one command, turns every way it can end into an exit code."""

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from services.cli.commands import (
    artifacts,
    jobs,
    learning,
    live,
    models,
    operations,
    past,
    serve,
    submit,
    trying,
    worker,
)
from services.cli.exit_codes import DONE, INTERRUPTED, USAGE
from services.cli.failures import CliError
from services.cli.session import Session

HELP = """Fine-tune on this machine or any other, and prove what happened.

`tunewright up` starts everything; the other commands talk to it over HTTP. Results go to stdout, messages to stderr.

Exit codes: 0 done, 1 error, 2 usage; `submit --wait` and `logs -f` end with the job's: 100 failed, 103 cancelled.

Environment: TUNEWRIGHT_URL, TUNEWRIGHT_DATA_DIR, TUNEWRIGHT_API_KEY, TUNEWRIGHT_DATABASE_URL, NO_COLOR.

Shell completion: `tunewright --install-completion`.
"""


def _version() -> str:
    try:
        return package_version("tunewright")
    except PackageNotFoundError:  # run from the source tree
        return "0.1.0"


def make_app() -> App:
    """The commands, without anything that runs."""
    app = App(
        name="tunewright",
        help=HELP,
        version=_version,
        default_parameter=Parameter(negative=()),
        result_action="return_value",
    )
    for group in (operations, submit, jobs, live, learning, past, trying, serve, worker):
        group.register(app)
    app.command(artifacts.APP)
    app.command(models.APP)
    app.register_install_completion_command(add_to_startup=False)  # pyright: ignore[reportUnknownMemberType]
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code."""
    app = make_app()
    app.meta.result_action = "return_value"

    @app.meta.default
    def launch(  # pyright: ignore[reportUnusedFunction] - the decorator registers it
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        json: Annotated[bool, Parameter(help="Print JSON on stdout, and nothing else there.")] = False,
        url: Annotated[str | None, Parameter(help="Where Tunewright answers (or TUNEWRIGHT_URL).")] = None,
        data_dir: Annotated[Path | None, Parameter(help="Where embedded mode keeps its data.")] = None,
    ) -> int:
        command, bound, ignored = app.parse_args(tokens, exit_on_error=False, print_error=False)
        session = Session(as_json=json, url=url, data_dir=data_dir)
        handed: dict[str, Any] = {"session": session} if "session" in ignored else {}
        return _run(session, lambda: command(*bound.args, **bound.kwargs, **handed))

    try:
        ended: object = app.meta(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        Session().terminal.error(CliError(str(error), advice="`tunewright --help` lists the commands."))
        return USAGE
    return ended if isinstance(ended, int) else DONE


def _run(session: Session, command: Any) -> int:
    try:
        ended: object = command()
    except CliError as failure:
        session.terminal.error(failure)
        return failure.exit_code
    except KeyboardInterrupt:
        session.terminal.say("stopped here; what runs goes on")
        return INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough
        sys.stderr.close()
        return DONE
    finally:
        session.close()
    return ended if isinstance(ended, int) else DONE
