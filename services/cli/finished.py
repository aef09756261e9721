"""A finished job's model, brought here: its LoRA fetched whole and kept, and what the job's config says of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

import msgspec

from services.cli.commands.artifacts import Artifact, artifacts_of, fetch_all, target_of
from services.cli.failures import CliError, Place
from services.cli.session import Session
from services.cli.terminal import size

PICTURES_FILE = "pytorch_lora_weights.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_TOKENIZER_FILES = frozenset(
    {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "added_tokens.json"}
)
AVERAGE_FOLDER = "ema"


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A completed job with its LoRA on this machine. `lora` is the weights file; `kind` says what it changes."""

    job_id: str
    name: str
    kind: Literal["picture", "text"]
    lora: Path
    sha256: str
    config: dict[str, Any]
    dataloader: list[dict[str, Any]]


def finished(session: Session, job: str, *, average: bool = False) -> Finished:
    """Fetches what a completed job's model needs, and leaves alone what is here already.

    Args:
        session: where Tunewright is and where files are kept.
        job: id of the job, or the beginning of it.
        average: take the moving average (EMA) instead of the last weights.

    Raises:
        CliError: the job has not completed, or delivered no LoRA.
    """
    job_id = session.job_id(job)
    state: dict[str, Any] = session.gateway.get(f"/api/v1/jobs/{job_id}")["job"]
    if state["status"] != "completed":
        raise CliError(
            f"job {job_id} is {state['status']}; it has no finished model",
            advice="`tunewright artifacts ls JOB` lists what it stored; `tunewright logs JOB -f` waits for its end.",
        )
    files = artifacts_of(session, job_id)
    weights = _weights(files, average=average)
    wanted = [weights, *_beside(files, weights)]
    root = session.data_dir / "models" / job_id
    fetch_all(session, [(file, target_of(root, file)) for file in wanted])
    submitted = _submitted(session, job_id)
    return Finished(
        job_id=job_id,
        name=str(submitted.get("tracker_run_name") or ""),
        kind=_kind(target_of(root, weights)),
        lora=target_of(root, weights),
        sha256=weights.sha256,
        config=cast("dict[str, Any]", submitted["config"]),
        dataloader=cast("list[dict[str, Any]]", submitted["dataloader"]),
    )


def _kind(lora: Path) -> Literal["picture", "text"]:
    """Diffusers' own layout is for pictures; PEFT's says itself what it is for (PixArt has it too)."""
    if lora.name == PICTURES_FILE:
        return "picture"
    try:
        stated: object = json.loads((lora.parent / ADAPTER_CONFIG).read_bytes())
    except ValueError as error:
        raise CliError(f"the job's {ADAPTER_CONFIG} is not JSON: {error}") from error
    task = cast("dict[str, object]", stated).get("task_type") if isinstance(stated, dict) else None
    return "text" if task == "CAUSAL_LM" else "picture"


def _weights(files: Sequence[Artifact], *, average: bool) -> Artifact:
    """The weights nearest to the job's own folder, for checkpoints hold some too."""
    found = [file for file in files if PurePosixPath(file.name).name in {PICTURES_FILE, ADAPTER_FILE}]
    finals = [file for file in found if not file.name.startswith("checkpoint-")]
    chosen = [file for file in finals if (AVERAGE_FOLDER in PurePosixPath(file.name).parts) == average]
    if chosen:
        return min(chosen, key=lambda file: (file.name.count("/"), file.name))
    if average and finals:
        raise CliError("the job kept no moving average", advice="Leave --ema out, or train with --use_ema.")
    known = [Place(where=file.name, message=size(file.size_bytes)) for file in files[:20]]
    advice = "This works for LoRA jobs; a whole model is fetched with `tunewright artifacts get`."
    raise CliError("the job delivered no LoRA" + ("; it has:" if known else ""), places=known, advice=advice)


def _beside(files: Sequence[Artifact], weights: Artifact) -> list[Artifact]:
    """What PEFT and tokenizers read from the same folder; the config is needed, the rest is taken if it is there."""
    if PurePosixPath(weights.name).name != ADAPTER_FILE:
        return []
    folder = PurePosixPath(weights.name).parent
    beside = {PurePosixPath(file.name).name: file for file in files if PurePosixPath(file.name).parent == folder}
    if ADAPTER_CONFIG not in beside:
        raise CliError(f"the job delivered {weights.name} without its {ADAPTER_CONFIG}")
    return [file for name, file in sorted(beside.items()) if name == ADAPTER_CONFIG or name in _TOKENIZER_FILES]


def _submitted(session: Session, job_id: str) -> Mapping[str, Any]:
    """The data of the event that accepted the job: its config as it was sent."""
    events: list[dict[str, Any]] = session.gateway.get(f"/api/v1/jobs/{job_id}/events")["events"]
    for event in events:
        if str(event["type"]).startswith("job.submitted."):
            return cast("dict[str, Any]", event["data"])
    raise CliError(f"the log has no submission of job {job_id}")
