"""The first road: what one real fine-tune leaves behind."""

from datetime import datetime
from typing import Any

import pytest

from tests.acceptance.conftest import Road
from tests.support.system import PRICE_MICRO_USD_PER_HOUR, System

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def _postings(events: list[dict[str, Any]]) -> list[int]:
    return [line["amount_micro_usd"] for event in events for line in event["data"].get("postings", [])]


def test_demo_job_completes_and_delivers_its_lora(system: System, road: Road) -> None:
    assert road.job["status"] == "completed", road.job
    listed = system.http.get(f"/api/v1/jobs/{road.job_id}/artifacts").json()["artifacts"]
    assert "pytorch_lora_weights.safetensors" in [item["name"] for item in listed]
    assert road.job["output_url"]


def test_events_tell_the_whole_road_in_order(road: Road) -> None:
    told = [event["type"] for event in road.events]
    milestones = [
        "job.submitted.v1",
        "job.queued.v1",
        "job.dispatched.v1",
        "attempt.requested.v1",
        "attempt.start_intended.v1",
        "attempt.accepted.v1",
        "attempt.started.v1",
        "attempt.succeeded.v1",
        "job.completed.v1",
    ]
    assert [type_ for type_ in told if type_ in milestones] == milestones
    positions = [event["global_position"] for event in road.events]
    assert positions == sorted(set(positions))


def test_loss_of_the_demo_job_falls(system: System, road: Road) -> None:
    losses = [line["loss"] for line in system.metrics(road.job_id)]
    assert len(losses) >= 20
    assert sum(losses[-10:]) / 10 < 0.6 * sum(losses[:3]) / 3


def test_lora_loads_in_diffusers_and_brings_renders_closer_to_the_pictures(quality: dict[str, Any]) -> None:
    assert quality["colour_distance_with"] < 0.5 * quality["colour_distance_without"]
    assert quality["digit_accuracy_with"] >= 0.6


def test_cost_is_the_metered_seconds_at_the_bound_price_captured_once(road: Road) -> None:
    (succeeded,) = road.of_type("attempt.succeeded.v1")
    (captured,) = road.of_type("account.funds_captured.v1")
    seconds = succeeded["data"]["billed_seconds"]
    assert seconds > 0
    assert captured["data"]["amount_micro_usd"] == seconds * PRICE_MICRO_USD_PER_HOUR // 3600
    assert road.job["cost_usd"] == pytest.approx(captured["data"]["amount_micro_usd"] / 1e6)


def test_every_entry_of_the_ledger_sums_to_zero(road: Road) -> None:
    entries = [event for event in road.events if event["data"].get("postings")]
    assert entries
    for entry in entries:
        assert sum(_postings([entry])) == 0


def test_state_at_a_past_position_equals_the_state_shown_then(system: System, road: Road) -> None:
    assert len(road.seen) >= 5
    for position, view in road.seen.items():
        then = system.http.get(f"/api/v1/jobs/{road.job_id}", params={"at": str(position)}).raise_for_status().json()
        assert _without_clock(then["job"]) == _without_clock(view), position


def test_state_at_a_past_moment_is_the_fold_up_to_then(system: System, road: Road) -> None:
    (started,) = road.of_type("attempt.started.v1")
    moment = started["recorded_at"]
    then = system.http.get(f"/api/v1/jobs/{road.job_id}", params={"at": moment}).raise_for_status().json()["job"]
    assert then["position"] == started["global_position"]
    assert datetime.fromisoformat(moment).tzinfo is not None


def _without_clock(view: dict[str, Any]) -> dict[str, Any]:
    """A view less what is computed from the present moment."""
    return {name: value for name, value in view.items() if name not in {"cost_usd", "duration_seconds"}}


def test_logs_are_the_trainers_own_lines_once_and_in_order(system: System, road: Road) -> None:
    spooled = [line for line in system.spooled_lines(road.attempt_id) if line["type"] == "log"]
    expected = [f"{line['ts']} [{line['data']['level']}] {line['data']['message']}" for line in spooled]
    shown = system.http.get(f"/api/cloud/jobs/{road.job_id}/logs").json()["logs"].splitlines()
    assert expected
    assert [line for line in shown if line in set(expected)] == expected


def test_verify_is_clean_after_the_road(system: System, road: Road) -> None:
    assert road.events
    done = system.tunewright("verify", "--json")
    assert done.returncode == 0, done.stdout + done.stderr


def test_rebuild_gives_byte_equal_read_models(system: System, road: Road) -> None:
    assert road.events
    report = system.http.post("/api/v1/admin/rebuild", timeout=300).raise_for_status().json()
    projections = [item for service in report["services"].values() for item in service["projections"]]
    assert projections
    assert [item["name"] for item in projections if not item["equal"]] == []
