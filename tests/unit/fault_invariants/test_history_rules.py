"""Each rule is fed a history that breaks it, and names what is broken; one that keeps it passes."""

import msgspec

from shared.contracts.subjects import BILLING_METERING
from tests.fault import rules
from tests.fault.invariants import check_history, unequal
from tests.fault.rules import Run
from tests.unit.fault_invariants.histories import Job, facts, history, moment

A, B, C = Job("a"), Job("b"), Job("c")


def test_a_whole_road_with_a_retry_and_a_cancel_breaks_nothing() -> None:
    lines = [
        *(A.submitted("k"), A.reserved(30_000), A.funded(30_000), A.queued(), A.dispatched()),
        *(A.requested(), A.intended(), A.hello(at_s=10), A.started(), A.run_failed(at_s=12.5, billed=3)),
        *(A.metered(1, 3, 3000), A.attempt_failed(), A.queued("retry"), A.dispatched(2), A.requested(2)),
        *(A.intended(2), A.hello(2, at_s=20), A.cancel_requested(), A.attempt_cancel_requested(2)),
        *(A.attempt_cancelled(2, at_s=21, billed=1), A.metered(2, 1, 1000), A.cancelled(), A.captured(4000)),
        A.released(26_000),
    ]
    assert check_history(history(*lines), must_end=[A.id]) == []


def test_a_missing_position_is_named() -> None:
    rows = history(A.submitted(), B.submitted(), C.submitted())
    assert rules.gapless(rows) == []
    [found] = rules.gapless([rows[0], rows[2]])
    assert "position 2 is missing" in found


def test_a_repeated_event_and_a_gap_in_a_stream_are_named() -> None:
    first, second = history(A.submitted(), A.queued())
    twice = [first, msgspec.structs.replace(second, event_id=first.event_id, stream_version=3)]
    found = rules.gapless(twice)
    assert any("goes from version 1 to 3" in one for one in found)
    assert any("stands in the log 2 times" in one for one in found)


def test_a_later_part_of_a_log_goes_on_where_the_check_before_ended() -> None:
    rows = history(A.submitted(), A.queued(), A.dispatched())
    assert rules.gapless(rows[1:], since=1) == []
    assert rules.gapless(rows[1:], since=0) != []


def test_a_job_that_goes_on_after_its_end_is_named() -> None:
    [found] = rules.one_end(facts(A.submitted(), A.failed(), A.queued()))
    assert "ended with job.failed.v1" in found


def test_a_second_end_is_named() -> None:
    assert rules.one_end(facts(A.submitted(), A.cancelled(), A.cancelled()))
    assert rules.one_end(facts(A.requested(), A.run_failed(), A.attempt_cancelled()))


def test_a_job_that_never_ends_is_named() -> None:
    assert rules.one_end(facts(A.submitted()), [A.id]) == [f"job-{A.id} has not ended"]


def test_a_dispatch_after_the_cancel_is_named() -> None:
    found = rules.cancelled_starts_nothing(facts(A.submitted(), A.queued(), A.cancelled(), A.dispatched()))
    assert len(found) == 1
    assert "after job.cancelled.v1" in found[0]


def test_a_start_after_the_attempts_cancel_is_named() -> None:
    found = rules.cancelled_starts_nothing(facts(A.requested(), A.attempt_cancel_requested(), A.intended()))
    assert "after attempt.cancel_requested.v1" in found[0]


def test_a_start_after_the_jobs_cancel_is_named() -> None:
    for cancel in (A.cancel_requested(), A.cancelled()):
        [found] = rules.cancelled_starts_nothing(facts(A.dispatched(), A.requested(), cancel, A.intended()))
        assert "was to be started at 4, after job.cancel" in found


def test_a_start_before_the_cancel_is_allowed() -> None:
    told = facts(A.dispatched(), A.requested(), A.intended(), A.cancel_requested(), A.attempt_cancel_requested())
    assert rules.cancelled_starts_nothing(told) == []


