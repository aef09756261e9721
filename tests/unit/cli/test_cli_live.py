"""Following logs and events over links that drop: nothing is lost, nothing comes twice, the end is the job's."""

import json
from typing import Any

import pytest

from tests.unit.cli.conftest import Answer, Asked, Run, Server, a_problem, a_stream, as_json

JOB = "01a20118-37ae-7469-8b47-45a866170181"
STREAM = f"GET /api/cloud/jobs/{JOB}/logs/stream"


def an_event(position: int, job_id: str = JOB) -> dict[str, Any]:
    return {
        "global_position": position,
        "recorded_at": "2026-11-22T01:02:03+00:00",
        "type": "job.queued.v1",
        "stream": f"job-{job_id}",
        "correlation_id": job_id,
        "data": {"reason": "first_time"},
    }


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 100), ("cancelled", 103)])
def test_followed_log_ends_with_the_jobs_result(server: Server, run: Run, status: str, code: int) -> None:
    server.on(STREAM, a_stream("id: 1\ndata: one", ": still here", "id: 2\ndata: two", f"event: done\ndata: {status}"))
    ended = run("logs", JOB, "-f")
    assert (ended.code, ended.out) == (code, "one\ntwo\n")


def test_a_dropped_log_stream_goes_on_after_the_last_line(server: Server, run: Run) -> None:
    server.on(
        STREAM,
        a_stream("id: 1\ndata: one", "id: 2\ndata: two", cut=True),
        a_problem("service_unavailable", "the gateway restarts", 503),
        Answer(cut_after=0),
        a_stream("id: 3\ndata: three", "event: done\ndata: completed"),
    )
    ended = run("logs", JOB, "-f")
    assert (ended.code, ended.out) == (0, "one\ntwo\nthree\n")
    assert [asked.headers.get("Last-Event-ID") for asked in server.asked] == [None, "2", "2", "2"]


def test_a_gateway_that_stays_away_ends_following_with_an_error(server: Server, run: Run) -> None:
    server.on(STREAM, a_stream("id: 1\ndata: one", cut=True), Answer(cut_after=0))
    ended = run("logs", JOB, "-f")
    assert (ended.code, ended.out) == (1, "one\n")
    assert "stays away" in ended.err


def test_followed_log_as_json_is_one_document_a_line(server: Server, run: Run) -> None:
    server.on(STREAM, a_stream("id: 7\ndata: a\ndata: b", "event: done\ndata: completed"))
    assert [json.loads(line) for line in run("logs", JOB, "-f", "--json").out.splitlines()] == [
        {"cursor": "7", "line": "a\nb"}
    ]


def test_tail_prints_the_last_lines(server: Server, run: Run) -> None:
    server.on(f"GET /api/cloud/jobs/{JOB}/logs", as_json({"job_id": JOB, "logs": "one\ntwo\nthree\n"}))
    assert run("logs", JOB, "--tail", "2").out == "two\nthree\n"
    assert run("logs", JOB, "-n", "0").out == ""


def test_events_of_a_job_after_a_position(server: Server, run: Run) -> None:
    server.on(f"GET /api/v1/jobs/{JOB}/events", as_json({"events": [an_event(3), an_event(5), an_event(9)]}))
    found = run("events", JOB, "--after", "3", "--json").json()["events"]
    assert [event["global_position"] for event in found] == [5, 9]


def test_watched_events_come_once_and_in_order_over_dropped_links(server: Server, run: Run) -> None:
    committed = [an_event(11), an_event(12, "00000000-0000-0000-0000-000000000001"), an_event(13), an_event(14)]

    def page(asked: Asked) -> Answer:
        after = int(asked.query["after"])
        known = 13 if len(server.requests("GET /api/events")) < 2 else 14
        news = [event for event in committed if after < event["global_position"] <= known]
        following = news[-1]["global_position"] if news else after
        return as_json({"events": news, "next": following})

    hello = 'event: connection\ndata: {"type": "connection", "position": 10}'
    server.on(
        "GET /api/events",
        a_stream(hello, "id: 11\nevent: cloud_job_update\ndata: {}", cut=True),
        a_stream(hello, "id: 14\nevent: cloud_job_update\ndata: {}"),
    )
    server.on("GET /api/v1/events", page)
    ended = run("events", JOB, "-w", "--json", "--limit", "3")
    assert [json.loads(line)["global_position"] for line in ended.out.splitlines()] == [11, 13, 14]
