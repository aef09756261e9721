# pyright: basic
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from receiver import TOKEN, Receiver

from shared.contracts.run import ReportLine, TrainerCommand
from trainer.control import Control
from trainer.patience import Patience
from trainer.report import spool as spool_module
from trainer.report.events import Redactor, Reporter
from trainer.report.gateway import Gateway, Token
from trainer.report.sender import Sender
from trainer.report.spool import Spool


class Station:
    """A spool, a reporter and a sender on one folder, as the attempt has them."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self.control = Control()
        self.token_file = folder / "token"
        self.token_file.parent.mkdir(parents=True, exist_ok=True)
        self.token_file.write_text(receiver.token)
        self.spool = Spool(folder / "work", "job-1", "attempt-1")
        self.reporter = Reporter(self.spool, Redactor())
        self.gateway = Gateway(receiver.url, Token(self.token_file, "", self.reporter.redactor.learn))
        self.sender = Sender(self.reporter, self.gateway, "attempt-1", self.control)
        self.sender.start()

    def drain(self, total_s: float = 60) -> bool:
        return self.sender.drain(Patience(self.control, total_s, 5))

    def close(self) -> None:
        self.sender.close()
        self.gateway.close()
        self.spool.close()


@pytest.fixture
def station(tmp_path: Path, receiver: Receiver) -> Iterator[Station]:
    opened = Station(tmp_path, receiver)
    yield opened
    opened.close()


def metrics(station: Station, count: int) -> None:
    for step in range(count):
        station.reporter.emit("metrics", step=step)


def test_every_line_arrives_once_and_in_order(station: Station, receiver: Receiver) -> None:
    metrics(station, 600)
    assert station.drain()
    assert [line.data["step"] for _, line in sorted(receiver.received.lines.items())] == list(range(600))
    assert receiver.received.repeats == 0
    assert max(receiver.received.batch_sizes) <= 256


def test_server_down_at_start_in_the_middle_and_at_the_end(tmp_path: Path, receiver: Receiver) -> None:
    receiver.stop()
    station = Station(tmp_path, receiver)
    metrics(station, 10)
    receiver.start()
    receiver.wait_until(lambda received: received.ack >= 10)
    receiver.stop()
    metrics(station, 10)
    receiver.start()
    receiver.wait_until(lambda received: received.ack >= 20)
    receiver.stop()
    station.reporter.emit("done", steps=1)
    assert not station.drain(total_s=0.2)
    station.close()
    receiver.start()
    again = Station(tmp_path, receiver)
    assert again.drain()
    again.close()
    lines = receiver.received.lines
    assert sorted(lines) == list(range(1, len(lines) + 1))
    assert receiver.received.repeats == 0
    assert receiver.received.types[-1] == "done"
    assert receiver.received.types.count("metrics") == 20


def test_an_answer_that_was_lost_leads_to_a_resend_without_a_double_line(station: Station, receiver: Receiver) -> None:
    """The server stores the batch and fails afterwards; the same lines come again and are the same lines."""
    failed = threading.Event()

    def store_then_fail(lines: list[ReportLine]) -> int:
        if failed.is_set():
            return 200
        failed.set()
        for line in lines:
            receiver.received.lines[line.seq] = line
        return 502

    receiver.answer_reports = store_then_fail
    metrics(station, 5)
    assert station.drain()
    assert receiver.received.types.count("metrics") == 5
    assert receiver.received.repeats >= 1


def test_the_spool_repairs_a_torn_line_and_goes_on_counting(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "job", "attempt")
    for _ in range(3):
        spool.append("log", {"message": "hello"})
    spool.close()
    with spool.path.open("ab") as stream:
        stream.write(b'{"v":1,"job":"job","attempt":"att')
    again = Spool(tmp_path, "job", "attempt")
    assert again.append("log", {"message": "next"}) == 4
    again.close()
    lines = [msgspec.json.decode(line, type=ReportLine) for line in spool.path.read_bytes().splitlines()]
    assert [line.seq for line in lines] == [1, 2, 3, 4]


def test_409_marks_the_attempt_superseded_and_sends_nothing_more(station: Station, receiver: Receiver) -> None:
    receiver.answer_reports = lambda _lines: 409
    metrics(station, 3)
    assert station.control.superseded.wait(60)
    batches = len(receiver.received.batch_sizes)
    metrics(station, 3)
    assert not station.drain(total_s=0.5)
    assert len(receiver.received.batch_sizes) == batches


@pytest.mark.parametrize("body", [b'{"code": "conflict"}', b'{"detail": "x"}', b"[]", b"<html>Conflict</html>", b""])
def test_any_other_409_is_tried_again_and_ends_nothing(station: Station, receiver: Receiver, body: bytes) -> None:
    receiver.conflict = body
    receiver.answer_reports = lambda _lines: 409 if len(receiver.received.batch_sizes) < 2 else 200
    metrics(station, 3)
    assert station.drain()
    assert not station.control.superseded.is_set()
    assert receiver.received.types.count("metrics") == 3


def test_413_halves_the_batch_until_it_fits(station: Station, receiver: Receiver) -> None:
    receiver.stop()
    metrics(station, 40)
    receiver.answer_reports = lambda lines: 413 if len(lines) > 6 else 200
    receiver.start()
    assert station.drain()
    assert receiver.received.types.count("metrics") == 40
    assert receiver.received.repeats == 0


def test_a_refused_line_is_set_aside_and_the_numbering_stays_whole(
    station: Station, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.answer_reports = lambda lines: 422 if any(line.data.get("step") == 7 for line in lines) else 200
    metrics(station, 20)
    assert station.drain()
    assert sorted(receiver.received.lines) == list(range(1, 21 + receiver.received.types.count("log")))
    assert [data["code"] for data in receiver.received.of_type("warning")] == ["line_refused"]
    assert b'"step":7' in (tmp_path / "work" / "quarantine.jsonl").read_bytes()


def test_a_renewed_token_is_read_from_its_file(station: Station, receiver: Receiver) -> None:
    receiver.token = "renewed-token-77aa55"
    metrics(station, 2)
    receiver.wait_until(lambda received: bool(received.batch_sizes))
    station.token_file.write_text(receiver.token)
    assert station.drain()


def test_retry_later_statuses_are_tried_again(station: Station, receiver: Receiver) -> None:
    answers = [408, 425, 429, 500, 503]
    receiver.answer_reports = lambda _lines: answers.pop(0) if answers else 200
    metrics(station, 2)
    assert station.drain()
    assert not answers


def test_commands_ride_on_acknowledgements(station: Station, receiver: Receiver) -> None:
    receiver.commands = [TrainerCommand(id="1", name="checkpoint_now"), TrainerCommand(id="2", name="stop")]
    metrics(station, 1)
    assert station.control.checkpoint_now.wait(60)
    assert station.control.stop.wait(60)


def test_a_slow_server_does_not_hold_up_the_writer(station: Station, receiver: Receiver) -> None:
    answering = threading.Event()
    receiver.answer_reports = lambda _lines: 200 if answering.wait(60) else 503
    metrics(station, 200)
    assert not receiver.received.lines, "all of them were written before one was acknowledged"
    answering.set()
    assert station.drain()


def test_hello_stands_first_whatever_came_before_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "job", "attempt")
    reporter = Reporter(spool, Redactor())
    reporter.emit("log", level="warning", message="the gateway is away")
    reporter.emit("heartbeat", step=0)
    reporter.emit("hello", device="cpu")
    reporter.emit("heartbeat", step=0)
    spool.close()
    lines = [msgspec.json.decode(line, type=ReportLine) for line in spool.path.read_bytes().splitlines()]
    assert [line.type for line in lines] == ["hello", "log", "heartbeat"]


def test_secrets_are_taken_out_before_anything_is_written(station: Station) -> None:
    station.reporter.emit(
        "hello", config={"--hub_token": "abc", "note": f"uses {TOKEN}", "--tokenizer_max_length": 16}, ignored_keys=[]
    )
    written = station.spool.path.read_text()
    assert TOKEN not in written
    assert "abc" not in written
    assert '"--tokenizer_max_length":16' in written


def test_a_spool_that_grows_too_large_keeps_every_tenth_metrics_line_and_all_milestones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "THIN_ABOVE_BYTES", 2000)
    spool = Spool(tmp_path, "job", "attempt")
    reporter = Reporter(spool, Redactor())
    for step in range(200):
        reporter.metrics(step=step)
        if step % 20 == 0:
            reporter.emit("checkpoint", step=step, files=[])
            reporter.emit("prediction", step=step, prompt="?")
    spool.close()
    lines = [msgspec.json.decode(line, type=ReportLine) for line in spool.path.read_bytes().splitlines()]
    assert [line.seq for line in lines] == list(range(1, len(lines) + 1))
    kinds = [line.type for line in lines]
    assert kinds.count("checkpoint") == kinds.count("prediction") == 10
    assert 20 <= kinds.count("metrics") < 40
