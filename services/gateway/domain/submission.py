"""What a submitted body must be before anybody is asked to run it: one config, checked, for a known provider."""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, Literal
from uuid import UUID

import msgspec

from services.gateway.domain.config_secrets import secret_problems
from services.gateway.domain.refusals import invalid
from services.gateway.domain.requirements import Requirements, hardware_request
from shared.contracts.job import PRIORITY_NAMES, DatasetRequest, SubmitJob
from shared.contracts.training.problems import ConfigRejected, FieldProblem
from shared.contracts.training.spec import check_training
from shared.problems import Rejected

PRIORITY_WORDS = {word: number for number, word in PRIORITY_NAMES.items()}
MAX_KEY_CHARS = 255
SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class SubmitJobRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The documented body: `config` with `dataloader_config`, or `config_name_to_load`, never both.

    `priority` is a word (low, normal, high, urgent, critical) or its number (0, 10, 20, 30, 40). `hardware_profile`
    (`h100-x2`) and `requirements` choose the machine. `webhook_url`, `snapshot_*` and `upload_id` are accepted for
    existing scripts and change nothing yet.
    """

    config: dict[str, Any] | None = None
    dataloader_config: list[dict[str, Any]] | None = None
    config_name_to_load: str | None = None
    config_name: str | None = None
    webhook_url: str | None = None
    snapshot_name: str | None = None
    snapshot_message: str | None = None
    tracker_run_name: str | None = None
    upload_id: str | None = None
    hardware_profile: str | None = None
    idempotency_key: str | None = None
    priority: int | str | None = None
    requirements: Requirements | None = None


class SubmitJobResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The documented answer to a submit; `status` is the job's status at that moment."""

    success: Literal[True] = True
    job_id: str
    status: str
    error: None = None
    data_uploaded: bool = False
    upload_id: str | None = None
    cost_limit_warning: str | None = None
    quota_warnings: list[str] = []
    idempotent_hit: bool = False


class LoadedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A training config with its dataloader list; `name` None when it came in the body."""

    name: str | None
    config: dict[str, Any]
    dataloader: list[dict[str, Any]]


def priority_number(given: int | str | None) -> int:
    """The stored number of a priority word or number; none means normal."""
    if given is None:
        return PRIORITY_WORDS["normal"]
    text = str(given).strip().lower()
    if text in PRIORITY_WORDS:
        return PRIORITY_WORDS[text]
    if text.isdigit() and int(text) in PRIORITY_NAMES:
        return int(text)
    allowed = ", ".join(f"{word} ({number})" for word, number in PRIORITY_WORDS.items())
    raise invalid("priority", f"{given!r} is not a priority", f"Use one of {allowed}.")


def check_provider(provider: str, known: Sequence[str]) -> None:
    """Refuses a provider nobody here can reach, naming those that can be."""
    if provider not in known:
        detail = f"{provider} is not a provider here; known: {', '.join(known)}"
        raise Rejected("unknown_provider", detail, provider=provider, known_providers=list(known))


def check_name(name: str) -> str:
    """A saved config's name is a slug: it never reaches outside the config folder."""
    if not SLUG.fullmatch(name) or ".." in name:
        advice = "Use letters, digits, dots, dashes and underscores, for example my-config."
        raise invalid("config_name_to_load", f"{name!r} is not a config name", advice)
    return name


def check_source(body: SubmitJobRequest) -> None:
    """Exactly one of an inline config and a saved one."""
    if body.config is not None and body.config_name_to_load is not None:
        raise invalid("config_name_to_load", "config and config_name_to_load are both given", "Send one of them.")
    if body.config is None and body.config_name_to_load is None:
        raise invalid("config", "no config is given", "Send config, or config_name_to_load.")
    if body.config_name_to_load is not None and body.dataloader_config is not None:
        message = "dataloader_config belongs to an inline config"
        raise invalid("dataloader_config", message, "Remove it, or send config instead of config_name_to_load.")


def idempotency_key(body: SubmitJobRequest, header: str | None) -> str | None:
    """The client's key, from the body or the header; both may be given only if they agree."""
    key = body.idempotency_key if body.idempotency_key is not None else header
    if key is None:
        return None
    if header is not None and header != key:
        raise invalid("idempotency_key", "the Idempotency-Key header says another key", "Send the key once.")
    if not 0 < len(key) <= MAX_KEY_CHARS or not key.isprintable():
        message = f"a key has 1 to {MAX_KEY_CHARS} printable characters"
        raise invalid("idempotency_key", message, "Use for example the commit's hash.")
    return key


def request_digest(body: SubmitJobRequest, provider: str) -> bytes:
    """SHA-256 over what was asked for: the same for the same request, whatever the order of its keys."""
    asked = {**msgspec.to_builtins(body), "idempotency_key": None, "provider": provider}
    if body.requirements is None:  # keys that were given before there were any still fit
        del asked["requirements"]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).digest()


def submit_command(
    body: SubmitJobRequest, loaded: LoadedConfig, *, job_id: UUID, user_id: str, provider: str, key: str | None
) -> SubmitJob:
    """The command for the scheduler. Raises ConfigRejected with every problem of the config and the dataloader."""
    problems: list[FieldProblem] = []
    datasets: list[DatasetRequest] = []
    if not loaded.config:
        problems.append(FieldProblem(field="config", code="missing", message="the config is empty", advice="Fill it."))
    try:
        checked = check_training(loaded.config, loaded.dataloader)
        datasets = [DatasetRequest(dataset_id=each.id, path=each.instance_data_dir) for each in checked.sources]
    except ConfigRejected as refusal:
        problems.extend(refusal.problems)
    if problems := _secrets_first(secret_problems(loaded.config, loaded.dataloader), problems):
        raise ConfigRejected(problems)
    return SubmitJob(
        job_id=job_id,
        user_id=user_id,
        provider=provider,
        priority=priority_number(body.priority),
        config=loaded.config,
        dataloader=loaded.dataloader,
        datasets=datasets,
        config_name=loaded.name or body.config_name,
        tracker_run_name=body.tracker_run_name or _text(loaded.config, "tracker_run_name"),
        idempotency_key=key,
        requirements=hardware_request(body.hardware_profile, body.requirements, provider),
    )


def _secrets_first(secrets: list[FieldProblem], others: list[FieldProblem]) -> list[FieldProblem]:
    """All problems; of a key that holds a secret only that, because the other messages show values."""
    holders = tuple(problem.field for problem in secrets)
    return [*secrets, *(problem for problem in others if not any(_within(field, problem.field) for field in holders))]


def _within(secret_field: str, field: str) -> bool:
    return secret_field == field or secret_field.startswith((f"{field}.", f"{field}["))


def _text(config: dict[str, Any], name: str) -> str | None:
    value = config.get(f"--{name}", config.get(name))
    return value if isinstance(value, str) else None
