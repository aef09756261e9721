"""submit: a config becomes a job, once, however often the request has to be sent."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, cast
from uuid import uuid4

from cyclopts import App, Parameter

from services.cli.commands.live import follow_log
from services.cli.exit_codes import DONE, ERROR, OF_STATUS, USAGE
from services.cli.failures import CliError
from services.cli.following import await_end
from services.cli.options import Follow, Session
from services.cli.terminal import dollars, duration


def submit(  # noqa: PLR0913 - the options of a command line
    config: Path | None = None,
    *,
    dataloader: Annotated[Path | None, Parameter(name=["--dataloader", "-d"])] = None,
    config_name: str | None = None,
    provider: str = "local",
    name: str | None = None,
    idempotency_key: str | None = None,
    priority: str | None = None,
    wait: bool = False,
    follow: Follow = False,
    session: Session,
) -> int:
    """Submit a training job. Prints its id.

    With --wait or --follow the exit code is the job's: 0 completed, 100 failed, 103 cancelled.

    :param config: JSON file with `--key` settings, or with a whole request body; `-` reads stdin.
    :param dataloader: JSON file with the dataloader list (multidatabackend).
    :param config_name: a config saved on the server, instead of files.
    :param provider: where to run.
    :param name: a name for people (tracker_run_name).
    :param idempotency_key: the same key with the same request gives the same job for 24 hours.
    :param priority: low, normal, high, urgent or critical.
    :param wait: stay until the job has ended.
    """
    body = _body(config, dataloader, config_name)
    if name is not None:
        body["tracker_run_name"] = name
    if priority is not None:
        body["priority"] = priority
    answer = session.gateway.post(
        "/api/cloud/jobs/submit",
        body,
        query={"provider": provider},
        headers={"Idempotency-Key": idempotency_key or str(uuid4())},
    )
    if answer.get("success") is not True:
        raise CliError(f"the job was refused: {answer.get('error')}")
    return _after_submit(session, answer, wait=wait, follow=follow)


def register(app: App) -> None:
    """Adds this command."""
    app.command(submit)


def _after_submit(session: Session, answer: dict[str, Any], *, wait: bool, follow: bool) -> int:
    job_id, terminal = str(answer["job_id"]), session.terminal
    if answer.get("idempotent_hit"):
        terminal.say("this request was submitted before; it is the same job")
    if not wait and not follow:
        if terminal.as_json:
            terminal.json(answer)
        else:
            terminal.line(job_id)
            terminal.say(f"`tunewright logs {job_id} -f` follows it, `tunewright describe {job_id}` explains it")
        return DONE
    terminal.say(f"job {job_id}; Ctrl-C leaves it running")
    if follow:
        follow_log(session, job_id, to_stderr=terminal.as_json)
    job = await_end(session.gateway, job_id)
    if terminal.as_json:
        terminal.json(job)
    elif not follow:
        terminal.line(job_id)
    spent = dollars(job.get("cost_usd"))
    took = duration(job.get("duration_seconds"))
    terminal.say(" ".join(word for word in (f"job {job_id} {job['status']}", took and f"after {took},", spent) if word))
    if job.get("error_message"):
        terminal.say(str(job["error_message"]))
    return OF_STATUS.get(str(job["status"]), ERROR)


def _body(config: Path | None, dataloader: Path | None, config_name: str | None) -> dict[str, Any]:
    if config_name is not None:
        if config is not None or dataloader is not None:
            raise CliError("give either files or --config-name, not both", exit_code=USAGE)
        return {"config_name_to_load": config_name}
    if config is None:
        raise CliError(
            "a config is missing",
            advice="tunewright submit CONFIG.json --dataloader DATALOADER.json, or --config-name NAME",
            exit_code=USAGE,
        )
    found = _read_json(config)
    if not isinstance(found, dict):
        raise CliError(f"{config} holds no JSON object", exit_code=USAGE)
    read = cast("dict[str, Any]", found)
    if "config" in read and "dataloader_config" in read:  # a whole request body, as the tutorial prints it
        return read
    if dataloader is None:
        raise CliError(f"{config} names no dataloader", advice="Add --dataloader FILE.", exit_code=USAGE)
    loader = _read_json(dataloader)
    if not isinstance(loader, list):
        raise CliError(f"{dataloader} holds no JSON list", exit_code=USAGE)
    return {"config": read, "dataloader_config": loader}


def _read_json(path: Path) -> Any:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        return json.loads(text)
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}", exit_code=USAGE) from error
    except ValueError as error:
        raise CliError(f"{path} is not JSON: {error}", exit_code=USAGE) from error
