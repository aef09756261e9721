"""Where results go besides the control plane, and in which formats: SimpleTuner's publishing keys, checked.

Credentials never stand in a config: they come from the environment of the machine that trains.
"""

import json
import re
from pathlib import PurePosixPath
from typing import Any, Literal, cast

import msgspec

from shared.contracts.training.endpoints import endpoint_problem
from shared.contracts.training.problems import FieldProblem, problem
from shared.contracts.training.values import bare_key, coerced, shown

LoraFormat = Literal["diffusers", "kohya"]

KOHYA_FAMILIES = frozenset({"sd1x", "sdxl", "flux"})
"""Families whose kohya key names are known, so that ComfyUI and WebUIs read the file."""


class BucketTarget(msgspec.Struct, frozen=True, kw_only=True, tag="bucket", tag_field="type"):
    """A bucket behind an S3 interface. `endpoint_url` None means AWS; `prefix` begins every key, no slashes around."""

    provider: str
    bucket: str
    prefix: str = ""
    region: str | None = None
    endpoint_url: str | None = None
    public_base_url: str | None = None
    """Where people may fetch what is under the prefix, if the bucket is published somewhere."""


class FolderTarget(msgspec.Struct, frozen=True, kw_only=True, tag="folder", tag_field="type"):
    """A folder on the training machine, by its name below the roots that the machine's owner allows."""

    name: str


class DeliverySpec(msgspec.Struct, frozen=True, kw_only=True):
    """Targets outside and file formats. Field names are the keys; the control plane itself always gets everything."""

    push_to_hub: bool = False
    push_checkpoints_to_hub: bool = False
    push_to_hub_background: bool = False
    hub_model_id: str | None = None
    """`name` or `owner/name`; set whenever something is pushed."""
    model_card_private: bool = True
    model_card_note: str | None = None
    model_card_safe_for_work: bool = False
    publishing_config: list[BucketTarget | FolderTarget] = []
    lora_format: LoraFormat = "diffusers"
    """`kohya` adds a file with kohya's key names, which ComfyUI reads; the diffusers file is always written."""


DELIVERY_KEYS = frozenset(DeliverySpec.__struct_fields__)

_ENTRY_KEYS = frozenset(
    {
        "provider", "bucket", "region", "access_key", "secret_key", "endpoint_url", "base_path", "public_base_url",
        "use_ssl", "name", "path", "folder",
    }
)  # fmt: skip
_S3_LIKE = frozenset({"s3", "aws", "backblaze_b2", "b2", "r2", "cloudflare_r2", "minio", "s3_compatible"})
_FOLDER = frozenset({"local", "folder"})
_ELSEWHERE = {
    "azure_blob": "Use s3 with an S3-compatible bucket; Azure Blob is not built.",
    "azure": "Use s3 with an S3-compatible bucket; Azure Blob is not built.",
    "dropbox": "Use s3 or push_to_hub; Dropbox is not built.",
    "gcs": "Use s3 with endpoint_url https://storage.googleapis.com and HMAC keys.",
}
_CREDENTIALS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on the machine that trains; a config is kept for ever."
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,62}", re.ASCII)
_SAFE_PATH = re.compile(r"[\w.()=+ -]+(/[\w.()=+ -]+)*")
_REGION = re.compile(r"[a-z0-9-]{1,40}", re.ASCII)
_FORMATS: dict[object, LoraFormat] = {"diffusers": "diffusers", "comfyui": "kohya", "kohya": "kohya", None: "diffusers"}
_MAX_TARGETS = 8
_MAX_NOTE_CHARS = 10_000


def check_delivery(
    config: dict[str, Any], *, family: str | None, problems: list[FieldProblem], plain_lora: bool = True
) -> DeliverySpec:
    """Read the delivery keys of a submitted config (others are passed over); what is wrong is appended to `problems`.

    `family` is what is trained, None for a language model; `plain_lora` is False for full tuning and DoRA.
    """
    given = {bare_key(key): (key, value) for key, value in config.items() if bare_key(key) in DELIVERY_KEYS}
    switches = {
        name: _switch(given, name, default, problems)
        for name, default in (
            ("push_to_hub", False),
            ("push_checkpoints_to_hub", False),
            ("push_to_hub_background", False),
            ("model_card_private", True),
            ("model_card_safe_for_work", False),
        )
    }
    pushes = switches["push_to_hub"] or switches["push_checkpoints_to_hub"]
    return DeliverySpec(
        **switches,
        hub_model_id=_repo_id(given, config, needed=pushes, problems=problems),
        model_card_note=_note(given, problems),
        publishing_config=_targets(given, problems),
        lora_format=_lora_format(given, family, problems, plain_lora=plain_lora),
    )


