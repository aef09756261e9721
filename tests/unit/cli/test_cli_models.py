"""`tunewright models`: the registry as people read it."""

from typing import Any

from tests.unit.cli.conftest import Run, Server, a_job, a_problem, as_json

JOB = "01a20118-37ae-7469-8b47-45a866170181"


def a_model(**changes: Any) -> dict[str, Any]:
    file = {"name": "lora.safetensors", "size_bytes": 2048, "sha256": "a" * 64}
    delivery = {"target": "hub:ann/cat", "what": "results", "status": "delivered", "url": "https://hub/ann/cat"}
    model = {
        "model_id": JOB, "job_id": JOB, "name": "my cat", "family": "flux", "kind": "lora", "base_model": "some/base",
        "config_hash": "c" * 64, "config_name": None, "steps": 12, "final_loss": 0.25, "files": [file], "samples": [],
        "missing": [], "deliveries": [delivery], "created_at": "2026-11-22T01:02:03.000004+00:00",
    }  # fmt: skip
    return {**model, **changes}


def test_models_are_listed_one_a_line(server: Server, run: Run) -> None:
    server.on("GET /api/v1/models", as_json({"models": [a_model()], "total": 3}))
    ended = run("models")
    assert ended.code == 0
    name, family, kind, base, steps, *_ = ended.out.rstrip("\n").split("\t")
    assert (name, family, kind, base, steps) == ("my cat", "flux", "lora", "some/base", "12")
    assert "2 more" in ended.err
    assert run("models", "list", "--json").json()["total"] == 3


def test_one_model_shows_its_files_and_where_it_was_delivered(server: Server, run: Run) -> None:
    failed = {"target": "s3:b", "what": "results", "status": "failed", "url": None, "message": "HTTP 403"}
    server.on("GET /api/v1/models/my%20cat", as_json(a_model(deliveries=[*a_model()["deliveries"], failed])))
    ended = run("models", "show", "my cat")
    assert ended.code == 0
    assert "a" * 64 in ended.out
    assert "results at https://hub/ann/cat; results not at s3:b: HTTP 403" in ended.out


def test_an_unknown_model_says_so(server: Server, run: Run) -> None:
    server.on("GET /api/v1/models/x", a_problem("model_not_found", "there is no model of that name or id", 404))
    ended = run("models", "show", "x")
    assert ended.code == 1
    assert "there is no model" in ended.err


def test_a_completed_job_with_a_delivery_problem_says_so(server: Server, run: Run) -> None:
    there = {"target": "hub:a/b", "what": "results", "status": "delivered", "url": "https://h/a/b"}
    metadata = {"deliveries": [there], "delivery_problems": ["results did not reach s3:c: no such bucket"]}
    job = a_job(JOB, "completed", metadata=metadata)
    server.on("GET /api/cloud/jobs", as_json({"jobs": [job], "total": 1}))
    assert "results did not reach s3:c: no such bucket" in run("ps").out
    server.on(f"GET /api/v1/jobs/{JOB}", as_json({"job": job}))
    told = run("describe", JOB).out
    assert "https://h/a/b" in told
    assert "no such bucket" in told
