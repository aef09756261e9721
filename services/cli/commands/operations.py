"""up, verify, rebuild, parked, cost: running Tunewright, and proving what it says."""

import asyncio
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import asyncpg
import msgspec
from cyclopts import App
from rich.progress import Progress

from deploy.embedded.options import UpOptions
from deploy.embedded.up import run_embedded
from services.cli.exit_codes import DONE, ERROR, USAGE
from services.cli.failures import CliError, Place
from services.cli.options import Session
from services.cli.terminal import dollars
from shared.eventstore.verify import VerifyReport
from shared.eventstore.verify import verify as verify_log

PARKED = App(name="parked", help="Messages that a service gave up after its last try.")
REBUILD_TIMEOUT_S = 900.0
MICRO = 1_000_000
_MAX_FAULTS = 50


def up(
    *,
    host: str = "127.0.0.1",
    port: int = 8001,
    database_url: str | None = None,
    nats_url: str | None = None,
    config_dir: Path | None = None,
    dataset_root: list[Path] | None = None,
    log_format: Literal["json", "console"] = "json",
    session: Session,
) -> int:
    """Run everything on this machine until Ctrl-C: Postgres, NATS, the relay and the five services, on one port.

    :param host: the address to listen on; there is no sign-in, so think before leaving loopback.
    :param port: the one port that serves everything.
    :param database_url: a Postgres that is already there, as a superuser (or TUNEWRIGHT_DATABASE_URL).
    :param nats_url: a NATS with JetStream that is already there (or TUNEWRIGHT_NATS_URL).
    :param config_dir: saved training configs to serve.
    :param dataset_root: datasets come from inside this directory only; may be repeated, needed beyond loopback.
    """
    options = UpOptions(
        data_dir=session.data_dir,
        host=host,
        port=port,
        database_url=_without_secret(database_url, "DATABASE_URL", session),
        nats_url=_without_secret(nats_url, "NATS_URL", session),
        config_dir=config_dir,
        dataset_roots=dataset_root or (),
        log_format=log_format,
    )
    return run_embedded(options)


def verify(*, database_url: str | None = None, session: Session) -> int:
    """Recompute every hash of the log and name each event that was touched. Needs the log, not the services.

    :param database_url: the log's database; by default that of the running embedded mode. With a password, set
        TUNEWRIGHT_DATABASE_URL instead.
    """
    dsn = _without_secret(database_url, "DATABASE_URL", session) or session.run_state.get("log_dsn")
    if not dsn:
        raise CliError(
            f"nothing runs from {session.data_dir}, so its log cannot be found",
            advice="Start `tunewright up`, name its --data-dir, or set TUNEWRIGHT_DATABASE_URL.",
        )
    report = _verified(session, str(dsn))
    if session.terminal.as_json:
        session.terminal.json({"intact": report.is_intact, **msgspec.to_builtins(report)})
    else:
        _say_report(session, report)
    return DONE if report.is_intact else ERROR


def rebuild(service: str | None = None, *, session: Session) -> int:
    """Refold the read models from the log and say whether any row came out different.

    :param service: only this service's.
    """
    answer = session.gateway.post("/api/v1/admin/rebuild", query={"service": service}, timeout_s=REBUILD_TIMEOUT_S)
    if session.terminal.as_json:
        session.terminal.json(answer)
    else:
        session.terminal.rows(("SERVICE", "READ MODEL", "ROWS", "EQUAL"), _rebuilt_rows(answer))
    return DONE if answer["equal"] else ERROR


def cost(job: str, *, session: Session) -> int:
    """Show what a job was reserved, metered, charged and given back, with every entry of the ledger.

    :param job: id of the job, or the beginning of it.
    """
    answer = session.gateway.get(f"/api/v1/jobs/{session.job_id(job)}/cost")
    if session.terminal.as_json:
        session.terminal.json(answer)
        return DONE
    names = ("reserved", "metered", "captured", "released")
    totals = [(name, "", "", dollars(answer[f"{name}_micro_usd"] / MICRO)) for name in names]
    entries = [
        (entry["type"], entry["ledger_account"], str(entry["position"]), dollars(entry["amount_micro_usd"] / MICRO))
        for entry in answer["entries"]
    ]
    session.terminal.rows(("ENTRY", "ACCOUNT", "POSITION", "AMOUNT"), [*entries, *totals])
    return DONE