def test_two_live_attempts_of_one_job_are_named() -> None:
    [found] = rules.one_live_attempt(facts(A.dispatched(1), A.intended(1), A.dispatched(2), A.intended(2)))
    assert f"while attempt-{A.attempt_id(1)} lived" in found


def test_a_start_without_a_dispatch_is_named() -> None:
    [found] = rules.one_live_attempt(facts(A.submitted(), A.intended()))
    assert "was never dispatched to it" in found


def test_more_holders_than_slots_are_named() -> None:
    lines = [line for job in (A, B, C) for line in (job.submitted(), job.queued(), job.dispatched())]
    assert rules.slots_kept(facts(*lines), in_all=3, per_user=3) == []
    [of_all] = rules.slots_kept(facts(*lines), in_all=2, per_user=3)
    assert "3 jobs hold 2 slots" in of_all
    [of_user] = rules.slots_kept(facts(*lines), in_all=3, per_user=2)
    assert "3 jobs of local hold 2 slots" in of_user


def test_a_slot_given_back_is_free() -> None:
    lines = [
        A.submitted(),
        A.dispatched(),
        A.queued("retry"),
        B.submitted(),
        B.dispatched(),
        B.failed(),
        A.dispatched(2),
    ]
    assert rules.slots_kept(facts(*lines), in_all=1, per_user=1) == []


def test_two_jobs_under_one_key_are_named() -> None:
    [found] = rules.one_job_per_key(facts(A.submitted("k"), B.submitted("k")))
    assert "stands for 2 jobs" in found
    other = Job("d", user="somebody else")
    assert rules.one_job_per_key(facts(A.submitted("k"), other.submitted("k"), B.submitted(), C.submitted())) == []


def _a_run(number: int = 1, *, at_s: float = 5, alive: bool = False) -> Run:
    return Run(attempt_id=A.attempt_id(number), started_at=moment(at_s), alive=alive)


def test_a_machine_before_its_intent_is_named() -> None:
    told = facts(A.requested(), A.intended())
    assert rules.runs_owned(told, [_a_run()]) == []
    [found] = rules.runs_owned(told, [_a_run(at_s=1)])
    assert "nobody intended" in found


def test_a_machine_of_an_unknown_attempt_is_named() -> None:
    [found] = rules.runs_owned(facts(A.requested()), [_a_run(2)])
    assert "nobody intended" in found


def test_a_second_machine_is_named() -> None:
    [found] = rules.runs_owned(facts(A.intended()), [_a_run(), _a_run(at_s=6)])
    assert "was started 2 times" in found


def test_a_machine_that_outlives_a_confirmed_end_is_named() -> None:
    told = facts(A.intended(), A.attempt_cancelled())
    assert rules.runs_owned(told, [_a_run(alive=False)]) == []
    [found] = rules.runs_owned(told, [_a_run(alive=True)])
    assert "confirmed gone and lives" in found


def test_a_skipped_a_foreign_and_a_doubled_delivery_are_named() -> None:
    rows = history(A.submitted(), A.reserved(), A.failed())
    inbox = {rows[0].event_id: 1, rows[2].event_id: 3}
    assert rules.handled_once(BILLING_METERING, rows, inbox, 3) == []
    [skipped] = rules.handled_once(BILLING_METERING, rows, {rows[2].event_id: 3}, 3)
    assert "skipped position 1" in skipped
    [foreign] = rules.handled_once(BILLING_METERING, rows, {**inbox, rows[1].event_id: 2}, 3)
    assert "not in the log at position 2" in foreign


def test_a_durable_that_is_behind_is_named() -> None:
    rows = history(A.submitted(), A.failed())
    [found] = rules.handled_once(BILLING_METERING, rows, {rows[0].event_id: 1}, 1)
    assert "is at 1, the log at 2" in found


def test_a_read_model_that_differs_and_a_service_that_is_away_are_named() -> None:
    report = {
        "services": {
            "gateway": {"projections": [{"name": "jobs", "equal": False}]},
            "billing": {"error": "no answer"},
            "storage": {"projections": [{"name": "objects", "equal": True}]},
        }
    }
    assert unequal(report) == ["gateway.jobs is not what the log folds to", "billing did not rebuild: no answer"]
