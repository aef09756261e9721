"""artifacts ls and get: what a job made, brought home whole or not at all."""

import hashlib
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from cyclopts import App, Parameter
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from services.cli.exit_codes import DONE
from services.cli.failures import CliError, Place
from services.cli.options import Session
from services.cli.terminal import clean, size

APP = App(name="artifacts", help="List and fetch the files a job made.")
TRIES = 4
PARTIAL_CONTENT = 206


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """One stored file; `name` is its path below the job's folder."""

    name: str
    bucket: str
    object_key: str
    size_bytes: int
    sha256: str
    content_type: str = ""
    stored_at: str = ""


class _Broken(Exception):  # noqa: N818 - a state of the link, not an error of ours
    """The link broke; what came is kept and the download goes on from there."""


@APP.command
def ls(job: str, *, session: Session) -> int:
    """List the stored files of a job.

    :param job: id of the job, or the beginning of it.
    """
    found = artifacts_of(session, session.job_id(job))
    if session.terminal.as_json:
        session.terminal.json({"artifacts": found})
        return DONE
    rows = [
        (file.name, str(file.size_bytes) if session.terminal.is_pipe else size(file.size_bytes), file.sha256)
        for file in found
    ]
    session.terminal.rows(("NAME", "SIZE", "SHA256"), rows)
    return DONE


@APP.command
def get(
    job: str,
    *names: str,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path(),
    session: Session,
) -> int:
    """Fetch files of a job and check their digests. Going on after a break is automatic.

    :param job: id of the job, or the beginning of it.
    :param names: names, last parts of names, or patterns such as '*.safetensors'; all files if none is given.
    :param output: the directory to put them in; it is made if it is not there.
    """
    job_id = session.job_id(job)
    wanted = _chosen(artifacts_of(session, job_id), names)
    targets = [(file, target_of(output, file)) for file in wanted]
    fetch_all(session, targets)
    if session.terminal.as_json:
        listed = [
            {"name": file.name, "path": str(path), "size_bytes": file.size_bytes, "sha256": file.sha256}
            for file, path in targets
        ]
        session.terminal.json({"job_id": job_id, "files": listed})
    else:
        for _, path in targets:
            session.terminal.line(str(path))
    return DONE


def fetch_all(session: Session, targets: Sequence[tuple[Artifact, Path]]) -> None:
    """Puts every file at its target, with a bar for each on a terminal; what is there whole is left alone."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=session.terminal.err,
        disable=not session.terminal.err.is_terminal,
    ) as bars:
        for file, target in targets:
            fetch(session, file, target, bars, bars.add_task(clean(file.name), total=file.size_bytes))


def fetch(session: Session, file: Artifact, target: Path, bars: Progress, task: TaskID) -> None:
    """Puts the file at `target` once every byte is there and the digest is right; a whole one is left alone.

    Raises:
        CliError: the digest stays wrong, or the link stays broken.
    """
    if target.is_file() and target.stat().st_size == file.size_bytes and _digest(target) == file.sha256:
        bars.update(task, completed=file.size_bytes)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{file.sha256[:12]}.part")
    for _ in range(TRIES):
        try:
            _go_on(session, file, part, bars, task)
        except _Broken:
            continue
        if _digest(part) == file.sha256:
            _move_into_place(part, target)
            return
        part.unlink()
        bars.reset(task)
    raise CliError(
        f"{file.name} could not be fetched whole in {TRIES} tries",
        advice="Run the command again: it goes on where it stopped."
        if part.exists()
        else "The stored bytes are damaged.",
    )


def _go_on(session: Session, file: Artifact, part: Path, bars: Progress, task: TaskID) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have >= file.size_bytes and part.exists():
        return
    place = f"/api/cloud/storage/{quote(file.bucket)}/{quote(file.object_key)}"
    try:
        with session.gateway.download(place, start=have) as response:
            resumes = response.status_code == PARTIAL_CONTENT
            bars.update(task, completed=have if resumes else 0)
            with part.open("ab" if resumes else "wb") as sink:
                for chunk in response.iter_raw():
                    sink.write(chunk)
                    bars.advance(task, len(chunk))
                sink.flush()
                os.fsync(sink.fileno())
    except CliError as error:
        if error.code == "unreachable" and part.exists():
            raise _Broken from error
        raise
    except OSError as error:
        raise CliError(f"{part} cannot be written: {error.strerror}") from error


def artifacts_of(session: Session, job_id: str) -> list[Artifact]:
    """Every stored file of a job."""
    listed: list[dict[str, Any]] = session.gateway.get(f"/api/v1/jobs/{job_id}/artifacts")["artifacts"]
    return [msgspec.convert(file, Artifact) for file in listed]


def _chosen(files: Sequence[Artifact], names: Sequence[str]) -> list[Artifact]:
    if not names:
        if not files:
            raise CliError("the job has stored no files yet")
        return list(files)
    chosen: list[Artifact] = []
    for name in names:
        found = [file for file in files if _fits(file, name)]
        if not found:
            known = [Place(where=file.name, message=size(file.size_bytes)) for file in files[:20]]
            raise CliError(f"the job has no file {name}; it has:", places=known)
        chosen += [file for file in found if file not in chosen]
    return chosen


def _fits(file: Artifact, name: str) -> bool:
    return fnmatchcase(file.name, name) or file.name.rpartition("/")[2] == name


def target_of(output: Path, file: Artifact) -> Path:
    """Where a file goes; a name that leads out of the directory is refused."""
    root = output.absolute()
    target = (root / file.name).resolve()
    if not target.is_relative_to(root.resolve()) or target == root.resolve():
        raise CliError(f"{file.name!r} leads out of {output}; nothing was fetched")
    return target


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _move_into_place(part: Path, target: Path) -> None:
    try:
        part.replace(target)
    except OSError as error:
        raise CliError(f"{target} cannot be written: {error.strerror}") from error
