"""queue, account, whatif: what is, what was at any moment, and what another policy would have made of it."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import msgspec
from cyclopts import App, Parameter

from services.cli.exit_codes import DONE, USAGE
from services.cli.failures import CliError, Place
from services.cli.options import Session
from services.cli.terminal import dollars, duration
from shared.contracts.whatif import Policy, PriceList, Told, WaitStats, WhatIfReport

WHATIF_TIMEOUT_S = 620.0
MICRO = 1_000_000
USERS_SHOWN = 10
T = TypeVar("T")

At = Annotated[
    str | None,
    Parameter(help="As it was then: a log position such as 1234, or a time such as 2026-11-22T10:00:00Z."),
]


def queue(*, at: At = None, session: Session) -> int:
    """Show who holds the slots, who waits, in which order, and why; now, or as it was."""
    answer = session.gateway.get("/api/v1/queue", at=at)
    if session.terminal.as_json:
        session.terminal.json(answer)
        return DONE
    running = [
        (job["job_id"], "running", "", job["provider"], f"attempt {job['attempt_number']}") for job in answer["running"]
    ]
    waiting = [
        (job["job_id"], "queued", str(job["position"]), str(job["priority"]), f"{job['reason']}: {job['detail']}")
        for job in answer["waiting"]
    ]
    session.terminal.rows(("JOB", "STATE", "PLACE", "PROVIDER/PRIORITY", "WHY"), [*running, *waiting])
    session.terminal.say(_slots(len(running), answer["limits"]) + _then(answer))
    return DONE


def account(
    owner: str = "local",
    *,
    month: str | None = None,
    at: At = None,
    limit: Annotated[int, Parameter(name=["--limit", "-n"])] = 50,
    session: Session,
) -> int:
    """Show one owner's ledger of a month: balances, and what each job reserved, used, was charged and given back.

    :param owner: whose; in single-user mode everything belongs to `local`.
    :param month: such as 2026-11; without it the present one, or that of --at.
    :param limit: how many jobs (at most 10000).
    """
    answer = session.gateway.get(f"/api/v1/accounts/{quote(owner, safe='')}", month=month, at=at, limit=limit)
    if session.terminal.as_json:
        session.terminal.json(answer)
        return DONE
    session.terminal.facts(
        {
            "owner": answer["owner"],
            "month": answer["month"],
            **{name: _money(amount) for name, amount in answer["balances"].items()},
            "floor": None if answer["floor_micro_usd"] is None else _money(answer["floor_micro_usd"]),
        }
    )
    names = ("reserved", "metered", "captured", "released")
    rows = [
        (job["job_id"], job["state"], *(_money(job[f"{name}_micro_usd"]) for name in names)) for job in answer["jobs"]
    ]
    session.terminal.rows(("JOB", "STATE", "RESERVED", "METERED", "CHARGED", "GIVEN BACK"), rows)
    session.terminal.say(
        f"{len(rows)} of {answer['jobs_total']} jobs; {answer['entries']} entries sum to "
        f"{_money(answer['sum_micro_usd'])}{_then(answer)}"
    )
    return DONE


def whatif(
    *,
    policy: Path | None = None,
    prices: Path | None = None,
    since: str | None = None,
    until: str | None = None,
    jobs: int = 0,
    session: Session,
) -> int:
    """Replay what came in under another policy or price list, and show wait, cost and fairness beside what happened.

    Without --policy every recorded decision is taken again, and must come out the same. Nothing is changed.

    :param policy: a TOML or JSON file: `order` (priority, fifo, fair_share), `[limits]` in_all, per_user and
        `[limits.of_users]` alice = 3, `[retry]` base_delay_s, max_delay_s, max_attempts. What it leaves out is
        as it was.
    :param prices: a price list shaped like services/billing/catalogue.json, TOML or JSON.
    :param since: count jobs submitted after this log position or time.
    :param until: and up to this one.
    :param jobs: also list so many single jobs (at most 5000).
    """
    body: dict[str, Any] = {
        "policy": msgspec.to_builtins(_read(policy, Policy)) if policy else {},
        "prices": msgspec.to_builtins(_read(prices, PriceList)) if prices else None,
        "since": since,
        "until": until,
        "jobs_limit": jobs,
    }
    with session.terminal.err.status("replaying the log"):
        answer = session.gateway.post("/api/v1/whatif", body, timeout_s=WHATIF_TIMEOUT_S)
    if session.terminal.as_json:
        session.terminal.json(answer)
        return DONE
    _show(session, msgspec.convert(answer, WhatIfReport))
    return DONE


def register(app: App) -> None:
    """Adds these commands."""
    for command in (queue, account, whatif):
        app.command(command)


def _then(answer: dict[str, Any]) -> str:
    return f"; as of position {answer['up_to']}, {answer['at'] or 'the end of the log'}" if "up_to" in answer else ""


def _slots(running: int, limits: dict[str, int] | None) -> str:
    if limits is None:
        return f"{running} slots in use"
    return f"{running} of {limits['global']} slots in use, at most {limits['per_user']} of one user's jobs at once"


def _money(amount_micro_usd: int) -> str:
    return f"{'-' if amount_micro_usd < 0 else ''}{dollars(abs(amount_micro_usd) / MICRO)}"


def _read(file: Path, kind: type[T]) -> T:
    """What a TOML or JSON file says; unknown keys and wrong values are named."""
    try:
        content = file.read_bytes()
        found = msgspec.json.decode(content) if file.suffix == ".json" else tomllib.loads(content.decode())
        return msgspec.convert(found, kind)
    except OSError as error:
        raise CliError(f"{file} cannot be read: {error.strerror}", exit_code=USAGE) from error
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        where = path.strip("`").removeprefix("$").removeprefix(".") or str(file)
        raise CliError(
            f"{file} is not what is asked for",
            places=[Place(where=where, message=message)],
            advice="`tunewright whatif --help` names the keys; docs/time-travel.md has examples.",
            exit_code=USAGE,
        ) from error
    except (ValueError, msgspec.DecodeError) as error:
        raise CliError(f"{file} is neither TOML nor JSON: {error}", exit_code=USAGE) from error


# ---- the report ------------------------------------------------------------------------------------------------------


def _show(session: Session, report: WhatIfReport) -> None:
    terminal, decisions = session.terminal, report.decisions
    terminal.line(f"decisions: {decisions.recorded} reproduced: {decisions.reproduced}")
    if (difference := decisions.first_difference) is not None:
        terminal.line(f"first difference: position {difference.position}, {difference.at.isoformat()}")
        terminal.line(f"  recorded: {difference.recorded}")
        terminal.line(f"  decided:  {difference.decided}")
    terminal.rows(("", "HAPPENED", "WHAT IF"), _sides(report.happened, report.what_if))
    terminal.rows(
        ("USER", "MEAN WAIT", "WHAT IF", "SLOT TIME", "WHAT IF", "COST", "WHAT IF"),
        _users(report.happened, report.what_if),
    )
    if report.jobs:
        terminal.rows(
            ("JOB", "USER", "OUTCOME", "WHAT IF", "WAIT", "WHAT IF"),
            [
                (
                    str(job.job_id),
                    job.user_id,
                    job.outcome,
                    job.what_if_outcome,
                    duration(job.wait_s),
                    duration(job.what_if_wait_s),
                )
                for job in report.jobs
            ],
        )
    _remarks(session, report)


def _remarks(session: Session, report: WhatIfReport) -> None:
    decisions = report.decisions
    session.terminal.say(f"{report.events} events replayed in {report.duration_s:.1f} s")
    if report.carried_over:
        session.terminal.say(f"{report.carried_over} jobs from before took part and are not counted")
    if decisions.without_basis:
        session.terminal.say(f"{decisions.without_basis} decisions do not say what they were made on")
    if report.assumed_attempts:
        session.terminal.say(f"{report.assumed_attempts} attempts never happened; how long they take is assumed")
    if report.late_cancels:
        session.terminal.say(f"{report.late_cancels} cancels would have come after the job's end")


def _sides(happened: Told, what_if: Told) -> list[Sequence[str]]:
    counts = ("jobs", "completed", "failed", "cancelled", "waiting", "attempts")
    rows: list[Sequence[str]] = [(name, str(getattr(happened, name)), str(getattr(what_if, name))) for name in counts]
    rows += _waits("wait", happened.wait, what_if.wait)
    for name, stats in happened.wait_by_priority.items():
        if name in what_if.wait_by_priority:
            rows += _waits(f"wait, {name}", stats, what_if.wait_by_priority[name])
    rows.append(("slot time", duration(happened.slot_seconds), duration(what_if.slot_seconds)))
    rows.append(("cost", _money(happened.cost_micro_usd), _money(what_if.cost_micro_usd)))
    rows.append(("fairness of wait", f"{happened.fairness_wait:.3f}", f"{what_if.fairness_wait:.3f}"))
    fair = (happened.fairness_slot_seconds, what_if.fairness_slot_seconds)
    rows.append(("fairness of slot time", f"{fair[0]:.3f}", f"{fair[1]:.3f}"))
    return rows


def _waits(name: str, happened: WaitStats, what_if: WaitStats) -> list[Sequence[str]]:
    words = (("median", "median_s"), ("p95", "p95_s"), ("max", "max_s"))
    return [
        (f"{name}, {word}", duration(getattr(happened, field)), duration(getattr(what_if, field)))
        for word, field in words
    ]


def _users(happened: Told, what_if: Told) -> list[Sequence[str]]:
    others = {user.user_id: user for user in what_if.users}
    return [
        (
            user.user_id,
            duration(user.mean_wait_s),
            duration(other.mean_wait_s),
            duration(user.slot_seconds),
            duration(other.slot_seconds),
            _money(user.cost_micro_usd),
            _money(other.cost_micro_usd),
        )
        for user in happened.users[:USERS_SHOWN]
        if (other := others.get(user.user_id)) is not None
    ]
