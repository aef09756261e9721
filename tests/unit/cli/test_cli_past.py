"""The past on the command line: the queue and an account then, and what another policy would have done."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import Run, Server, a_problem, as_json

ONE = "01a20118-37ae-7469-8b47-45a866170181"
TWO = "01a20118-4444-7469-8b47-45a866170182"
ROOT = Path(__file__).parents[3]
QUEUE = {
    "running": [{"job_id": ONE, "user_id": "local", "provider": "local", "attempt_number": 2}],
    "waiting": [
        {
            "job_id": TWO,
            "user_id": "local",
            "priority": 10,
            "position": 1,
            "reason": "global_limit",
            "detail": "1 of 1 slots are taken",
            "queued_at": "2026-11-22T01:02:03+00:00",
            "not_before": None,
        }
    ],
    "limits": {"global": 1, "per_user": 1},
}
WAIT = {"jobs": 2, "mean_s": 10.0, "median_s": 5.0, "p95_s": 3700.0, "max_s": 3700.0}


def told(**changes: Any) -> dict[str, Any]:
    return {
        "jobs": 2,
        "completed": 2,
        "failed": 0,
        "cancelled": 0,
        "open": 0,
        "waiting": 0,
        "attempts": 2,
        "slot_seconds": 7200,
        "cost_micro_usd": 1_500_000,
        "wait": WAIT,
        "wait_by_priority": {"normal": WAIT},
        "users": [{"user_id": "local", "jobs": 2, "mean_wait_s": 10, "slot_seconds": 7200, "cost_micro_usd": 1}],
        "users_total": 1,
        "fairness_wait": 1.0,
        "fairness_slot_seconds": 1.0,
        **changes,
    }


def a_report(reproduced: int = 3, difference: dict[str, Any] | None = None, **what_if: Any) -> dict[str, Any]:
    return {
        "after_position": 0,
        "up_to_position": 90,
        "began_at": None,
        "ended_at": None,
        "policy": {},
        "limits_in_force": {"in_all": 1, "per_user": 1},
        "events": 90,
        "carried_over": 0,
        "duration_s": 0.25,
        "decisions": {
            "recorded": 3,
            "reproduced": reproduced,
            "dispatches": 2,
            "explanations": 1,
            "retries": 0,
            "without_basis": 0,
            "first_difference": difference,
        },
        "happened": told(),
        "what_if": told(**what_if),
        "assumed_attempts": 4,
        "late_cancels": 0,
        "jobs": [],
    }


def test_the_queue_of_then_says_of_when_it_is(server: Server, run: Run) -> None:
    server.on("GET /api/v1/queue", as_json({**QUEUE, "up_to": 44, "at": "2026-11-22T01:02:04+00:00"}))
    ended = run("queue", "--at", "44")
    assert server.asked[0].query == {"at": "44"}
    assert [line.split("\t")[:3] for line in ended.out.splitlines()] == [[ONE, "running", ""], [TWO, "queued", "1"]]
    assert "global_limit: 1 of 1 slots are taken" in ended.out
    assert "1 of 1 slots in use" in ended.err
    assert "as of position 44" in ended.err


def test_the_queue_of_a_time_without_decisions_has_no_limits(server: Server, run: Run) -> None:
    server.on("GET /api/v1/queue", as_json({**QUEUE, "limits": None, "up_to": 4, "at": None}))
    assert "1 slots in use" in run("queue", "--at", "4").err
    assert run("queue", "--at", "4", "--json").json()["up_to"] == 4


def test_account_shows_balances_and_what_each_job_moved(server: Server, run: Run) -> None:
    job = {
        "job_id": ONE,
        "state": "settled",
        "reserved_micro_usd": 2_000_000,
        "metered_micro_usd": 1_500_000,
        "captured_micro_usd": 1_500_000,
        "released_micro_usd": 500_000,
    }
    answer = {
        "owner": "local",
        "month": "2026-11",
        "floor_micro_usd": None,
        "balances": {"available": -1_500_000, "reserved": 0, "spent": 1_500_000},
        "sum_micro_usd": 0,
        "entries": 6,
        "jobs": [job],
        "jobs_total": 1,
        "up_to": 9,
        "at": "2026-11-22T01:02:04+00:00",
    }
    server.on("GET /api/v1/accounts/local", as_json(answer))
    ended = run("account", "--month", "2026-11", "--at", "9")
    assert server.asked[0].query == {"month": "2026-11", "at": "9", "limit": "50"}
    assert f"{ONE}\tsettled\t$2.00\t$1.50\t$1.50\t$0.50" in ended.out.splitlines()
    assert {"spent\t$1.50", "available\t-$1.50"} <= set(ended.out.splitlines())
    assert "sum to $0.00" in ended.err
    assert run("account", "--json").json() == answer


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "policy.toml",
            'order = "fifo"\n[limits]\nin_all = 10\n[limits.of_users]\nalice = 3\n[retry]\nmax_attempts = 5\n',
        ),
        (
            "policy.json",
            '{"order": "fifo", "limits": {"in_all": 10, "of_users": {"alice": 3}}, "retry": {"max_attempts": 5}}',
        ),
    ],
    ids=["toml", "json"],
)
def test_whatif_sends_the_policy_and_shows_both_sides(
    server: Server, run: Run, tmp_path: Path, name: str, text: str
) -> None:
    difference = {
        "position": 17,
        "at": "2026-11-22T01:02:04Z",
        "job_id": ONE,
        "recorded": "user_limit",
        "decided": "attempt 1",
    }
    server.on("POST /api/v1/whatif", as_json(a_report(1, difference, cost_micro_usd=3_000_000)))
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    ended = run("whatif", "--policy", str(file), "--since", "2026-11-01")
    assert ended.code == 0, ended.err
    body = json.loads(server.asked[0].body)
    assert body["policy"]["order"] == "fifo"
    assert body["policy"]["limits"] == {"in_all": 10, "per_user": None, "of_users": {"alice": 3}}
    assert (body["policy"]["retry"]["max_attempts"], body["since"], body["prices"]) == (5, "2026-11-01", None)
    lines = ended.out.splitlines()
    assert lines[0] == "decisions: 3 reproduced: 1"
    assert lines[1] == "first difference: position 17, 2026-11-22T01:02:04+00:00"
    assert "cost\t$1.50\t$3.00" in lines
    assert "wait, p95\t1 h 1 min\t1 h 1 min" in lines
    assert "4 attempts never happened" in ended.err


def test_whatif_without_a_policy_asks_about_the_unchanged_one(server: Server, run: Run) -> None:
    server.on("POST /api/v1/whatif", as_json(a_report()))
    ended = run("whatif")
    assert json.loads(server.asked[0].body)["policy"] == {}
    assert ended.out.splitlines()[0] == "decisions: 3 reproduced: 3"
    assert "first difference" not in ended.out
    assert run("whatif", "--json").json() == a_report()


@pytest.mark.parametrize(
    ("option", "text", "where"),
    [
        ("--policy", "[limits]\nin_al = 3\n", "in_al"),
        ("--policy", "limit = 3\n", "limit"),
        ("--policy", 'order = "lifo"\n', "order"),
        ("--policy", "[limits]\nin_all = -1\n", "limits.in_all"),
        ("--policy", "order = \n", "neither TOML nor JSON"),
        ("--prices", "[[offers]]\nprovider = 'local'\n", "price_micro_usd_per_hour"),
        ("--prices", "[[offers]]\nprovider = 'a'\nprice_micro_usd_per_hour = 1\nregion = 'x'\n", "region"),
    ],
    ids=["key", "table", "word", "number", "syntax", "missing", "offer"],
)
def test_a_wrong_file_is_refused_by_name_before_anybody_is_asked(
    server: Server, run: Run, tmp_path: Path, option: str, text: str, where: str
) -> None:
    file = tmp_path / "given.toml"
    file.write_text(text, encoding="utf-8")
    ended = run("whatif", option, str(file))
    assert (ended.code, ended.out) == (2, "")
    assert where in ended.err
    assert server.asked == []


def test_the_catalogue_that_ships_is_a_price_list(server: Server, run: Run) -> None:
    server.on("POST /api/v1/whatif", as_json(a_report()))
    assert run("whatif", "--prices", str(ROOT / "services" / "billing" / "catalogue.json")).code == 0
    offers = json.loads(server.asked[0].body)["prices"]["offers"]
    assert [offer["provider"] for offer in offers] == ["local", "worker"]


def test_a_file_that_is_not_there_is_an_error(run: Run, tmp_path: Path) -> None:
    assert run("whatif", "--policy", str(tmp_path / "none.toml")).code == 2


def test_a_refusal_of_the_server_is_shown(server: Server, run: Run) -> None:
    errors = [{"field": "at", "message": "'x' is neither a position nor a time", "advice": "Use 1234."}]
    server.on("GET /api/v1/queue", a_problem("validation_error", "at: no", 400, errors=errors))
    ended = run("queue", "--at", "x")
    assert ended.code == 1
    assert "neither a position nor a time" in ended.err
