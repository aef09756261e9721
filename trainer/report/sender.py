"""The thread that delivers the spool: batches, acknowledgements, and an answer to every way a server can fail.

Network errors, 408, 425, 429 and 5xx wait and try again; 401 and 403 also read the token again; a 409 with the code
`attempt_superseded` ends the attempt, any other waits; 413 halves the batch; any other 4xx isolates the offending line,
sets it aside and goes on. The loop never waits for us.
"""

import http
import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec

from shared.contracts.run import MAX_BATCH_LINES, ReportAck, ReportLine
from trainer.control import Control
from trainer.patience import Patience
from trainer.report.events import Reporter
from trainer.report.gateway import UNAUTHORISED_STATUS, Backoff, Gateway, is_retryable
from trainer.report.spool import Spool

_log = logging.getLogger("trainer.report")
POLL_INTERVAL_S = 15.0
_SUPERSEDED = "attempt_superseded"


class _Problem(msgspec.Struct):
    """What we read of a problem document."""

    code: str = ""


@dataclass
class _Delivery:
    """What the sender has learned about the server so far."""

    max_lines: int = MAX_BATCH_LINES
    away: bool = False
    replacements: dict[int, bytes] = field(default_factory=dict[int, bytes])
    """Stand-ins for lines the server refused, so that the numbering stays without gaps."""


class Sender:
    """Delivers `spool` to `/api/v1/attempts/{attempt_id}/events` until closed."""

    def __init__(self, reporter: Reporter, gateway: Gateway, attempt_id: str, control: Control) -> None:
        self._reporter = reporter
        self._spool: Spool = reporter.spool
        self._gateway = gateway
        self._path = f"/api/v1/attempts/{attempt_id}/events"
        self._control = control
        self._backoff = Backoff()
        self._state = _Delivery()
        self._closing = threading.Event()
        self._finishing = threading.Event()
        self._idle = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="report-sender", daemon=True)

    def start(self) -> None:
        """Begin to deliver in the background."""
        self._thread.start()

    def drain(self, patience: Patience) -> bool:
        """Wait until every line is acknowledged or patience ends; True when all are delivered."""
        self._finishing.set()
        with self._spool.appended:
            self._spool.appended.notify_all()
        while not self._delivered() and (remaining_s := patience.remaining_s()):
            with self._idle:
                self._idle.wait(min(0.2, remaining_s))
        return self._delivered()

    def close(self) -> None:
        """Stop the thread; undelivered lines stay in the spool."""
        self._closing.set()
        with self._spool.appended:
            self._spool.appended.notify_all()
        self._thread.join(timeout=5)

    def _delivered(self) -> bool:
        return self._spool.acked >= self._spool.last_seq

    def _run(self) -> None:
        while not self._closing.is_set() and not self._control.superseded.is_set():
            if self._delivered():
                self._wait_for_lines()
                continue
            wait_s = self._deliver_batch()
            with self._idle:
                self._idle.notify_all()
            if wait_s:
                self._closing.wait(wait_s)

    def _wait_for_lines(self) -> None:
        with self._spool.appended:
            fresh = self._spool.appended.wait_for(
                lambda: self._closing.is_set() or not self._delivered(), timeout=POLL_INTERVAL_S
            )
        greeted = "hello" in self._spool.types
        if greeted and not fresh and not self._finishing.is_set():
            # The reply to a heartbeat also carries commands, so silence never outlasts the poll interval.
            self._reporter.emit("heartbeat", step=self._reporter.step)

    def _deliver_batch(self) -> float:
        """Send one batch; returns the seconds to wait before the next."""
        first = self._spool.acked + 1
        lines = self._spool.read_after(self._spool.acked, self._state.max_lines)
        lines = [self._state.replacements.get(first + index, line) for index, line in enumerate(lines)]
        headers = {**self._gateway.headers(), "Content-Type": "application/x-ndjson"}
        try:
            response = self._gateway.http.post(self._path, content=b"".join(lines), headers=headers)
        except httpx.HTTPError as error:
            return self._failed(type(error).__name__, None)
        if response.is_success:
            return self._acknowledged(response, len(lines))
        return self._refused(response, lines)

    def _acknowledged(self, response: httpx.Response, sent: int) -> float:
        try:
            ack = msgspec.json.decode(response.content, type=ReportAck)
        except msgspec.DecodeError:
            return self._failed("unreadable acknowledgement", response)
        before = self._spool.acked
        self._spool.acknowledge(ack.ack)
        for command in ack.commands:
            if not self._control.apply(command):
                self._reporter.carried_out([command], outcome="unknown")
        if self._spool.acked <= before and sent:
            return self._failed("acknowledgement did not advance", response)
        if self._state.away:
            self._state.away = False
            _log.info("gateway is back; %d lines delivered", self._spool.acked)
        self._backoff.reset()
        self._state.max_lines = min(MAX_BATCH_LINES, self._state.max_lines * 2)
        return 0.0

    def _refused(self, response: httpx.Response, lines: list[bytes]) -> float:
        status = response.status_code
        if status == http.HTTPStatus.CONFLICT:
            if not _says_superseded(response):
                return self._failed("HTTP 409 for another reason", response)
            self._control.superseded.set()
            return 0.0
        if status in UNAUTHORISED_STATUS:
            self._gateway.token.reread()
        if is_retryable(status):
            return self._failed(f"HTTP {status}", response)
        if len(lines) > 1:
            # 413 asks for smaller batches; other refusals are narrowed down to the one line they are about.
            self._state.max_lines = max(1, len(lines) // 2)
            return 0.0
        return self._set_aside(lines[0], status)

    def _set_aside(self, line: bytes, status: int) -> float:
        refused = msgspec.json.decode(line, type=ReportLine)
        if refused.seq in self._state.replacements:
            return self._failed(f"HTTP {status} for a stand-in line", None)
        quarantine: Path = self._spool.path.with_name("quarantine.jsonl")
        with quarantine.open("ab") as stream:
            stream.write(line)
        note = {"code": "line_refused", "message": f"a {refused.type} line was refused with HTTP {status}"}
        stand_in = msgspec.structs.replace(refused, type="warning", data=note)
        self._state.replacements[refused.seq] = msgspec.json.encode(stand_in) + b"\n"
        return 0.0

    def _failed(self, reason: str, response: httpx.Response | None) -> float:
        if not self._state.away:
            self._state.away = True
            _log.warning("gateway does not take reports (%s); training goes on, reports are kept", reason)
        return self._backoff.next_wait_s(response)


def _says_superseded(response: httpx.Response) -> bool:
    """Whether it is the gateway's own word; a proxy's 409, or one of another kind, must not end a training."""
    try:
        return msgspec.json.decode(response.content, type=_Problem).code == _SUPERSEDED
    except msgspec.DecodeError:
        return False
