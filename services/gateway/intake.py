"""Trainers' reports: stored before they are acknowledged, and made history before that where they change it."""

from uuid import UUID

from services.gateway.access import AttemptAccess
from services.gateway.domain.report_batch import Batch, commands_for, is_last_word_again, parse_batch
from services.gateway.domain.view_attempt import AttemptView
from shared.contracts.artifact import RecordReports
from shared.contracts.attempt import ReportMilestone
from shared.contracts.run import ReportAck, ReportLine
from shared.ids import derived_id
from shared.messaging.commands import CommandSender


class ReportIntake:
    """Takes batches under an attempt's token."""

    def __init__(self, sender: CommandSender, access: AttemptAccess) -> None:
        self._sender = sender
        self._access = access

    async def admit(self, attempt_id: UUID, token: str | None) -> AttemptView:
        """The attempt whose token this is. Raises `missing_token` or `invalid_token`."""
        return await self._access.of_attempt(attempt_id, token)

    async def take(self, attempt: AttemptView, body: bytes) -> ReportAck:
        """Stores the lines and acknowledges them; a repeat is harmless.

        Raises `attempt_superseded` when the attempt is over, except for the resent report that ended it.
        """
        batch = parse_batch(body, attempt)
        if not is_last_word_again(attempt, batch):
            await self._access.require_live(attempt)
        ack = await self._record(attempt, batch)
        for line in batch.milestones:
            await self._milestone(attempt, line)
        current = await self._access.current(attempt)
        return ReportAck(ack=ack, commands=commands_for(current))

    async def _record(self, attempt: AttemptView, batch: Batch) -> int:
        reply = await self._sender.send(
            "storage",
            RecordReports(job_id=attempt.job_id, attempt_id=attempt.attempt_id, lines=batch.raw),
            correlation_id=attempt.job_id,
            actor=_actor(attempt),
        )
        return int(reply.data["ack"])

    async def _milestone(self, attempt: AttemptView, line: ReportLine) -> None:
        await self._sender.send(
            "provider_bridge",
            ReportMilestone(
                attempt_id=attempt.attempt_id, seq=line.seq, report_type=line.type, data=line.data, at=line.ts
            ),
            correlation_id=attempt.job_id,
            actor=_actor(attempt),
            command_id=derived_id(attempt.attempt_id, "report", line.seq),
        )


def _actor(attempt: AttemptView) -> str:
    return f"attempt:{attempt.attempt_id}"
