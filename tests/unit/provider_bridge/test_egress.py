"""The one way out: what is repeated, how long it waits, and what each kind of answer means."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import pytest
import stamina
from stamina.instrumentation import RetryDetails, get_on_retry_hooks, set_on_retry_hooks

from services.provider_bridge.outbound.egress import LONGEST_WAIT_S, Egress, NetworkSettings, VendorRefused
from services.provider_bridge.outbound.ports import CredentialRefused, NoFunds
from shared.problems import Unavailable
from tests.simulators.loopback import Answer, Call, Loopback

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)


class Vendor(Loopback):
    """Gives the answers of `answers` one after the other, then 200."""

    def __init__(self) -> None:
        super().__init__(self._answer, lambda: self.now)
        self.answers: list[Answer] = []
        self.now = NOW
        """What its Date header says."""

    def _answer(self, _call: Call) -> Answer:
        return self.answers.pop(0) if self.answers else Answer(200, {"ok": True})


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    with Vendor() as vendor:
        yield vendor


@pytest.fixture
async def egress(vendor: Vendor) -> AsyncIterator[Egress]:
    egress = Egress(vendor.url, NetworkSettings(timeout_s=5), lambda: NOW)
    yield egress
    await egress.close()


@pytest.fixture
def waits() -> Iterator[list[float]]:
    """How long each repeat is put off."""
    told: list[float] = []

    def note(details: RetryDetails) -> None:
        told.append(details.wait_for)

    before = get_on_retry_hooks()
    set_on_retry_hooks([note])
    yield told
    set_on_retry_hooks(before)


async def test_a_read_waits_as_long_as_the_vendor_asks_and_is_then_answered(
    vendor: Vendor, egress: Egress, waits: list[float]
) -> None:
    vendor.answers = [Answer(429, {}, headers={"Retry-After": "3"})]
    with stamina.set_testing(True, attempts=3, cap=True):
        answer = await egress.get("/")
    assert answer.json() == {"ok": True}
    assert len(vendor.calls) == 2
    vendor.answers = [Answer(429, {}, headers={"Retry-After": "1"})]
    await egress.get("/")
    assert len(vendor.calls) == 4
    assert len(waits) == 2


async def test_a_wait_that_is_too_long_is_told_and_not_waited_for(vendor: Vendor, egress: Egress) -> None:
    vendor.answers = [Answer(429, {}, headers={"Retry-After": str(int(LONGEST_WAIT_S) + 1)})]
    with pytest.raises(Unavailable) as told:
        await egress.get("/")
    assert told.value.retry_after_s == LONGEST_WAIT_S + 1
    assert len(vendor.calls) == 1


@pytest.mark.parametrize(("method", "tries"), [("GET", 3), ("PUT", 3), ("DELETE", 3), ("POST", 1)])
async def test_only_what_changes_nothing_when_repeated_is_repeated(
    vendor: Vendor, egress: Egress, method: str, tries: int
) -> None:
    vendor.answers = [Answer(503, {})] * 5
    with stamina.set_testing(True, attempts=3, cap=True), pytest.raises(Unavailable):
        await egress.call(method, "/")
    assert len(vendor.calls) == tries


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(401, {}), CredentialRefused),
        (Answer(403, {}), CredentialRefused),
        (Answer(402, {}), NoFunds),
        (Answer(422, {"detail": "name"}), VendorRefused),
        (Answer(302, {}, headers={"Location": "https://elsewhere.example"}), Unavailable),
    ],
)
async def test_each_refusal_is_what_it_says(vendor: Vendor, egress: Egress, answer: Answer, error: type) -> None:
    vendor.answers = [answer] * 3
    with stamina.set_testing(True, attempts=1), pytest.raises(error):
        await egress.call("POST", "/")
    assert len(vendor.calls) == 1


async def test_a_page_where_json_is_due_is_an_outage(vendor: Vendor, egress: Egress) -> None:
    vendor.answers = [Answer(200, body=b"<html>Sign in</html>")]
    with pytest.raises(Unavailable, match="JSON was due"):
        (await egress.call("POST", "/")).json()


async def test_moments_of_a_clock_that_is_minutes_off_are_corrected(vendor: Vendor, egress: Egress) -> None:
    vendor.now = NOW + timedelta(minutes=5)
    answer = await egress.get("/")
    assert answer.ours(NOW + timedelta(minutes=5)) == NOW
    vendor.now = NOW + timedelta(seconds=1)
    assert (await egress.get("/")).ours(NOW) == NOW
