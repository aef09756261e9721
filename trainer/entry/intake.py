"""From a provider's input to an `Order`: one place for every provider, so that a job means the same everywhere.

Two forms. The control plane's own: `{"run_spec": {...}, "token": "..."}`, reported to its gateway; a `label` beside it
is for the control plane to know its run by in the provider's lists, and means nothing here. And a job that
brings everything along: `dataset_url` or `dataset_files`, `config` in any spelling that the control plane takes,
`dataloader` as an object or a list; its outputs stay with the entry, which hands them over in the provider's way.
"""

import base64
import binascii
import difflib
import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import msgspec

from shared.contracts.run import RunSpec
from trainer.archives import ArchiveLimits, is_archive, unpack_safely
from trainer.control import Control
from trainer.downloads import Downloader, DownloadRules
from trainer.entry.child import Order
from trainer.entry.dialects import completed_config, completed_dataloader
from trainer.failures import AttemptFailed
from trainer.files import sha256_of

_MEMBERS = frozenset(
    {"run_spec", "token", "label", "dataset_url", "dataset_files", "config", "dataloader", "job_id", "max_run_s"}
)
_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_TEXTS = frozenset({".txt", ".caption", ".json", ".jsonl", ".csv", ".parquet"})
DATASET_SUFFIXES = _PICTURES | _TEXTS
"""The kinds of files a dataset is made of; nothing else is written to disk."""
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DATA_URI = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
_MAX_LISTED_FILES = 10_000
_SOURCES_NAME = "dataset-sources.sha256"


@dataclass(frozen=True, kw_only=True)
class IntakeRules:
    """What this machine's operator allows, and where runs work."""

    work_root: Path
    downloads: DownloadRules
    archives: ArchiveLimits


@dataclass(frozen=True)
class TakenIn:
    """An order with what the user should know about how the input was read."""

    order: Order
    notes: list[str]


def take_in(
    given: dict[str, Any], job_id: str, rules: IntakeRules, control: Control, brought: Path | None = None
) -> TakenIn:
    """Read an input and bring its dataset here. Raises AttemptFailed naming the member that is wrong.

    `job_id` is the provider's name for the job, used unless the input brings one. A repeat under the same name works
    in the same folder and so goes on from its checkpoints. `brought` is a dataset file that the provider has fetched.
    """
    _check_members(given)
    if given.get("run_spec") is not None:
        return TakenIn(_own_form(given, rules), [])
    chosen = str(given.get("job_id") or job_id)
    if not _JOB_ID.fullmatch(chosen):
        raise _bad("job_id", f"{chosen[:60]!r} is not a name", "Use letters, digits, dot, dash and underscore.")
    work_dir = rules.work_root / chosen
    folder = work_dir / "dataset"
    notes = _bring_dataset(_sources(given), brought, folder, rules, control)
    config = completed_config(_object(given, "config"))
    dataloader = completed_dataloader(given.get("dataloader"), folder)
    spec = RunSpec(
        job_id=chosen,
        attempt_id=chosen,
        attempt_number=1,
        gateway_url=None,
        config=config,
        dataloader=dataloader,
        output_prefix=chosen,
    )
    return TakenIn(Order(spec=spec, work_dir=work_dir, max_run_s=_max_run_s(given)), notes)


def _own_form(given: dict[str, Any], rules: IntakeRules) -> Order:
    try:
        spec = msgspec.convert(given["run_spec"], RunSpec)
    except msgspec.ValidationError as error:
        raise _bad("run_spec", str(error), "The control plane writes it; start the attempt again.") from error
    if not _JOB_ID.fullmatch(spec.attempt_id):
        raise _bad("run_spec.attempt_id", "it is not a name", "The control plane writes it.")
    if spec.gateway_url is not None and urlsplit(spec.gateway_url).scheme not in {"http", "https"}:
        raise _bad("run_spec.gateway_url", "it is not an http or https URL", "Set the gateway's public address.")
    token = given.get("token") or ""
    if spec.gateway_url is not None and not (isinstance(token, str) and token):
        raise _bad("token", "a run that reports to a gateway needs the attempt's token", "Send it beside run_spec.")
    return Order(spec=spec, work_dir=rules.work_root / spec.attempt_id, token=str(token), max_run_s=_max_run_s(given))


def _check_members(given: dict[str, Any]) -> None:
    for name in given:
        if name not in _MEMBERS:
            near = difflib.get_close_matches(name, _MEMBERS, 1)
            advice = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(sorted(_MEMBERS))}."
            raise _bad(name, "this member is not known", advice)
    clash = sorted({"config", "dataloader", "dataset_url", "dataset_files"} & given.keys())
    if given.get("run_spec") is not None and any(given[name] for name in clash):
        raise _bad("run_spec", f"it says everything; {clash[0]} cannot stand beside it", "Send one of the two forms.")


def _object(given: dict[str, Any], name: str) -> dict[str, Any]:
    value = given.get(name)
    if not isinstance(value, dict) or not value:
        raise _bad(name, "an object with at least one key is needed", "See docs/provider-entries.md for an example.")
    return cast("dict[str, Any]", value)


def _max_run_s(given: dict[str, Any]) -> float | None:
    value = given.get("max_run_s")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise _bad("max_run_s", "a number of seconds above 0 is needed", "Leave it out for no limit.")
    return float(value)


