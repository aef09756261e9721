"""Which story brings the system to which step, and why some steps cannot be reached. A test holds both complete."""

import re

EVENT_STORY: dict[str, str] = {
    "job.submitted.v1": "completes",
    "job.datasets_packed.v1": "completes",
    "job.funds_reserved.v1": "completes",
    "job.queued.v1": "completes",
    "job.wait_explained.v1": "vanishes",
    "job.dispatched.v1": "completes",
    "job.started.v1": "completes",
    "job.checkpointed.v1": "saves",
    "job.attempt_failed.v1": "retried",
    "job.training_finished.v1": "completes",
    "job.cancel_requested.v1": "cancelled_running",
    "job.completed.v1": "completes",
    "job.failed.v1": "fails",
    "job.cancelled.v1": "cancelled_running",
    "job.deleted.v1": "deleted",
    "job.late_fact.v1": "finishes_anyway",
    "attempt.requested.v1": "completes",
    "attempt.leased.v1": "completes",
    "attempt.start_intended.v1": "completes",
    "attempt.accepted.v1": "completes",
    "attempt.started.v1": "completes",
    "attempt.checkpoint_saved.v1": "saves",
    "attempt.gpu_fault_reported.v1": "breaks",
    "attempt.delivered.v1": "delivers",
    "attempt.delivery_failed.v1": "delivers",
    "attempt.cancel_requested.v1": "cancelled_running",
    "attempt.succeeded.v1": "completes",
    "attempt.failed.v1": "fails",
    "attempt.cancelled.v1": "cancelled_running",
    "attempt.lost.v1": "vanishes",
    "dataset.packed.v1": "completes",
    "dataset.refused.v1": "no_data",
    "artifact.stored.v1": "completes",
    "account.funds_reserved.v1": "completes",
    "account.funds_refused.v1": "no_funds",
    "account.usage_metered.v1": "completes",
    "account.funds_captured.v1": "completes",
    "account.funds_released.v1": "completes",
}
"""Event type -> a story in which it is written."""

COMMAND_STORY: dict[str, str] = {
    "scheduler.submit_job": "completes",
    "scheduler.cancel_job": "cancelled_running",
    "scheduler.delete_job": "deleted",
    "provider_bridge.request_attempt": "completes",
    "provider_bridge.cancel_attempt": "cancelled_running",
    "provider_bridge.report_milestone": "completes",
    "storage.pack_datasets": "completes",
    "storage.confirm_artifacts": "completes",
    "storage.record_reports": "completes",
    "billing.reserve_funds": "completes",
    "billing.settle_job": "completes",
}
"""Owner and tag -> a story in which the command is sent."""

HTTP_STORY: dict[str, str] = {
    "gateway:submit": "completes",
    "gateway:cancel_job": "cancelled_running",
    "gateway:delete_job": "deleted",
    "gateway:report": "completes",
    "gateway:put_object": "saves",
    "storage:put_object": "saves",
}
"""Server and operation -> a story in which it is called."""

PROVIDER_STORY: dict[str, str] = {"submit": "completes", "cancel": "cancelled_running"}
"""Method of the provider's port -> a story in which the bridge acts by it."""

QUERY_STORY: dict[str, str] = {
    "provider_bridge.drop_lease": "completes",
}
"""Service and query -> a story in which it runs; every other one runs for a job that completes."""

BY_LEASE = re.compile(
    r"attempt\.(leased|start_intended|accepted|failed|cancelled|lost)\.v1"
    r"|job\.(dispatched|wait_explained)\.v1"
)
"""Events that are appended inside a transaction of the bridge's lease or of the dispatcher, which has a COMMIT."""

OUT_OF_REACH: tuple[tuple[str, str], ...] = (
    (
        r".*:attempt\.command_asked\.v1.*|command:provider_bridge\.ask_trainer:.*|http:gateway:ask_trainer:.*",
        "a person's wish for a checkpoint or a sample now: losing it costs nothing, and a repeat is one more of them",
    ),
    (
        r".*:(provider\.\w+|worker\.\w+|attempt\.(machine_released|word_unknown|webhook_received)|job\.placed)\.v1.*",
        "only where somebody else's machines are rented: tests/provider_faults",
    ),
    (
        r".*:account\.late_usage_charged\.v1.*",
        "an attempt that ends after its job was charged: tests/unit/billing, and provider_faults",
    ),
    (r".*:account\.opened\.v1.*", "once for each owner and month: in a system's first job only"),
    (r".*:attempt\.late_report\.v1.*", "written by the sweep for a run the log does not know; tests/contract"),
    (r"command:billing\.meter_usage:.*", "billing meters by its own consumer; the command is for later providers"),
    (r"command:.*\.read_\w+:.*", "reads only: nothing can be lost or doubled"),
    (r"command:.*\.(ping|list_parked):.*", "reads only: nothing can be lost or doubled"),
    (r"command:.*\.(rebuild_projections|replay_parked):.*", "by hand only: tests/fault/test_windows_*"),
    (r"query:provider_bridge\.(drop_ended_leases|release_leases):.*", "when a bridge starts, or stops in order"),
    (
        r"query:provider_bridge\.(save|drop|reseal)_credential:.*",
        "when a person gives or takes back a key; a repeat is harmless",
    ),
    (r"query:storage\.release_pack_claim:.*", "when storage stops in order while it packs"),
    (r"query:storage\.renew_pack_claim:.*", "packing that takes longer than a third of its lease"),
    (r"query:scheduler\.ensure_checkpoint:.*", "once, when a scheduler meets an empty database"),
    (r"http:gateway:(rebuild|replay|sync):.*", "by hand only, or reads only"),
    (r"http:gateway:(cancel_job|delete_job):mid-body", "a request without a body"),
    (
        r"append:(?!" + BY_LEASE.pattern + r").*:before-commit",
        "one statement of the group commit: no COMMIT of its own",
    ),
)
"""Steps, as a pattern of their names, that no story reaches, and why."""


_TABLES = {
    "append": EVENT_STORY,
    "relay": EVENT_STORY,
    "command": COMMAND_STORY,
    "http": HTTP_STORY,
    "provider": PROVIDER_STORY,
}


def story_for(step: str) -> str | None:
    """A story that reaches this step; None when there is none."""
    if reason_against(step) is not None:
        return None
    kind, _, rest = step.partition(":")
    if kind in {"rows", "ack"}:
        return "completes"
    if kind == "query":
        return QUERY_STORY.get(rest.rpartition(":")[0], "completes")
    if kind == "deliver":
        return EVENT_STORY.get(rest.partition(":")[2])
    return _TABLES[kind].get(rest.rpartition(":")[0])


def reason_against(step: str) -> str | None:
    """Why no story reaches the step, if that was decided."""
    return next((reason for pattern, reason in OUT_OF_REACH if re.fullmatch(pattern, step)), None)
