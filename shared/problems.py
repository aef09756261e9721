"""Refusals with stable codes. The code is the contract; the status code is the gateway's business alone."""

from typing import Any


class Rejected(Exception):  # noqa: N818 - a refusal is an answer, not an error
    """The rule said no. `code` is one of CODES, `detail` is safe to show, `fields` name what it is about."""

    def __init__(self, code: str, detail: str, **fields: Any) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.fields = fields


class Unavailable(Exception):  # noqa: N818 - a state of the world, not an error of the caller
    """Somebody we need does not answer now; nothing was changed that a repeat would double."""

    def __init__(self, detail: str, *, retry_after_s: int = 2) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s


CODES: dict[str, str] = {
    "validation_error": "The request is malformed",
    "invalid_config": "The training config cannot be used",
    "invalid_payload": "The body cannot be read",
    "payload_too_large": "The body is larger than allowed",
    "config_not_found": "No saved config has that name",
    "not_found": "There is nothing here",
    "job_not_found": "No such job",
    "object_not_found": "No such object",
    "model_not_found": "No such model",
    "invalid_job_state": "The job's state does not allow this",
    "version_conflict": "Somebody else changed this at the same time",
    "idempotency_key_reused": "The idempotency key belongs to another request",
    "unknown_provider": "No provider has that name",
    "provider_not_found": "There is no such provider",
    "provider_not_configured": "The provider is not set up",
    "provider_refused": "The provider does not accept this",
    "credential_in_use": "Runs still need this key",
    "ip_not_allowed": "This address may not send here",
    "invalid_signature": "The signature is not genuine",
    "invalid_token": "The token is not valid here",
    "missing_token": "A token is needed",
    "attempt_superseded": "This attempt is over",
    "digest_mismatch": "The bytes do not match their digest",
    "invalid_object_key": "The object name cannot be used",
    "dataset_refused": "A dataset cannot be used",
    "funds_refused": "The spending limit does not allow this",
    "stale_epoch": "Another process owns this attempt now",
    "storage_full": "There is no room for this",
    "worker_not_found": "No such worker",
    "worker_busy": "The worker has a job",
    "not_assigned": "The job is not this worker's",
    "host_not_allowed": "The request was sent to a host name this server does not serve",
    "service_unavailable": "A part of Tunewright does not answer",
    "internal_error": "Something failed on our side",
    "method_not_allowed": "The method is not allowed here",
}
"""Code -> title, fixed per code; each has a page in docs/problems.md."""