def _bring_dataset(
    sources: list[tuple[str, str]], brought: Path | None, folder: Path, rules: IntakeRules, control: Control
) -> list[str]:
    """Fill `folder` from what the input names; the folder appears only when it is whole.

    A repeat with the same sources keeps what is there; other sources replace it.
    """
    named, known = folder.with_name(_SOURCES_NAME), _fingerprint(sources, brought)
    if not (sources or brought):
        return []
    if folder.is_dir() and named.exists() and named.read_text(encoding="ascii") == known:
        return []
    scratch = folder.with_name(".dataset-arriving")
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "files").mkdir(parents=True)
    downloader = Downloader(rules.downloads, control)
    skipped: list[str] = []
    try:
        for number, (name, source) in enumerate(sources):
            arrived = scratch / f"arrived-{number}"
            if (match := _DATA_URI.match(source)) is not None:
                _decode(source[match.end() :], name, arrived)
            elif _is_url(source):
                downloader.fetch(source, arrived)
            else:
                _decode(source, name, arrived)
            skipped += _place(arrived, name, scratch / "files", rules.archives)
        if brought is not None:
            skipped += _place(brought, brought.name, scratch / "files", rules.archives)
    finally:
        downloader.close()
    if not any(path.is_file() for path in (scratch / "files").rglob("*")):
        raise AttemptFailed(
            "bad_data",
            "the dataset holds no picture and no text file",
            f"Pack files of these kinds: {', '.join(sorted(DATASET_SUFFIXES))}.",
        )
    shutil.rmtree(folder, ignore_errors=True)
    (scratch / "files").rename(folder)
    named.write_text(known, encoding="ascii")
    shutil.rmtree(scratch)
    few = 5
    return [f"{len(skipped)} files of other kinds were left out: {', '.join(skipped[:few])}"] if skipped else []


def _fingerprint(sources: list[tuple[str, str]], brought: Path | None) -> str:
    digest = hashlib.sha256(msgspec.json.encode(sources))
    if brought is not None:
        digest.update(sha256_of(brought).encode())
    return digest.hexdigest()


def _sources(given: dict[str, Any]) -> list[tuple[str, str]]:
    """(file name, URL or base64) of everything to bring."""
    urls: Any = given.get("dataset_url") or []
    urls = [urls] if isinstance(urls, str) else urls
    files: Any = given.get("dataset_files") or []
    if not isinstance(urls, list) or not isinstance(files, list):
        raise _bad("dataset_files", "a list is needed", "List URLs, or objects with name and data or url.")
    found: list[tuple[str, str]] = []
    listed = [("dataset_url", each) for each in cast("list[Any]", urls)]
    listed += [("dataset_files", each) for each in cast("list[Any]", files)]
    if len(listed) > _MAX_LISTED_FILES:
        raise _bad("dataset_files", f"more than {_MAX_LISTED_FILES} files are listed", "Pack them into one archive.")
    for index, (member, each) in enumerate(listed):
        if isinstance(each, str) and _is_url(each):
            found.append((PurePosixPath(unquote(urlsplit(each).path)).name or f"file-{index}", each))
        elif isinstance(each, dict) and member == "dataset_files":
            found.append(_named_file(cast("dict[str, Any]", each), index))
        else:
            advice = "Use an http, https or s3 URL, or an object with name and data (base64) or url."
            raise _bad(f"{member}[{index}]", "this is neither a URL nor a named file", advice)
    return found


def _named_file(each: dict[str, Any], index: int) -> tuple[str, str]:
    name, url, data = each.get("name"), each.get("url"), each.get("data")
    place = f"dataset_files[{index}]"
    if url and not (isinstance(url, str) and _is_url(url)):
        raise _bad(f"{place}.url", "it is not an http, https or s3 URL", "Correct it.")
    if bool(url) == bool(data) or not isinstance(url or data, str):
        raise _bad(place, "one of data (base64) and url is needed", "Give exactly one.")
    path = PurePosixPath(str(name or PurePosixPath(unquote(urlsplit(str(url)).path)).name))
    if path.is_absolute() or ".." in path.parts or "\\" in str(path) or not path.name:
        raise _bad(f"{place}.name", f"{str(name)[:60]!r} is not a file name", "Use a name inside the dataset.")
    return str(path), str(url or data)


def _is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://", "s3://"))


def _decode(text: str, name: str, target: Path) -> None:
    try:
        target.write_bytes(base64.b64decode(text, validate=True))
    except binascii.Error as error:
        raise _bad(f"dataset_files: {name}", f"its data is not base64: {error}", "Encode the file again.") from error


def _place(arrived: Path, name: str, folder: Path, limits: ArchiveLimits) -> list[str]:
    """Unpack an archive, or move a single file to its name; returns what was left out."""
    if is_archive(arrived):
        return unpack_safely(arrived, folder, limits, DATASET_SUFFIXES)
    target = folder / name
    if target.suffix.lower() not in DATASET_SUFFIXES:
        kinds = ", ".join(sorted(DATASET_SUFFIXES))
        message = f"{name} is neither an archive (zip, tar, tar.gz) nor one of {kinds}"
        raise AttemptFailed("bad_data", message, "Pack the dataset as zip or tar and submit again.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(arrived, target)
    return []


def _bad(member: str, message: str, advice: str) -> AttemptFailed:
    return AttemptFailed("bad_config", f"input.{member}: {message}", advice)
