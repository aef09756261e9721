"""The model card: what the files are, what made them, under which licence, and how to use them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml
from huggingface_hub import try_to_load_from_cache

from shared.contracts.training.delivery import DeliverySpec
from shared.contracts.training.loop import CommonSpec
from trainer.files import sha256_of
from trainer.publish.upload import OutgoingFile

CARD_NAME = "README.md"
_SETTINGS = (
    "model_family", "model_type", "method", "lora_rank", "lora_alpha", "lora_dropout", "resolution", "learning_rate",
    "lr_scheduler", "lr_warmup_steps", "optimizer", "train_batch_size", "gradient_accumulation_steps",
    "mixed_precision", "max_grad_norm", "grad_clip_method", "use_ema", "ema_decay", "seed", "flow_schedule_shift",
    "snr_gamma", "caption_dropout_probability", "validation_guidance", "validation_num_inference_steps",
    "max_length", "beta",
)  # fmt: skip
"""Settings that a card shows, where a training has them."""
_STEP_CHARS = len("step-000000-")
_SAMPLE = re.compile(r"(?P<name>.+?)-\d+x\d+-\d+(-ema)?")
_MAX_SAMPLES = 12
_LICENCE_MEMBERS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Shown:
    """One validation picture: the file and the prompt it was drawn for."""

    file: OutgoingFile
    prompt: str


@dataclass(frozen=True)
class CardFacts:
    """What a card tells. `base` is the hub name of the base model, or the name of its folder."""

    title: str
    kind: str
    """`diffusion` or `llm`."""
    base: str
    base_card: Path | None
    """The base model's own card, if it is on this machine."""
    spec: CommonSpec
    delivery: DeliverySpec
    steps: int
    final_loss: float | None
    job_id: str
    config_hash: str
    files: Sequence[OutgoingFile]
    datasets: Sequence[str] = ()
    samples: Sequence[Shown] = ()
    instance_prompt: str | None = None


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with its YAML front matter. It holds no path of this machine and no secret."""
    sections = [
        f"---\n{yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True)}---",
        f"# {facts.title}",
        f"Trained on [{facts.base}](https://huggingface.co/{facts.base})." if _is_hub_name(facts.base)
        else f"Trained on `{facts.base}`.",
        facts.delivery.model_card_note or "",
        _samples(facts),
        _usage(facts),
        _table("Training", ("setting", "value"), _settings(facts)),
        _table("Files", ("file", "bytes", "sha256"), _files(facts)),
        _licence_text(facts),
    ]  # fmt: skip
    return "\n\n".join(section for section in sections if section) + "\n"


def newest_samples(folder: Path, prompts: dict[str, str]) -> list[Shown]:
    """The pictures of the last validation, with the prompts they were drawn for; at most twelve."""
    pictures = sorted(folder.glob("step-*.png"))
    newest = [path for path in pictures if path.name[:_STEP_CHARS] == pictures[-1].name[:_STEP_CHARS]]
    by_name = {re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:60]: prompt for name, prompt in prompts.items()}
    shown: list[Shown] = []
    for path in newest:
        named = _SAMPLE.fullmatch(path.stem[_STEP_CHARS:])
        if named is not None and named["name"] in by_name:
            file = OutgoingFile(path, f"samples/{path.name}", "image/png")
            shown.append(Shown(file, by_name[named["name"]]))
    return shown[:_MAX_SAMPLES]


def _front_matter(facts: CardFacts) -> dict[str, object]:
    is_lora = facts.spec.model_type == "lora"
    library = "diffusers" if facts.kind == "diffusion" else "peft" if is_lora else "transformers"
    tags = [*(["text-to-image", "template:sd-lora"] if facts.kind == "diffusion" and is_lora else []), "tunewright"]
    tags.append("lora" if is_lora else "full-fine-tune")
    if facts.kind == "diffusion" and not facts.delivery.model_card_safe_for_work:
        tags.append("not-for-all-audiences")
    matter: dict[str, object] = {
        **_licence(facts.base_card),
        "library_name": library,
        "pipeline_tag": "text-to-image" if facts.kind == "diffusion" else "text-generation",
        "tags": tags,
    }
    if _is_hub_name(facts.base):
        matter["base_model"] = facts.base
        matter["base_model_relation"] = "adapter" if is_lora else "finetune"
    if facts.instance_prompt:
        matter["instance_prompt"] = facts.instance_prompt
    if facts.samples:
        matter["widget"] = [{"text": each.prompt, "output": {"url": each.file.name}} for each in facts.samples]
    return matter


def base_card_of(base: str, revision: str | None) -> Path | None:
    """The card of a base model that is a folder here, or lies in the hub's cache."""
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder / CARD_NAME
    if not _is_hub_name(base):
        return None
    cached = try_to_load_from_cache(base, CARD_NAME, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def _licence(base_card: Path | None) -> dict[str, str]:
    """The licence members of the base model's own card: what is made from it falls under that licence."""
    if base_card is None:
        return {}
    try:
        text = base_card.read_text(encoding="utf-8")
        matter: object = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, UnicodeDecodeError, IndexError, yaml.YAMLError):
        return {}
    members = cast("dict[object, object]", matter) if isinstance(matter, dict) else {}
    return {name: value for name in _LICENCE_MEMBERS if isinstance(value := members.get(name), str)}


