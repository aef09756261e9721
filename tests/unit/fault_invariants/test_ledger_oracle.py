"""The oracle names every way in which a ledger can be wrong; it is not billing's own arithmetic."""

from tests.fault.ledger_oracle import ledger
from tests.unit.fault_invariants.histories import Job, Line, facts, moved

A = Job("a")
BEGUN = [A.submitted(), A.reserved(10_000), A.funded(10_000), A.dispatched(), A.requested(), A.intended()]
RAN = [*BEGUN, A.hello(at_s=10), A.run_failed(at_s=12.2, billed=3)]
"""Three seconds begun at 1000 micro-dollars a second."""


def _found(*lines: Line) -> str:
    found = ledger(facts(*lines))
    assert found
    return "\n".join(found)


def test_a_right_ledger_passes() -> None:
    assert ledger(facts(*RAN, A.metered(1, 3, 3000), A.failed(), A.captured(3000), A.released(7000))) == []


def test_a_job_that_cost_more_than_was_reserved_passes() -> None:
    lines = [*BEGUN, A.hello(at_s=0), A.run_failed(at_s=12, billed=12), A.metered(1, 12, 12_000), A.failed()]
    postings = [*moved(10_000, "reserved", "spent"), *moved(2000, "available", "spent")]
    assert ledger(facts(*lines, A.captured(12_000, postings))) == []


def test_an_attempt_that_was_cancelled_before_it_was_requested_costs_nothing() -> None:
    lines = [A.submitted(), A.reserved(10), A.dispatched(), A.attempt_cancel_requested(), A.attempt_cancelled()]
    assert ledger(facts(*lines, A.cancelled(), A.captured(0, []), A.released(10))) == []


def test_usage_that_was_not_metered_is_named() -> None:
    assert "ended and was not metered" in _found(*RAN, A.failed(), A.captured(0, []), A.released(10_000))


def test_seconds_that_differ_are_named() -> None:
    lines = [*RAN, A.metered(1, 2, 2000), A.failed(), A.captured(2000), A.released(8000)]
    assert "3 s, 3000" in _found(*lines)


def test_usage_metered_twice_is_named() -> None:
    lines = [*RAN, A.metered(1, 3, 3000), A.metered(1, 3, 3000), A.failed(), A.captured(3000), A.released(7000)]
    assert "was metered again" in _found(*lines)


def test_usage_of_an_attempt_that_still_runs_is_named() -> None:
    assert "has not ended" in _found(*BEGUN, A.metered(1, 3, 3000))


def test_a_second_capture_is_named() -> None:
    lines = [*RAN, A.metered(1, 3, 3000), A.failed(), A.captured(3000), A.captured(3000), A.released(7000)]
    assert "was charged 2 times" in _found(*lines)


def test_a_capture_that_never_came_is_named() -> None:
    assert "was charged 0 times" in _found(*RAN, A.metered(1, 3, 3000), A.failed())


def test_a_capture_before_the_end_is_named() -> None:
    assert "before it ended" in _found(*RAN, A.metered(1, 3, 3000), A.captured(3000))


def test_a_wrong_amount_charged_or_given_back_is_named() -> None:
    lines = [*RAN, A.metered(1, 3, 3000), A.failed()]
    assert "was charged 2000, not 3000" in _found(*lines, A.captured(2000), A.released(8000))
    assert "got 6000 back, not 7000" in _found(*lines, A.captured(3000), A.released(6000))


def test_postings_that_do_not_sum_to_zero_are_named() -> None:
    lines = [*RAN, A.metered(1, 3, 3000), A.failed(), A.captured(3000, moved(3000, "reserved", "spent")[1:])]
    assert "sum to 3000" in _found(*lines, A.released(7000))


def test_money_moved_from_the_wrong_place_is_named() -> None:
    lines = [*RAN, A.metered(1, 3, 3000), A.failed(), A.captured(3000, moved(3000, "available", "spent"))]
    assert "left balances" in _found(*lines, A.released(7000))


def test_a_reservation_that_the_job_was_told_otherwise_is_named() -> None:
    assert "was told of a reservation of 9" in _found(A.submitted(), A.reserved(10), A.funded(9))


def test_a_second_reservation_is_named() -> None:
    assert "reserved 2 times" in _found(A.submitted(), A.reserved(10), A.reserved(10))
