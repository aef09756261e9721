"""Jobs on the command line: what is printed where, which job is meant, how it ends."""

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Answer, Run, Server, a_job, a_problem, a_stream, as_json

ONE = "01a20118-37ae-7469-8b47-45a866170181"
TWO = "01a20118-4444-7469-8b47-45a866170182"
OTHER = "01b99999-0000-7000-8000-000000000000"


def test_ps_json_is_all_there_is_on_stdout(server: Server, run: Run) -> None:
    server.jobs(a_job(ONE), a_job(TWO, "queued"))
    ended = run("ps", "--json", "--status", "running")
    assert ended.code == 0
    assert [job["job_id"] for job in ended.json()["jobs"]] == [ONE, TWO]
    assert server.asked[0].query == {"limit": "50", "status": "running"}


def test_ps_in_a_pipe_is_tab_separated_with_whole_ids_and_the_reason(server: Server, run: Run) -> None:
    wait = {"reason": "global_limit", "detail": "all 5 slots\tare held"}
    server.jobs(a_job(ONE, "queued", metadata={"wait": wait, "tracker_run_name": "digits"}, cost_usd=0.001234))
    (line,) = run("ps").out.splitlines()
    assert line.split("\t") == [
        ONE,
        "queued",
        "digits",
        "local",
        "$0.001234",
        "2026-11-22T01:02:03.000004+00:00",
        "all 5 slots are held",
    ]


@pytest.mark.parametrize("given", ["01b", OTHER[:13], OTHER, OTHER.upper()])
def test_the_beginning_of_an_id_is_enough(server: Server, run: Run, given: str) -> None:
    server.jobs(a_job(ONE), a_job(TWO), a_job(OTHER))
    server.on(f"POST /api/cloud/jobs/{OTHER}/cancel", as_json({"success": True, "job_id": OTHER}))
    assert run("cancel", given, "--json").json()["job_id"] == OTHER


def test_an_ambiguous_beginning_names_the_candidates(server: Server, run: Run) -> None:
    server.jobs(a_job(ONE), a_job(TWO), a_job(OTHER))
    ended = run("cancel", "01a2")
    assert (ended.code, ended.out) == (2, "")
    assert ONE in ended.err
    assert TWO in ended.err
    assert OTHER not in ended.err


@pytest.mark.parametrize("given", ["0f", "../../etc", "%2e"])
def test_an_unknown_beginning_ends_with_an_error(server: Server, run: Run, given: str) -> None:
    server.jobs(a_job(ONE))
    assert run("describe", given).code == 1


def test_a_problem_says_what_where_and_what_to_do(server: Server, run: Run, tmp_path: Path) -> None:
    errors = [{"field": "--max_train_steps", "code": "range", "message": "must be at least 1", "advice": "Use 1000."}]
    server.on("POST /api/cloud/jobs/submit", a_problem("invalid_config", "1 problem", 400, errors=errors))
    body = tmp_path / "body.json"
    body.write_text('{"config": {}, "dataloader_config": []}', encoding="utf-8")
    ended = run("submit", str(body), "--json")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.splitlines() == [
        "error: Title of invalid_config: 1 problem",
        "  --max_train_steps: must be at least 1",
        "    Use 1000.",
    ]


def test_nobody_there_is_an_error_that_says_how_to_start(run: Run) -> None:
    ended = run("--url", "http://127.0.0.1:1", "ps")
    assert (ended.code, ended.out) == (1, "")
    assert "tunewright up" in ended.err


def test_text_from_the_server_cannot_steer_the_terminal(server: Server, run: Run) -> None:
    server.on(f"POST /api/cloud/jobs/{ONE}/cancel", a_problem("invalid_job_state", "\x1b]0;owned\x07[bold]x", 409))
    ended = run("cancel", ONE)
    assert ended.code == 1
    assert "\x1b" not in ended.err
    assert "\x07" not in ended.err
    assert "[bold]x" in ended.err


def test_usage_errors_end_with_two(run: Run) -> None:
    for arguments in (["nosuch"], ["ps", "--bogus"], ["describe"], ["submit"], ["ps", "--limit", "many"]):
        ended = run(*arguments)
        assert (ended.code, ended.out) == (2, ""), arguments
        assert ended.err.startswith("error: "), arguments


