"""Whatever is written about a run names the lease that was taken last."""

from shared.contracts.attempt import AttemptAccepted, AttemptLeased, AttemptStartIntended
from tests.fault.fencing import stale_writes
from tests.unit.fault_invariants.histories import Line, an_id, history, moment

JOB = an_id("job")
STREAM = f"attempt-{an_id('attempt')}"


def leased(epoch: int) -> Line:
    return JOB, STREAM, AttemptLeased(epoch=epoch, owner="bridge", leased_at=moment(epoch))


def intended(epoch: int) -> Line:
    return JOB, STREAM, AttemptStartIntended(epoch=epoch, token_sha256="x", intended_at=moment(epoch))


def accepted(epoch: int) -> Line:
    return JOB, STREAM, AttemptAccepted(epoch=epoch, provider_ref="run", accepted_at=moment(epoch))


def test_writes_under_the_newest_lease_are_in_order() -> None:
    assert stale_writes(history(leased(1), intended(1), leased(2), intended(2), accepted(2))) == []


def test_a_write_under_a_lease_that_another_has_overtaken_is_named() -> None:
    [found] = stale_writes(history(leased(1), leased(2), intended(1)))
    assert "attempt.start_intended.v1 at 3 is of epoch 1, while 2 was leased last" in found
    assert stale_writes(history(leased(1), intended(1), leased(2), accepted(1))) != []


def test_a_write_without_a_lease_and_a_lease_that_goes_back_are_named() -> None:
    assert stale_writes(history(intended(1))) != []
    assert stale_writes(history(leased(2), leased(2))) != []