def _switch(given: dict[str, tuple[str, Any]], name: str, default: bool, problems: list[FieldProblem]) -> bool:  # noqa: FBT001 -- a value, not a flag
    key, raw = given.get(name, (name, None))
    value = coerced(raw)
    if value is None:
        return default
    if value in (0, 1):
        return bool(value)
    problems.append(problem(key, "wrong_type", f"{shown(raw)} is neither true nor false", "Use true or false."))
    return default


def _repo_id(
    given: dict[str, tuple[str, Any]], config: dict[str, Any], *, needed: bool, problems: list[FieldProblem]
) -> str | None:
    key, raw = given.get("hub_model_id", ("hub_model_id", None))
    if raw is None or raw == "":
        if not needed:
            return None
        folder = next((value for name, value in config.items() if bare_key(name) == "output_dir"), None)
        raw = PurePosixPath(folder).name if isinstance(folder, str) else ""
        if not raw:
            problems.append(
                problem(key, "missing", "push_to_hub needs a repository", "Set hub_model_id to owner/name.")
            )
            return None
    text = str(raw)
    if _REPO_ID.fullmatch(text) and "--" not in text and ".." not in text and not text.endswith((".git", ".ipynb")):
        return text
    advice = "Use owner/name, of letters, digits, dots, dashes and underscores."
    problems.append(problem(key, "wrong_type", f"{shown(text)} is not the name of a repository", advice))
    return None


def _note(given: dict[str, tuple[str, Any]], problems: list[FieldProblem]) -> str | None:
    key, raw = given.get("model_card_note", ("model_card_note", None))
    if raw is None or raw == "":
        return None
    if not isinstance(raw, str) or len(raw) > _MAX_NOTE_CHARS:
        message = f"a note is a text of at most {_MAX_NOTE_CHARS} characters"
        problems.append(problem(key, "wrong_type", message, "Shorten it, or remove the key."))
        return None
    return raw


def _lora_format(
    given: dict[str, tuple[str, Any]], family: str | None, problems: list[FieldProblem], *, plain_lora: bool
) -> LoraFormat:
    key, raw = given.get("lora_format", ("lora_format", None))
    value = coerced(raw)
    chosen = (
        _FORMATS.get(value.lower() if isinstance(value, str) else value) if not isinstance(value, list | dict) else None
    )
    if chosen is None:
        advice = "Use diffusers, or comfyui (kohya's key names)."
        problems.append(problem(key, "unsupported", f"{shown(raw)} is no format this build writes", advice))
        return "diffusers"
    if chosen == "kohya" and (family not in KOHYA_FAMILIES or not plain_lora):
        what = f"{family or 'a language model'}" if plain_lora else "DoRA or full tuning"
        advice = f"Use lora_format diffusers. Kohya names are written for LoRAs of {', '.join(sorted(KOHYA_FAMILIES))}."
        problems.append(problem(key, "unsupported", f"there is no known kohya layout for {what}", advice))
        return "diffusers"
    return chosen


def _targets(given: dict[str, tuple[str, Any]], problems: list[FieldProblem]) -> list[BucketTarget | FolderTarget]:
    key, raw = given.get("publishing_config", ("publishing_config", None))
    value: Any = raw
    if isinstance(raw, str) and raw.lstrip().startswith(("[", "{")):
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError):
            value = raw
    if isinstance(value, dict):
        value = [cast("object", value)]
    if coerced(value) in (None, False, "none") or value == []:
        return []
    if not isinstance(value, list):
        advice = 'Give the list itself, such as [{"provider": "s3", "bucket": "…"}]; a file name means nothing here.'
        problems.append(problem(key, "wrong_type", "a list of targets is meant here", advice))
        return []
    entries = cast("list[object]", value)
    if len(entries) > _MAX_TARGETS:
        problems.append(
            problem(key, "out_of_range", f"{len(entries)} targets are too many", f"At most {_MAX_TARGETS}.")
        )
        return []
    found = [_target(f"{key}[{index}]", entry, problems) for index, entry in enumerate(entries)]
    return [target for target in found if target is not None]


