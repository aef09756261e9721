"""A batch of a trainer's report lines: what may be in it, and which of its lines change history."""

from typing import Any

import msgspec

from services.gateway.domain.view_attempt import AttemptView
from shared.contracts.run import MAX_BATCH_BYTES, MAX_BATCH_LINES, ReportLine, TrainerCommand
from shared.problems import Rejected

MILESTONES = frozenset({"hello", "checkpoint", "delivery", "gpu_fault", "done", "failed"})
_LAST_WORD = {"succeeded": "done", "failed": "failed"}

_line_decoder = msgspec.json.Decoder(ReportLine)


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A checked batch: `raw` as sent, `lines` as read, in the same order."""

    raw: list[dict[str, Any]]
    lines: list[ReportLine]

    @property
    def milestones(self) -> list[ReportLine]:
        """The lines that must be history before the batch is acknowledged."""
        return [line for line in self.lines if line.type in MILESTONES]


def parse_batch(body: bytes, attempt: AttemptView) -> Batch:
    """The lines of an NDJSON body of this attempt.

    Raises `payload_too_large` above 256 lines or 512 KiB, `invalid_payload` for what cannot be read.
    """
    if len(body) > MAX_BATCH_BYTES:
        raise Rejected("payload_too_large", f"a batch has at most {MAX_BATCH_BYTES} bytes")
    texts = [text for text in body.split(b"\n") if text.strip()]
    if len(texts) > MAX_BATCH_LINES:
        raise Rejected("payload_too_large", f"a batch has at most {MAX_BATCH_LINES} lines")
    if not texts:
        raise Rejected("invalid_payload", "the batch holds no line")
    raw: list[dict[str, Any]] = []
    lines: list[ReportLine] = []
    for index, text in enumerate(texts):
        try:
            line, given = _line_decoder.decode(text), msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Rejected(
                "invalid_payload", f"line {index} of the batch cannot be read: {error}", line=index
            ) from None
        if (line.job, line.attempt) != (str(attempt.job_id), str(attempt.attempt_id)):
            raise Rejected("invalid_payload", f"line {index} of the batch is of another attempt", line=index)
        raw.append(given)
        lines.append(line)
    return Batch(raw=raw, lines=lines)


def is_last_word_again(attempt: AttemptView, batch: Batch) -> bool:
    """The report that ended this attempt is being resent: its acknowledgement was lost on the way."""
    word = _LAST_WORD.get(attempt.state)
    return word is not None and any(line.type == word for line in batch.lines)


def commands_for(attempt: AttemptView) -> list[TrainerCommand]:
    """What rides back on the acknowledgement: `stop` once a cancel was asked for, and the last of each other command.

    They come with every acknowledgement; a trainer carries out each id once.
    """
    asked = [TrainerCommand(id=command_id, name=name) for name, command_id in attempt.asked.items()]
    if attempt.cancel_requested:
        asked.append(TrainerCommand(id=f"stop-{attempt.attempt_id}", name="stop"))
    return asked
