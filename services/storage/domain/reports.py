"""Which report lines can be kept, before any of them is."""

import re
from datetime import datetime
from uuid import UUID

import msgspec

from shared.contracts.artifact import RecordReports
from shared.contracts.run import MAX_BATCH_LINES, ReportLine
from shared.problems import Rejected

MAX_SEQ = 2**53
"""What a JSON number can hold exactly."""
_TYPE = re.compile(r"[a-z][a-z0-9_]{0,39}")
"""A report type becomes a part of a NATS subject."""


class StoredLine(msgspec.Struct, frozen=True, kw_only=True):
    """One report line as it is kept: `line` is its JSON with every member that was sent."""

    seq: int
    type: str
    ts: datetime
    line: bytes


def accept(batch: RecordReports) -> list[StoredLine]:
    """The batch's lines by rising seq, each once.

    Raises:
        Rejected: `validation_error` or `payload_too_large`; nothing of the batch may then be stored.
    """
    if len(batch.lines) > MAX_BATCH_LINES:
        raise Rejected("payload_too_large", f"a batch has at most {MAX_BATCH_LINES} lines", lines=len(batch.lines))
    lines: dict[int, StoredLine] = {}
    for index, raw in enumerate(batch.lines):
        line = _accept_line(raw, index, batch.job_id, batch.attempt_id)
        lines.setdefault(line.seq, line)
    return [lines[seq] for seq in sorted(lines)]


def _accept_line(raw: dict[str, object], index: int, job_id: UUID, attempt_id: UUID) -> StoredLine:
    try:
        line = msgspec.convert(raw, ReportLine, strict=False)
    except msgspec.ValidationError as error:
        raise Rejected("validation_error", f"line {index} of the batch cannot be read: {error}", line=index) from None
    if not 1 <= line.seq <= MAX_SEQ:
        raise Rejected("validation_error", f"line {index} of the batch has seq {line.seq}; seq starts at 1", line=index)
    if _TYPE.fullmatch(line.type) is None:
        raise Rejected("validation_error", f"line {index} of the batch has an unusable type", line=index)
    if line.ts.tzinfo is None:
        raise Rejected("validation_error", f"line {index} of the batch has a time without an offset", line=index)
    if (line.job, line.attempt) != (str(job_id), str(attempt_id)):
        raise Rejected("validation_error", f"line {index} of the batch is of another attempt", line=index)
    return StoredLine(seq=line.seq, type=line.type, ts=line.ts, line=msgspec.json.encode(raw))
