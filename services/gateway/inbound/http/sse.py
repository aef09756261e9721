"""Server-sent events: frames, and the response that carries them."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from litestar.response import Stream

HEARTBEAT_S = 15.0
RETRY_MS = 2000
COMMENT = b": still here\n\n"
HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}


def frame(data: str, *, event: str | None = None, id_: str | int | None = None, retry_ms: int | None = None) -> bytes:
    """One event. Lines of `data` become lines of the frame, so no data can end or forge one."""
    lines: list[str] = []
    if retry_ms is not None:
        lines.append(f"retry: {retry_ms}")
    if id_ is not None:
        lines.append(f"id: {id_}")
    if event is not None:
        lines.append(f"event: {event}")
    text = data.replace("\r\n", "\n").replace("\r", "\n")
    lines.extend(f"data: {line}" for line in text.split("\n"))
    return ("\n".join(lines) + "\n\n").encode()


def json_frame(data: Any, *, event: str, id_: str | int | None = None, retry_ms: int | None = None) -> bytes:
    """One event whose data is one line of JSON."""
    return frame(msgspec.json.encode(data, enc_hook=str).decode(), event=event, id_=id_, retry_ms=retry_ms)


def event_stream(frames: AsyncIterator[bytes]) -> Stream:
    """The response that sends frames until they end or the client goes."""
    return Stream(frames, media_type="text/event-stream", headers=dict(HEADERS))


def cursor_of(last_event_id: str | None) -> int | None:
    """The position in a Last-Event-ID header; None when there is none or it is not ours."""
    text = (last_event_id or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None  # noqa: PLR2004 -- as wide as a position
