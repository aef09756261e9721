"""What a submitted config says of the model that will come of it, read without judging it: that was done at submit."""

import hashlib
from typing import Any, Literal, cast

import msgspec

from shared.contracts.job import JobSubmitted


class TrainingFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a submitted config says of the model it will make."""

    family: str | None = None
    kind: Literal["lora", "full"] = "lora"
    base_model: str | None = None
    config_hash: str = ""
    """Hex sha256 of the config in canonical JSON: the one that the trainer writes into every file."""


def training_facts(submitted: JobSubmitted) -> TrainingFacts:
    """The facts of a config as it was submitted; a member of another shape than expected is passed over."""
    config = {key.lstrip("-").replace("-", "_"): value for key, value in submitted.config.items()}
    digest = hashlib.sha256(msgspec.json.encode(submitted.config, order="deterministic")).hexdigest()
    base = _text(config, "pretrained_model_name_or_path")
    if config.get("model_family") is None and isinstance(config.get("training"), dict):
        training = cast("dict[str, Any]", config["training"])
        full = training.get("lora_r") == 0 or training.get("full_fine_tuning") is True
        base = _text(config, "model")
        return TrainingFacts(family="llm", kind="full" if full else "lora", base_model=base, config_hash=digest)
    kind = "full" if config.get("model_type") == "full" else "lora"
    return TrainingFacts(family=_text(config, "model_family"), kind=kind, base_model=base, config_hash=digest)


def _text(config: dict[str, Any], name: str) -> str | None:
    value = config.get(name)
    return value if isinstance(value, str) and value else None
