"""Hugging Face Jobs: start one job in our container, `python -m trainer.entry.hf_job --input FILE ...`.

The job runs `trainer.entry.container`. Input and token travel as the job's secrets, which the Hub encrypts and never
shows. The time limit is always sent (the Hub's own is 30 minutes), and the trainer saves before it is reached.
"""

import argparse
import base64
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MARGIN_S = 900
_LABEL = "tunewright-attempt"


@dataclass(frozen=True, kw_only=True)
class HubJob:
    """Where and how a job runs on the Hub. Times in seconds."""

    image: str
    flavor: str
    namespace: str
    timeout_s: int
    python: str = ".venv-trainer/bin/python"


def job_arguments(job: HubJob, given: Mapping[str, Any], token: str, hub_token: str) -> dict[str, Any]:
    """The keyword arguments of `HfApi.run_job`. The label finds the job again when its answer was lost."""
    if job.timeout_s <= 2 * _MARGIN_S:
        raise ValueError(f"timeout_s is {job.timeout_s}: at least {2 * _MARGIN_S + 1} are needed to save and deliver")
    run_spec: dict[str, Any] = given.get("run_spec") or {}
    name = run_spec.get("attempt_id") or given.get("job_id")
    secrets = {"TUNEWRIGHT_INPUT_BASE64": base64.b64encode(json.dumps(given).encode()).decode()}
    if token:
        secrets["TUNEWRIGHT_ATTEMPT_TOKEN"] = token
    if hub_token:
        secrets["HF_TOKEN"] = hub_token
    return {
        "image": job.image,
        "command": [job.python, "-m", "trainer.entry.container"],
        "env": {"TUNEWRIGHT_MAX_RUN_S": str(job.timeout_s - _MARGIN_S)},
        "secrets": secrets,
        "flavor": job.flavor,
        "timeout": job.timeout_s,
        "namespace": job.namespace,
        **({"labels": {_LABEL: name}} if name else {}),
    }


def main(environ: Mapping[str, str], arguments: list[str] | None = None) -> int:
    """Start the job and print its id. `HF_TOKEN` authorises and goes along; `HF_ENDPOINT` names another Hub."""
    parser = argparse.ArgumentParser(prog="python -m trainer.entry.hf_job", description=__doc__)
    parser.add_argument("--input", type=Path, required=True, help="the entry's input as JSON")
    parser.add_argument("--token-file", type=Path, help="the attempt's token, for an input with run_spec")
    parser.add_argument("--image", required=True)
    parser.add_argument("--flavor", default="a10g-small")
    parser.add_argument("--namespace", required=True, help="your user or organisation on the Hub")
    parser.add_argument("--timeout-s", type=int, default=6 * 3600)
    parser.add_argument("--python", default=HubJob.python, help="the trainer's Python in the image")
    options = parser.parse_args(arguments)
    # Imported here: only who starts jobs on the Hub needs its client.
    from huggingface_hub import HfApi  # noqa: PLC0415

    job = HubJob(
        image=options.image,
        flavor=options.flavor,
        namespace=options.namespace,
        timeout_s=options.timeout_s,
        python=options.python,
    )
    given: dict[str, Any] = json.loads(options.input.read_text(encoding="utf-8"))
    token = options.token_file.read_text(encoding="utf-8").strip() if options.token_file else ""
    started = HfApi().run_job(**job_arguments(job, given, token, environ.get("HF_TOKEN", "")))
    sys.stdout.write(f"{started.id}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
