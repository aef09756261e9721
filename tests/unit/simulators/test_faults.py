"""The faults that all simulators share do what their names say, to the calls they are meant for."""

import threading
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import httpx
import pytest

from tests.simulators.faults import Bill, Fault, Simulator
from tests.simulators.loopback import Answer, Call

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)


class Counter(Simulator):
    """Counts what was started."""

    started = 0

    def route(self, call: Call) -> Answer:
        if call.method == "POST":
            self.started += 1
        return Answer(200, {"started": self.started})


def post(counter: Counter, timeout_s: float = 5) -> httpx.Response:
    return httpx.post(counter.url, timeout=timeout_s, trust_env=False)


@pytest.mark.parametrize(
    ("fault", "status", "done"),
    [
        ("429", 429, False),
        ("429 with Retry-After", 429, False),
        ("401", 401, False),
        ("402", 402, False),
        ("403", 403, False),
        ("500 before", 500, False),
        ("500 after", 500, True),
        ("html", 200, False),
        ("html 502", 502, False),
        ("html after", 502, True),
    ],
)
def test_an_answer_that_is_a_fault_has_its_status_and_is_done_or_not(fault: Fault, status: int, *, done: bool) -> None:
    with Counter() as counter:
        counter.next_.append(fault)
        answer = post(counter)
        assert answer.status_code == status
        assert ("html" in fault) == answer.text.startswith("<!DOCTYPE html>")
        assert answer.headers.get("retry-after") == ("1" if "Retry-After" in fault else None)
        assert counter.started == done
        assert post(counter).json() == {"started": 1 + done}


@pytest.mark.parametrize(
    ("fault", "error", "done"),
    [
        ("reset", httpx.ReadError, True),
        ("reset before", httpx.ReadError, False),
        ("lost reply", httpx.RemoteProtocolError, True),
        ("hang", httpx.ReadTimeout, False),
        ("hang after", httpx.ReadTimeout, True),
    ],
)
def test_an_answer_that_never_comes_is_done_or_not(fault: Fault, error: type[Exception], *, done: bool) -> None:
    with Counter() as counter:
        counter.next_.append(fault)
        with pytest.raises(error):
            post(counter, 0.2)
        assert counter.started == done


@pytest.mark.parametrize(("fault", "status"), [("hang", 504), ("hang after", 200)])
def test_a_held_answer_goes_when_it_is_released(fault: Fault, status: int) -> None:
    with Counter() as counter:
        counter.next_.append(fault)
        got: list[int] = []
        asking = threading.Thread(target=lambda: got.append(post(counter, 30).status_code))
        asking.start()
        counter.wait_until(lambda: len(counter.happened) == 1, "the call has come")
        counter.release()
        asking.join(10)
        assert got == [status]


def test_faults_of_creates_leave_reads_alone() -> None:
    with Counter() as counter:
        counter.always_creates = "500 before"
        assert httpx.get(counter.url, trust_env=False).status_code == 200
        assert post(counter).status_code == 500
        counter.next_creates.append("429")
        assert httpx.get(counter.url, trust_env=False).status_code == 200
        assert [post(counter).status_code for _ in range(2)] == [429, 500]


def test_faults_stay_or_are_chosen_by_call() -> None:
    with Counter() as counter:
        counter.choose = lambda call: "500 before" if call.path == "/bad" else None
        assert httpx.get(f"{counter.url}/bad", trust_env=False).status_code == 500
        assert httpx.get(counter.url, trust_env=False).status_code == 200
        counter.always = "429"
        assert [httpx.get(counter.url, trust_env=False).status_code for _ in range(2)] == [429, 429]
        assert [fault for _, fault in counter.happened] == ["500 before", "429", "429"]


def test_the_date_header_is_by_the_vendors_clock() -> None:
    with Counter(lambda: NOON) as counter:
        counter.skew = timedelta(minutes=7)
        date = httpx.get(counter.url, trust_env=False).headers["date"]
        assert parsedate_to_datetime(date) == counter.shown(NOON) == NOON + timedelta(minutes=7)


def test_a_bill_counts_seconds_and_money_until_the_first_end() -> None:
    now = NOON
    bill = Bill(lambda: now)
    bill.start("a", "tw-a", 3_600_000)
    bill.start("b", "tw-b", 7_200_000)
    now += timedelta(seconds=10)
    bill.end("a")
    bill.reprice("b", 360_000)
    now += timedelta(seconds=10)
    bill.end("a")
    assert [line.ref for line in bill.open()] == ["b"]
    assert bill.seconds() == 30
    assert bill.micro_usd() == 10 * 1000 + 10 * 2000 + 10 * 100
    assert [line.ref for line in bill.of("tw-b")] == ["b"]