def _target(place: str, entry: object, problems: list[FieldProblem]) -> BucketTarget | FolderTarget | None:
    if not isinstance(entry, dict):
        problems.append(problem(place, "wrong_type", "a target is an object", "Give it a provider and a bucket."))
        return None
    members = {str(name): value for name, value in cast("dict[Any, Any]", entry).items()}
    before = len(problems)
    problems.extend(
        problem(f"{place}.{name}", "unknown_key", f"{name} means nothing here", "Remove it.")
        for name in sorted(members.keys() - _ENTRY_KEYS)
    )
    problems.extend(
        problem(f"{place}.{name}", "secret_in_config", "a secret may not be here", _CREDENTIALS)
        for name in ("access_key", "secret_key")
        if members.get(name)
    )
    provider = str(members.get("provider") or "").lower()
    if provider in _S3_LIKE:
        target: BucketTarget | FolderTarget | None = _bucket(place, provider, members, problems)
    elif provider in _FOLDER:
        target = _folder(place, members, problems)
    else:
        advice = _ELSEWHERE.get(provider, "Use s3, backblaze_b2, r2, minio, or local.")
        problems.append(problem(f"{place}.provider", "unsupported", f"{shown(provider)} is not built", advice))
        target = None
    return target if len(problems) == before else None


def _bucket(place: str, provider: str, members: dict[str, Any], problems: list[FieldProblem]) -> BucketTarget | None:
    bucket, region = members.get("bucket"), members.get("region") or None
    if not isinstance(bucket, str) or not _BUCKET.fullmatch(bucket):
        problems.append(problem(f"{place}.bucket", "missing", "the name of a bucket is needed", "Such as my-models."))
        return None
    if region is not None and not (isinstance(region, str) and _REGION.fullmatch(region)):
        problems.append(problem(f"{place}.region", "wrong_type", f"{shown(region)} is no region", "Such as eu-west-1."))
        return None
    prefix = str(members.get("base_path") or "").strip("/")
    if prefix and not _is_safe(prefix):
        message = f"{shown(prefix)} is no prefix of keys"
        problems.append(problem(f"{place}.base_path", "wrong_type", message, "Use names between single slashes."))
    endpoint = _endpoint(provider, members, region)
    if endpoint is None and provider not in {"s3", "aws"}:
        advice = "Give the endpoint_url that your provider names."
        problems.append(problem(f"{place}.endpoint_url", "missing", f"{provider} needs an endpoint", advice))
    for name, url in (("endpoint_url", endpoint), ("public_base_url", members.get("public_base_url") or None)):
        if url is not None and (reason := endpoint_problem(str(url))) is not None:
            # The URL may hold credentials: it is not shown.
            problems.append(problem(f"{place}.{name}", "unsupported", reason, "Use https://host, without credentials."))
    public = members.get("public_base_url") or None
    return BucketTarget(
        provider=provider, bucket=bucket, prefix=prefix, region=region, endpoint_url=endpoint,
        public_base_url=str(public).rstrip("/") if public else None,
    )  # fmt: skip


def _endpoint(provider: str, members: dict[str, Any], region: str | None) -> str | None:
    url = members.get("endpoint_url") or None
    if url is None:
        return f"https://s3.{region}.backblazeb2.com" if provider in {"backblaze_b2", "b2"} and region else None
    text = str(url).rstrip("/")
    if "://" in text:
        return text
    return f"{'http' if coerced(members.get('use_ssl')) is False else 'https'}://{text}"


def _folder(place: str, members: dict[str, Any], problems: list[FieldProblem]) -> FolderTarget | None:
    name = next((members[each] for each in ("name", "folder", "path", "base_path") if members.get(each)), None)
    if isinstance(name, str) and _is_safe(name):
        return FolderTarget(name=name)
    message = "the name of a folder is needed, below the roots that the machine allows; it is no path from /"
    problems.append(problem(f"{place}.name", "missing", message, "Such as my-models, or team/my-models."))
    return None


def _is_safe(path: str) -> bool:
    """Whether a relative path stays where it is put."""
    return _SAFE_PATH.fullmatch(path) is not None and not {"", ".", ".."} & set(path.split("/"))
