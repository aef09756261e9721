"""`/api/training`: a job's numbers and predictions as a trainer reported them, and what failed when a GPU did."""

from uuid import uuid4

from tests.integration.gateway.conftest import Site

PREDICTION = {
    "epoch": 1,
    "step": 100,
    "sample_id": "sample_1",
    "prompt": "What is AI?",
    "generated": "AI is a field of computer science...",
    "reference": "A field.",
    "bleu_score": 0.45,
    "rouge_score": 0.52,
}


async def test_predictions_are_kept_apart_from_the_metrics_and_read_page_by_page(site: Site) -> None:
    trainer = await site.running()
    second = {**PREDICTION, "sample_id": "sample_2"}
    metrics = {"step": 100, "epoch": 1, "loss": 1.234, "lr": 5e-5}
    await trainer.report([("prediction", PREDICTION), ("metrics", metrics), ("prediction", second)])
    path = f"/api/training/predictions/{trainer.job_id}"
    first = (await site.http.get(path, params={"limit": 1})).json()
    assert [record["sample_id"] for record in first["predictions"]] == ["sample_1"]
    told = {name: value for name, value in first["predictions"][0].items() if name in {"job_id", *PREDICTION}}
    assert told == {"job_id": str(trainer.job_id), **PREDICTION}
    rest = (await site.http.get(path, params={"after": first["cursor"]})).json()
    assert [record["sample_id"] for record in rest["predictions"]] == ["sample_2"]
    end = (await site.http.get(path, params={"after": rest["cursor"]})).json()
    assert (end["predictions"], end["cursor"]) == ([], rest["cursor"])
    numbers = (await site.http.get(f"/api/training/metrics/{trainer.job_id}")).json()["metrics"]
    assert [(record["step"], record["loss"], record["learning_rate"]) for record in numbers] == [(100, 1.234, 5e-5)]
    assert numbers[0]["job_id"] == str(trainer.job_id)


async def test_a_job_that_nobody_knows_has_no_numbers(site: Site) -> None:
    for kind in ("metrics", "predictions"):
        for job_id in (uuid4(), "job_abc123"):
            answer = await site.http.get(f"/api/training/{kind}/{job_id}")
            assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
    trainer = await site.running()
    none_yet = await site.http.get(f"/api/training/predictions/{trainer.job_id}")
    assert none_yet.json() == {"job_id": str(trainer.job_id), "predictions": [], "cursor": 0}


async def test_a_gpu_fault_is_recorded_shown_and_tried_again_elsewhere(site: Site) -> None:
    trainer = await site.running()
    fault = {"kind": "ecc", "gpu": "0", "detail": "1 new uncorrectable memory errors", "step": 7}
    failed = {"kind": "gpu_fault", "message": "GPU 0: ecc", "advice": "have it checked"}
    answer = await trainer.report([("gpu_fault", fault), ("failed", failed)])
    assert answer.status_code == 200
    job = await site.until_status(trainer.job_id, "queued")
    assert job["metadata"]["failure"]["kind"] == "gpu_fault"
    assert job["metadata"]["queue_reason"].startswith("retry after gpu_fault: attempt 2 of")
    [attempt] = job["metadata"]["attempts"]
    assert attempt["gpu_faults"] == ["ecc of GPU 0: 1 new uncorrectable memory errors"]
    assert attempt["failure"] == failed
    events = (await site.http.get(f"/api/v1/jobs/{trainer.job_id}/events")).json()["events"]
    [recorded] = [event for event in events if event["type"] == "attempt.gpu_fault_reported.v1"]
    assert (recorded["data"]["fault"], recorded["data"]["step"]) == ("ecc", 7)
    logs = (await site.http.get(f"/api/cloud/jobs/{trainer.job_id}/logs")).json()["logs"]
    assert "[error] GPU 0 is faulty: ecc: 1 new uncorrectable memory errors" in logs


async def test_a_wish_for_a_checkpoint_rides_back_with_the_next_report_and_is_in_the_log(site: Site) -> None:
    trainer = await site.running()
    path = f"/api/v1/jobs/{trainer.job_id}/commands"
    asked = (await site.http.post(path, json={"name": "checkpoint_now"})).json()
    assert (asked["attempt_id"], asked["name"]) == (str(trainer.attempt_id), "checkpoint_now")
    told = (await trainer.log("training goes on")).json()["commands"]
    assert told == [{"id": asked["command_id"], "name": "checkpoint_now"}]
    again = (await site.http.post(path, json={"name": "checkpoint_now"})).json()
    assert again["command_id"] != asked["command_id"]
    answer = {"id": asked["command_id"], "name": "checkpoint_now", "outcome": "done", "step": 7}
    told = (await trainer.report([("command", answer)])).json()["commands"]
    assert told == [{"id": again["command_id"], "name": "checkpoint_now"}]
    logs = (await site.http.get(f"/api/cloud/jobs/{trainer.job_id}/logs")).json()["logs"]
    assert "[info] checkpoint_now as asked: done" in logs
    events = (await site.http.get(f"/api/v1/jobs/{trainer.job_id}/events")).json()["events"]
    assert [event["meta"]["actor"] for event in events if event["type"] == "attempt.command_asked.v1"] == [
        "user:local",
        "user:local",
    ]


async def test_nobody_is_asked_where_no_trainer_runs_nor_for_what_none_can_do(site: Site) -> None:
    job_id = await site.submit()
    path = f"/api/v1/jobs/{job_id}/commands"
    early = await site.http.post(path, json={"name": "sample_now"})
    assert (early.status_code, early.json()["code"]) == (409, "invalid_job_state")
    strange = await site.http.post(path, json={"name": "make_tea"})
    assert strange.status_code in {400, 422}
    unknown = await site.http.post(f"/api/v1/jobs/{uuid4()}/commands", json={"name": "sample_now"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "job_not_found")
