"""worker: this machine pulls jobs from a Tunewright elsewhere."""

import asyncio
import signal
import socket
from pathlib import Path

from cyclopts import App

from deploy.embedded.children import REPOSITORY
from services.cli.exit_codes import DONE, USAGE
from services.cli.failures import CliError
from services.cli.options import Session
from services.cli.trainer_program import trainer_environment_python
from services.cli.worker.agent import Agent, AgentOptions
from services.cli.worker.server import Server
from services.cli.worker.state import AgentState
from services.cli.worker.token import TokenSource
from shared.runs.machine import LocalOptions, Machine


def worker(
    *,
    server: str,
    token_file: Path | None = None,
    name: str | None = None,
    label: list[str] | None = None,
    place: str | None = None,
    state_dir: Path | None = None,
    heartbeat_s: float = 30.0,
    session: Session,
) -> int:
    """Run jobs of a Tunewright elsewhere on this machine, one at a time, until it is stopped or told to end.

    An administrator makes the worker and its token: POST /api/admin/workers. The token is read from --token-file
    (chmod 600) or TUNEWRIGHT_WORKER_TOKEN, and a run goes on when this command is stopped: the next start finds it.

    :param server: address of the gateway, as this machine and its trainers reach it.
    :param token_file: file with the worker's token; it is read again for each request, so a new one may be put there.
    :param name: what the worker is called; by default this machine's name.
    :param label: NAME=VALUE by which jobs may ask for it; may be repeated.
    :param place: where the machine stands, for people.
    :param state_dir: where runs and their state lie; by default `worker` in the data directory.
    :param heartbeat_s: how often to tell that it lives; after 120 s of silence it counts as offline.
    """
    if not server.startswith(("http://", "https://")):
        raise CliError(f"{server} is not an http:// or https:// URL", exit_code=USAGE)
    token = TokenSource(token_file, session.environ)
    token.read()
    options = AgentOptions(
        name=name or socket.gethostname() or "worker",
        labels=_labels(label or []),
        provider=place,
        heartbeat_s=heartbeat_s,
    )
    folder = (state_dir or session.data_dir / "worker").expanduser().absolute()
    local = LocalOptions(
        state_dir=folder,
        trainer_python=Path(trainer_environment_python(session)),
        trainer_dir=REPOSITORY,
        environ=session.environ,
    )
    state = AgentState.open(folder)
    try:
        asyncio.run(_work(server, token, local, state, options, session))
    finally:
        state.close()
    return DONE


def register(app: App) -> None:
    """Adds this command."""
    app.command(worker)


async def _work(
    url: str, token: TokenSource, local: LocalOptions, state: AgentState, options: AgentOptions, session: Session
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = Server(url, token)
    try:
        await Agent(server, Machine(local), state, options, session.terminal.say).run(stop)
    finally:
        await server.close()
    if state.current is not None:
        session.terminal.say(f"stopped; job {state.current.job_id} goes on, and the next start finds it")


def _labels(given: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    for text, (name, sign, _) in zip(given, pairs, strict=True):
        if not name or not sign:
            raise CliError(f"{text!r} is not a label", advice="Write --label NAME=VALUE.", exit_code=USAGE)
    return {name: value for name, _, value in pairs}