@PARKED.command(name="ls")
def parked_ls(service: str | None = None, *, session: Session) -> int:
    """List the messages that were given up, and why.

    :param service: only this service's.
    """
    answer = session.gateway.get("/api/v1/admin/parked", service=service)
    if session.terminal.as_json:
        session.terminal.json(answer)
        return DONE
    rows = [
        (name, item["durable"], str(item["position"]), item["type"], item["stream"], item["reason"])
        for name, told in answer["services"].items()
        for item in told.get("parked", [])
    ]
    session.terminal.rows(("SERVICE", "DURABLE", "POSITION", "TYPE", "STREAM", "REASON"), rows)
    silent = {name: told["error"] for name, told in answer["services"].items() if "error" in told}
    for name, reason in silent.items():
        session.terminal.say(f"{name} did not answer: {reason}")
    return ERROR if silent else DONE


@PARKED.command
def replay(service: str, durable: str, position: int, *, session: Session) -> int:
    """Handle one parked message again.

    :param service: the service that gave it up.
    :param durable: the subscription, as `parked ls` shows it.
    :param position: its position in the log.
    """
    body = {"service": service, "durable": durable, "position": position}
    answer = session.gateway.post("/api/v1/admin/parked/replay", body, timeout_s=60.0)
    if session.terminal.as_json:
        session.terminal.json(answer)
    elif answer["replayed"]:
        session.terminal.say(f"position {position} was handled")
    else:
        session.terminal.say(f"position {position} was given up again: {answer.get('reason')}")
    return DONE if answer["replayed"] else ERROR


def register(app: App) -> None:
    """Adds these commands."""
    for command in (up, cost, verify, rebuild):
        app.command(command)
    app.command(PARKED)


def _without_secret(given: str | None, name: str, session: Session) -> str | None:
    """A URL from the command line, where every user of this machine can read it, or from the environment."""
    variable = f"TUNEWRIGHT_{name}"
    if given is None:
        return session.environ.get(variable) or None
    if urlsplit(given).password:
        raise CliError(
            "a password on the command line can be read by every user of this machine",
            advice=f"Set {variable} instead.",
            exit_code=USAGE,
        )
    return given


def _verified(session: Session, dsn: str) -> VerifyReport:
    err = session.terminal.err
    try:
        with Progress(console=err, disable=not err.is_terminal, transient=True) as bars:
            task = bars.add_task("checking hashes", total=None)
            return asyncio.run(verify_log(dsn, lambda done, head: bars.update(task, completed=done, total=head)))
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise CliError(
            f"the log cannot be read: {error or type(error).__name__}",
            advice="Check that its Postgres runs and that the URL is right.",
        ) from error


def _say_report(session: Session, report: VerifyReport) -> None:
    checked = f"{report.events} events in {report.streams} streams and {report.seals} seals, up to {report.head}"
    if report.is_intact:
        session.terminal.line(f"intact: {checked}; sealed to {report.sealed_to}, {report.duration_s:.1f} s")
        return
    rows = [
        (fault.kind, str(fault.position or ""), f"{fault.stream or ''} {fault.stream_version or ''}", fault.detail)
        for fault in report.faults
    ]
    session.terminal.rows(("FAULT", "POSITION", "STREAM", "HOW ONE CAN TELL"), rows)
    raise CliError(
        f"{len(report.faults)} faults in {checked}",
        places=[Place(where=f"position {row[1]}", message=row[0]) for row in rows[:_MAX_FAULTS] if row[1]],
        advice="Compare with a backup; docs/decisions/0002-hash-chain-and-seals.md says what each kind means.",
    )


def _rebuilt_rows(answer: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    rows: list[tuple[str, str, str, str]] = []
    for name, told in answer["services"].items():
        if "error" in told:
            rows.append((name, "", "", f"did not answer: {told['error']}"))
        rows += [
            (name, str(item["name"]), str(item["rows"]), "yes" if item["equal"] else "NO")
            for item in told.get("projections", [])
        ]
    return rows
