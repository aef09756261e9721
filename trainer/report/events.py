"""Turning what happens into report lines: one method, with secrets taken out before anything is written."""

import logging
import re
import threading
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast, get_args

from shared.contracts.run import ReportType, TrainerCommand
from trainer.report.spool import Spool

REPORT_TYPES = frozenset(cast("tuple[str, ...]", get_args(ReportType)))
_SECRET_KEY = re.compile(
    r"(?<!max_)(?<!max_new_)(token|secret|password|access_key|api_key|credential)s?$", re.IGNORECASE
)
_METRICS_KEPT_WHEN_THIN = 10
REDACTED = "[redacted]"
Outcome = Literal["done", "too_late", "unknown"]


class Redactor:
    """Replaces known secret values anywhere, and any value under a key that names a secret."""

    def __init__(self) -> None:
        self._secrets: set[str] = set()

    def learn(self, secret: str) -> None:
        """Remember one secret; short strings are refused, since they would redact ordinary words."""
        minimum_length = 8
        if len(secret) >= minimum_length:
            self._secrets.add(secret)

    def text(self, text: str) -> str:
        """`text` with every known secret replaced."""
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return text

    def value(self, value: Any) -> Any:
        """A JSON value with secrets replaced, at any depth."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            items = cast("dict[str, Any]", value).items()
            return {key: REDACTED if item and _SECRET_KEY.search(key) else self.value(item) for key, item in items}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in cast("list[Any]", value)]
        return value


class Reporter:
    """Writes report lines to the spool. Never waits for a network and never raises for one."""

    def __init__(self, spool: Spool, redactor: Redactor) -> None:
        self.spool = spool
        self.redactor = redactor
        self.step = 0
        self.gpu_numbers: Callable[[], dict[str, Any]] = dict
        """What every metrics line says of the GPU besides; it must not wait."""
        self._thinned = 0
        self._ended = False
        self._lock = threading.RLock()
        self._held: list[tuple[ReportType, dict[str, Any]]] = []
        """Lines that came before `hello`, which stands first: loading libraries takes long enough for some."""

    def emit(self, report_type: ReportType, **data: Any) -> None:
        """Append one line; see `shared.contracts.run.ReportType` for the members each type carries."""
        with self._lock:
            if self._ended and report_type in {"log", "heartbeat", "command"}:
                return  # the ending is the last line
            if self.spool.last_seq == 0 and report_type in {"log", "warning", "heartbeat"}:
                if report_type != "heartbeat":
                    self._held.append((report_type, data))
                return
            held, self._held = self._held, []
            if report_type == "failed":
                self._write_all([*held, (report_type, data)])
            else:
                self._write_all([(report_type, data), *held])

    def phase(self, name: str, detail: str | None = None) -> None:
        """The attempt has entered a phase."""
        self.emit("phase", phase=name, **({"detail": detail} if detail else {}))

    def metrics(self, **numbers: Any) -> None:
        """The numbers of one step, with the GPU's own."""
        self.emit("metrics", **numbers, **self.gpu_numbers())

    def carried_out(self, commands: Iterable[TrainerCommand], outcome: Outcome = "done") -> None:
        """The control plane hears what became of commands and need not ask again."""
        for command in commands:
            self.emit("command", id=command.id, name=command.name, outcome=outcome, step=self.step)

    def warning(self, code: str, message: str) -> None:
        """Something the user should know that does not end the attempt."""
        self.emit("warning", code=code, message=message)

    def _write_all(self, lines: list[tuple[ReportType, dict[str, Any]]]) -> None:
        for report_type, data in lines:
            self._write(report_type, data)

    def _write(self, report_type: ReportType, data: dict[str, Any]) -> None:
        self._ended = self._ended or report_type in {"done", "failed"}
        if report_type in {"metrics", "log"} and self.spool.needs_thinning:
            self._thinned += 1
            if report_type == "log" or self._thinned % _METRICS_KEPT_WHEN_THIN:
                return
        self.spool.append(report_type, cast("dict[str, Any]", self.redactor.value(data)))


class SpoolLogHandler(logging.Handler):
    """Log records become `log` lines: ours from INFO, other libraries' from WARNING."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.INFO)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a failure to write goes to logging's own error path, not to the caller."""
        if record.levelno < logging.WARNING and not record.name.startswith("trainer"):
            return
        try:
            self._reporter.emit("log", level=record.levelname.lower(), message=record.getMessage())
        except (OSError, ValueError):
            self.handleError(record)


class RedactingFormatter(logging.Formatter):
    """The formatter for standard error: same redaction as the spool."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """The formatted record without secrets."""
        return self._redactor.text(super().format(record))