def _licence_text(facts: CardFacts) -> str:
    licence = _licence(facts.base_card)
    name = licence.get("license_name") or licence.get("license")
    what = f"The base model's licence (`{name}`)" if name else "The licence of the base model"
    known = (
        "" if name else " Its folder did not say which one it is: look at the base model's page before you share this."
    )
    return f"## Licence\n\n{what} applies to these files too.{known}"


def _samples(facts: CardFacts) -> str:
    if not facts.samples:
        return ""
    pictures = [f"![{_inline(each.prompt)}]({each.file.name})\n\n*{_inline(each.prompt)}*" for each in facts.samples]
    return "## Samples\n\n" + "\n\n".join(pictures)


def _usage(facts: CardFacts) -> str:
    weights = next((file.name for file in facts.files if file.name.endswith(".safetensors")), "")
    repository = facts.delivery.hub_model_id or "path/to/this/folder"
    prompt = facts.samples[0].prompt if facts.samples else facts.instance_prompt or "a prompt"
    if facts.kind == "llm":
        return _llm_usage(facts, repository)
    base = facts.base if _is_hub_name(facts.base) else "path/to/the/base"
    lines = ["import torch", "from diffusers import AutoPipelineForText2Image", ""]
    if facts.spec.model_type == "lora":
        lines += [
            f"pipeline = AutoPipelineForText2Image.from_pretrained({base!r}, torch_dtype=torch.bfloat16).to('cuda')",
            f"pipeline.load_lora_weights({repository!r}, weight_name={weights!r})",
        ]
    else:
        lines.append(f"pipeline = AutoPipelineForText2Image.from_pretrained({repository!r}).to('cuda')")
    lines.append(f"picture = pipeline({prompt!r}).images[0]")
    return f"## Use\n\n```python\n{chr(10).join(lines)}\n```{_comfy_usage(facts)}"


def _comfy_usage(facts: CardFacts) -> str:
    kohya = next((file.name for file in facts.files if "kohya" in file.name), None)
    if kohya is None:
        return ""
    return f"\n\nIn ComfyUI: put `{kohya}` into `models/loras` and load it with the node LoraLoader."


def _llm_usage(facts: CardFacts, repository: str) -> str:
    base = facts.base if _is_hub_name(facts.base) else "path/to/the/base"
    if facts.spec.model_type == "lora":
        lines = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({base!r})",
            f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), {repository!r})",
        ]
    else:
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({repository!r})",
            f"model = AutoModelForCausalLM.from_pretrained({repository!r})",
        ]
    return f"## Use\n\n```python\n{chr(10).join(lines)}\n```"


def _settings(facts: CardFacts) -> list[tuple[str, ...]]:
    given = {name: getattr(facts.spec, name, None) for name in _SETTINGS}
    rows = [(name, f"`{value}`") for name, value in given.items() if value is not None]
    rows.append(("steps", f"`{facts.steps}`"))
    if facts.final_loss is not None:
        rows.append(("final loss", f"`{facts.final_loss:.6g}`"))
    if facts.datasets:
        rows.append(("datasets", ", ".join(f"`{_inline(name)}`" for name in facts.datasets)))
    return [*rows, ("job", f"`{facts.job_id}`"), ("config sha256", f"`{facts.config_hash}`")]


def _files(facts: CardFacts) -> list[tuple[str, ...]]:
    return [(f"`{file.name}`", str(file.path.stat().st_size), f"`{sha256_of(file.path)}`") for file in facts.files]


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    head = f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n"
    return f"## {title}\n\n{head}" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _is_hub_name(base: str) -> bool:
    owner, found, name = base.partition("/")
    return bool(found and owner and name) and "/" not in name and not owner.startswith((".", "~"))


def _inline(text: str) -> str:
    """A text that cannot end the Markdown around it."""
    return " ".join(text.split()).translate(str.maketrans({mark: f"\\{mark}" for mark in "[]*_`|<>\\"}))