def test_submit_sends_one_key_however_often_it_has_to_ask(server: Server, run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"--max_train_steps": 5}', encoding="utf-8")
    (tmp_path / "loader.json").write_text('[{"id": "pictures"}]', encoding="utf-8")
    away = a_problem("service_unavailable", "no scheduler is running", 503)
    accepted = as_json({"success": True, "job_id": ONE, "status": "pending", "idempotent_hit": False})
    server.on("POST /api/cloud/jobs/submit", away, Answer(cut_after=0), accepted)
    ended = run(
        "submit", str(tmp_path / "config.json"), "-d", str(tmp_path / "loader.json"), "--name", "digits",
        "--provider", "local", "--priority", "high",
    )  # fmt: skip
    assert (ended.code, ended.out) == (0, f"{ONE}\n")
    sent = server.requests("POST /api/cloud/jobs/submit")
    assert len(sent) == 3
    assert len({asked.headers["Idempotency-Key"] for asked in sent}) == 1
    assert sent[0].query == {"provider": "local"}
    assert json.loads(sent[0].body) == {
        "config": {"--max_train_steps": 5},
        "dataloader_config": [{"id": "pictures"}],
        "tracker_run_name": "digits",
        "priority": "high",
    }


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 100), ("cancelled", 103)])
def test_submit_wait_ends_with_the_jobs_result(server: Server, run: Run, status: str, code: int) -> None:
    server.on("POST /api/cloud/jobs/submit", as_json({"success": True, "job_id": ONE, "status": "pending"}))
    answers = [as_json({"job": a_job(ONE, word)}) for word in ("pending", "running", status)]
    server.on(f"GET /api/cloud/jobs/{ONE}", *answers)
    ended = run("submit", "--config-name", "flux", "--wait", "--json")
    assert (ended.code, ended.json()["status"]) == (code, status)


def test_submit_follow_json_keeps_log_lines_off_stdout(server: Server, run: Run) -> None:
    server.on("POST /api/cloud/jobs/submit", as_json({"success": True, "job_id": ONE, "status": "pending"}))
    server.on(
        f"GET /api/cloud/jobs/{ONE}/logs/stream",
        a_stream("id: 1\ndata: step 1", "event: done\ndata: completed"),
    )
    server.on(f"GET /api/cloud/jobs/{ONE}", as_json({"job": a_job(ONE, "completed")}))
    ended = run("submit", "--config-name", "flux", "--follow", "--json")
    assert (ended.code, ended.json()["status"]) == (0, "completed")
    assert "step 1" in ended.err


def test_the_url_of_the_running_embedded_mode_is_found_in_its_data_directory(
    server: Server, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNEWRIGHT_URL")
    (tmp_path / "data" / "run").mkdir(parents=True)
    (tmp_path / "data" / "run" / "state.json").write_text(json.dumps({"gateway_url": server.url}), encoding="utf-8")
    server.jobs(a_job(ONE))
    assert run("--data-dir", str(tmp_path / "data"), "ps").out.startswith(ONE)
    assert run("ps", "--data-dir", str(tmp_path / "data")).out.startswith(ONE)


@pytest.mark.parametrize("command", ["verify", "up"])
def test_a_password_on_the_command_line_is_refused(run: Run, command: str) -> None:
    ended = run(command, "--database-url", "postgresql://me:hunter2@127.0.0.1:1/x")
    assert ended.code == 2
    assert "TUNEWRIGHT_DATABASE_URL" in ended.err
    assert "hunter2" not in ended.err


def test_verify_without_a_log_says_where_it_looked(run: Run, tmp_path: Path) -> None:
    ended = run("verify", "--json")
    assert (ended.code, ended.out) == (1, "")
    assert str(tmp_path / "no-data") in ended.err


def test_the_api_key_comes_from_the_environment(server: Server, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_API_KEY", "stk_secret")
    server.jobs()
    assert run("ps").code == 0
    assert server.asked[0].headers["X-API-Key"] == "stk_secret"


def test_a_failed_job_shows_its_kind_of_failure_and_a_retried_one_why(server: Server, run: Run) -> None:
    failure = {"kind": "out_of_memory", "message": "no room", "advice": "take less"}
    failed = a_job(ONE, "failed", error_message="no room", metadata={"failure": failure})
    server.on("GET /api/cloud/jobs", as_json({"jobs": [failed], "total": 1}))
    assert "out_of_memory: no room" in run("ps").out
    attempt = {"number": 1, "state": "failed", "provider": "local", "failure": failure, "gpu_faults": ["ecc of GPU 0"]}
    again = a_job(ONE, "queued", metadata={"failure": failure, "attempts": [attempt]}, queue_position=1)
    server.on(f"GET /api/v1/jobs/{ONE}", as_json({"job": again, "queue_position": 1}))
    described = run("describe", ONE).out
    assert "last failure" in described
    assert "out_of_memory: no room" in described
    assert "take less" in described


@pytest.mark.parametrize(("command", "name"), [("checkpoint", "checkpoint_now"), ("sample", "sample_now")])
def test_a_running_trainer_is_asked_to_save_or_to_show(server: Server, run: Run, command: str, name: str) -> None:
    answer = {"job_id": ONE, "attempt_id": TWO, "command_id": OTHER, "name": name}
    server.on(f"POST /api/v1/jobs/{ONE}/commands", as_json(answer))
    ended = run(command, ONE, "--json")
    assert (ended.code, ended.json()) == (0, answer)
    assert json.loads(server.asked[-1].body) == {"name": name}
