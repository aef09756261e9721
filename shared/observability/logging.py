"""Log lines: one wide JSON object each, on stdout, without secrets. Event names are `<service>.<noun>.<past verb>`."""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO, cast
from uuid import UUID

import msgspec
import structlog
from structlog.typing import Processor

from shared.observability import names
from shared.observability.tracing import current_trace_id
from shared.settings import Secret

REDACTED = "[redacted]"

_SECRET_KEY = re.compile(
    r"(?:^|_|-)(?:password|passwd|secret|token|authorization|api_?key|apikey|dsn|cookie|credentials?)$|^database_url$",
    re.IGNORECASE,
)
_SECRET_TEXT = (
    (re.compile(r"://[^\s/:@]*:[^\s/@]+@"), f"://{REDACTED}@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}"), rf"\1 {REDACTED}"),
    (re.compile(r"\bstk_[A-Za-z0-9_-]{6,}"), REDACTED),
    (re.compile(r"(?i)\b(password|secret|token|api_key)=[^\s&;,]+"), rf"\1={REDACTED}"),
)
_QUIET = {"nats": logging.CRITICAL, "asyncio": logging.WARNING, "httpx": logging.WARNING, "httpcore": logging.WARNING}
"""nats-py prints each failed reconnect with its traceback; our callbacks log and count them."""


def redact(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replaces values whose key says secret, `Secret` values anywhere, and secrets inside longer texts."""
    return {key: _redacted(key, value) for key, value in line.items()}


def redact_text(text: str) -> str:
    """The text with passwords in URLs, bearer tokens and API keys blacked out."""
    for pattern, replacement in _SECRET_TEXT:
        text = pattern.sub(replacement, text)
    return text


def _redacted(key: str, value: object) -> object:
    if isinstance(value, Secret) or (value is not None and _SECRET_KEY.search(key)):
        return REDACTED
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {str(name): _redacted(str(name), inner) for name, inner in items}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted(key, inner) for inner in cast("list[object]", value)]
    return value


def _add_trace_id(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    trace_id = current_trace_id()
    if trace_id is not None:
        line[names.TRACE_ID] = trace_id
    return line


def _to_json(line: object, **_: object) -> str:
    return msgspec.json.encode(line, enc_hook=_describe).decode()


def _describe(value: object) -> str:
    return str(value) if isinstance(value, UUID | BaseException) else repr(value)


def configure(service: str, *, log_format: str = "json", level: str = "INFO", stream: TextIO | None = None) -> None:
    """Sends structlog's and the standard library's lines to `stream` (stdout) as JSON, or as text for `console`."""
    target = stream or sys.stdout
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace_id,
    ]
    console = log_format == "console"
    last: list[Processor] = [
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redact,
        structlog.dev.ConsoleRenderer(colors=False) if console else structlog.processors.JSONRenderer(_to_json),
    ]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(target),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**{names.SERVICE: service})
    handler = logging.StreamHandler(target)
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[strip, *last]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, quiet_level in _QUIET.items():
        logging.getLogger(name).setLevel(quiet_level)
