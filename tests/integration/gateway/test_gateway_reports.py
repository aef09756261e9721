"""Trainers' reports: who may report, what is refused, and what rides back."""

from typing import Any
from uuid import uuid4

from tests.integration.gateway.conftest import Site, Trainer
from tests.support.waiting import eventually


async def stored(trainer: Trainer) -> list[dict[str, Any]]:
    answer = await trainer.site.http.get(f"/api/v1/jobs/{trainer.job_id}/reports")
    return answer.json()["lines"]


async def test_reports_are_stored_before_they_are_acknowledged(site: Site) -> None:
    trainer = await site.running()
    metrics = {"step": 1, "total_steps": 4, "loss": 0.5, "lr": 1e-4}
    answer = await trainer.report([("phase", {"phase": "training"}), ("metrics", metrics)])
    assert answer.json() == {"ack": 3, "commands": []}
    assert [line["seq"] for line in await stored(trainer)] == [1, 2, 3]
    shown = (await site.http.get(f"/api/v1/jobs/{trainer.job_id}/metrics")).json()["metrics"]
    assert [(point["step"], point["loss"]) for point in shown] == [(1, 0.5)]
    progress = (await site.http.get(f"/api/cloud/jobs/{trainer.job_id}/inline-progress")).json()
    assert (progress["stage"], progress["progress"], progress["step"]) == ("training", 25.0, 1)


async def test_resent_batch_is_acknowledged_and_stored_once(site: Site) -> None:
    trainer = await site.running()
    batch = trainer.lines([("log", {"level": "info", "message": "hello there"})])
    first, second = await trainer.send(batch), await trainer.send(batch)
    assert first.json() == second.json() == {"ack": 2, "commands": []}
    assert [line["seq"] for line in await stored(trainer)] == [1, 2]


async def test_token_that_is_not_the_attempts_is_refused(site: Site) -> None:
    trainer = await site.running()
    batch = trainer.lines([("log", {"message": "x"})])
    assert (await trainer.send(batch, token="wrong")).status_code == 401
    other = await site.running()
    refused = await trainer.send(batch, token=other.token)
    assert (refused.status_code, refused.json()["code"]) == (401, "invalid_token")
    path = f"/api/v1/attempts/{trainer.attempt_id}/events"
    missing = await site.http.post(path, content=batch)
    assert (missing.status_code, missing.json()["code"]) == (401, "missing_token")
    assert missing.headers["www-authenticate"] == "Bearer"
    nobody = await site.http.post(
        f"/api/v1/attempts/{uuid4()}/events", content=batch, headers={"Authorization": f"Bearer {trainer.token}"}
    )
    assert nobody.status_code == 401


async def test_batch_over_the_limits_is_refused_whole(site: Site) -> None:
    trainer = await site.running()
    many = await trainer.report([("heartbeat", {"step": 1})] * 257)
    assert (many.status_code, many.json()["code"]) == (413, "payload_too_large")
    trainer.seq = 1
    large = await trainer.report([("log", {"message": "x" * 600_000})])
    assert large.status_code == 413
    trainer.seq = 1
    huge = await trainer.report([("log", {"message": "x" * 2_000_000})])
    assert huge.status_code == 413
    assert [line["seq"] for line in await stored(trainer)] == [1]


async def test_line_that_cannot_be_read_is_named(site: Site) -> None:
    trainer = await site.running()
    answer = await trainer.send(trainer.lines([("log", {"message": "ok"})]) + b"{not json}\n")
    assert (answer.status_code, answer.json()["code"], answer.json()["line"]) == (400, "invalid_payload", 1)


async def test_cancel_rides_back_as_stop_and_the_ended_attempt_is_superseded(site: Site) -> None:
    trainer = await site.running()
    await site.http.post(f"/api/cloud/jobs/{trainer.job_id}/cancel")
    commands: list[dict[str, Any]] = []

    async def told_to_stop() -> bool:
        answer = await trainer.log("still here")
        if answer.status_code == 200:
            commands.extend(answer.json()["commands"])
        return bool(commands) or answer.status_code == 409

    await eventually(told_to_stop)
    await site.until_status(trainer.job_id, "cancelled")
    late = await trainer.log("after the end")
    assert (late.status_code, late.json()["code"]) == (409, "attempt_superseded")
    if commands:
        assert {(command["id"], command["name"]) for command in commands} == {
            (f"stop-{trainer.attempt_id}", "stop"),
        }


async def test_resent_last_word_is_acknowledged_after_the_end(site: Site) -> None:
    trainer = await site.running()
    batch = trainer.lines([("failed", {"kind": "bad_data", "message": "no picture", "advice": "add one"})])
    assert (await trainer.send(batch)).status_code == 200
    job = await site.until_status(trainer.job_id, "failed")
    assert job["error_message"].startswith("no picture")
    assert job["metadata"]["failure"]["advice"] == "add one"
    again = await trainer.send(batch)
    assert (again.status_code, again.json()["ack"]) == (200, 2)
    other = await trainer.log("something else")
    assert (other.status_code, other.json()["code"]) == (409, "attempt_superseded")


async def test_logs_show_what_the_trainer_said(site: Site) -> None:
    trainer = await site.running()
    await trainer.log("first line", "second\nwith a break")
    answer = (await site.http.get(f"/api/cloud/jobs/{trainer.job_id}/logs")).json()
    assert answer["job_id"] == str(trainer.job_id)
    assert "[info] first line\n" in answer["logs"]
    assert "second\nwith a break\n" in answer["logs"]
