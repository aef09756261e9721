"""The first boot of a Lambda machine: `lambda_boot.sh` with the values of one run before it."""

import base64
import shlex
from pathlib import Path

import msgspec

from services.provider_bridge.outbound.ports import StartOrder, StartRefused

_SCRIPT = Path(__file__).with_name("lambda_boot.sh")
MAX_BYTES = 1_000_000
"""Lambda takes no more as `user_data`."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where the machine gets the trainer: a container image, or a git repository at a revision."""

    container_image: str = ""
    git_url: str = ""
    git_revision: str = "main"


def user_data(order: StartOrder, source: Source) -> str:
    """The script. It holds the run's token, which is worth nothing once the attempt is over.

    Raises StartRefused when there is no source, or the spec is too large.
    """
    if not source.container_image and not source.git_url:
        raise StartRefused(
            "A Lambda machine has nowhere to get the trainer from.",
            "Set `container_image`, or `git_url` and `git_revision`, of the provider `lambda`.",
        )
    values = {
        "TW_JOB_ID": order.spec.job_id,
        "TW_ATTEMPT_ID": order.spec.attempt_id,
        "TW_TOKEN": order.token,
        "TW_SPEC_BASE64": base64.b64encode(msgspec.json.encode(order.spec)).decode(),
        "TW_GATEWAY_URL": order.spec.gateway_url or "",
        "TW_MAX_RUN_S": str(order.max_run_s or ""),
        "TW_IMAGE": source.container_image,
        "TW_GIT_URL": source.git_url,
        "TW_GIT_REVISION": source.git_revision,
    }
    assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    script = f"#!/usr/bin/env bash\n{assignments}{_SCRIPT.read_text(encoding='utf-8')}"
    if len(script.encode()) > MAX_BYTES:
        raise StartRefused(
            f"The run's spec is too large for a Lambda machine: {len(script.encode())} of {MAX_BYTES} bytes.",
            "Put prompts and other long lists into a dataset.",
        )
    return script
