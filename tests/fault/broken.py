"""`just broken`: proof that the suites see what they are for. Each promise's guard is taken out of a copy of the tree.

The copy is a clone of the last commit in a temporary folder; the tree itself is never touched. For each mutation the
quick suites run that should catch it. First the same suites run on an unbroken copy, where none may fail. Ends with 1
when a suite fails there, or sees nothing where a guard is missing.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUITE_LIMIT_S = 600.0
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?)(?: - .*)?$", re.MULTILINE)
_VIOLATION = re.compile(r"^(?: *VIOLATION +|broken: )(.*)$", re.MULTILINE)
_SHOWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One exact replacement; the text must stand in the file exactly once."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A quick run that should fail: pytest with these arguments, or a program of ours."""

    name: str
    arguments: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """How it is started, in the copy."""
        return [sys.executable, "-m", *self.arguments]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """A guard that is taken out, and the suites that should miss it."""

    name: str
    edits: tuple[Edit, ...]
    suites: tuple[Suite, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caught:
    """What one suite said of one mutation."""

    mutation: str
    suite: str
    failed: tuple[str, ...]
    seconds: float


class MisfitError(Exception):
    """A mutation's text is no longer in the code as it is written here: bring `MUTATIONS` up to date."""


def _pytest(name: str, *arguments: str) -> Suite:
    options = ("-q", "-p", "no:cacheprovider", "--no-header", "-rfE", "--tb=no", "--show-capture=no")
    return Suite(name=name, arguments=("pytest", *options, *arguments))


_INTEGRATION = "tests/integration"
_BRIDGE_SQL = "services/provider_bridge/sql/queries.sql"
MUTATIONS = (
    Mutation(
        name="the inbox check",
        edits=(
            Edit(
                file="shared/messaging/inbox.py",
                old="(event for event in young if event.event_id not in handled)",
                new="(event for event in young)",
            ),
            Edit(
                file="shared/messaging/inbox.py",
                old='        return {row["event_id"] for row in rows}\n',
                new="        return {event.event_id for event in events} if rows is not None else set()\n",
            ),
        ),
        suites=(
            _pytest("consumer", f"{_INTEGRATION}/messaging/test_consumer.py", "-k", "redelivered or before_its_ack"),
            _pytest("windows", "tests/fault/test_windows_servers.py", "-k", "nats"),
            Suite(name="sim", arguments=("tests.sim", "--seeds", "100")),
        ),
    ),
    Mutation(
        name="the lease epoch check",
        edits=(
            Edit(
                file="services/provider_bridge/domain/attempt.py",
                old="    if command.epoch != epoch or epoch == 0:",
                new="    if epoch == 0:",
            ),
            Edit(
                file=_BRIDGE_SQL,
                old="AND epoch = $2 AND owner = $3 AND lease_until > clock_timestamp()\nFOR UPDATE;",
                new="AND $2::bigint > 0 AND owner = $3 AND lease_until > clock_timestamp()\nFOR UPDATE;",
            ),
        ),
        suites=(
            _pytest("rules", "tests/unit/provider_bridge", "tests/property/test_attempt_properties.py", "-k", "epoch"),
            _pytest("leases", f"{_INTEGRATION}/provider_bridge/test_leases.py", "-k", "paused_owner or expired"),
        ),
    ),
    Mutation(
        name="the lock that orders commits",
        edits=(
            Edit(
                file="shared/eventstore/sql/0003_appends_of_one_event.sql",
                old="    perform pg_advisory_xact_lock(7305808869232664);\n",
                new="",
            ),
        ),
        suites=(
            _pytest("log", f"{_INTEGRATION}/eventstore/test_append.py", "-k", "contending or slow_transaction"),
            _pytest("cancel", f"{_INTEGRATION}/provider_bridge/test_driving.py", "-k", "races_its_jobs_cancel"),
        ),
    ),
)


def say(text: str = "") -> None:
    """One line for the person who watches."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """0 when every suite failed on every mutation it was to catch."""
    parser = argparse.ArgumentParser(prog="just broken", description=__doc__)
    parser.add_argument("--only", default="", help="mutations whose name contains this")
    wanted = [one for one in MUTATIONS if parser.parse_args(arguments).only in one.name]
    whole = Mutation(name="nothing", edits=(), suites=tuple(suite for one in wanted for suite in one.suites))
    with tempfile.TemporaryDirectory(prefix="tw-broken-") as folder:
        Path(folder).chmod(0o711)
        results = [result for one in (whole, *wanted) for result in try_out(Path(folder) / "copy", one)]
    false_alarms = [result for result in results if result.mutation == whole.name and result.failed]
    survivors = [result for result in results if result.mutation != whole.name and not result.failed]
    tried = len(results) - len(whole.suites)
    say(f"\n{tried - len(survivors)} of {tried} suites caught what they are for; {len(false_alarms)} false alarms")
    return 1 if false_alarms or survivors or not tried else 0


def try_out(copy: Path, mutation: Mutation) -> list[Caught]:
    """Runs the mutation's suites in a fresh copy, and says what came of each."""
    clone(copy)
    apply(copy, mutation)
    say(f"\nWithout {mutation.name}:" if mutation.edits else "\nWith every guard in its place:")
    results: list[Caught] = []
    for suite in mutation.suites:
        results.append(run(copy, mutation, suite))
        _say_result(results[-1])
    shutil.rmtree(copy)
    return results


def clone(copy: Path) -> None:
    """The last commit, in a folder of its own."""
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(copy)], check=True, timeout=120)


def apply(root: Path, mutation: Mutation) -> None:
    """Takes the guard out of the tree below `root`; MisfitError when its text is not there exactly once."""
    for edit in mutation.edits:
        path = root / edit.file
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if text.count(edit.old) != 1:
            times = text.count(edit.old)
            raise MisfitError(f"{mutation.name}: stands {times} times in {edit.file}, not once:\n{edit.old}")
        path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")


def run(copy: Path, mutation: Mutation, suite: Suite) -> Caught:
    """Runs one suite in the copy; what failed there, by name."""
    began = time.monotonic()
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            suite.command, cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=SUITE_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        failed: tuple[str, ...] = (f"did not end within {SUITE_LIMIT_S:g} s",)
    else:
        failed = _failures(done) if done.returncode else ()
    return Caught(mutation=mutation.name, suite=suite.name, failed=failed, seconds=time.monotonic() - began)


def _failures(done: subprocess.CompletedProcess[str]) -> tuple[str, ...]:
    """Failed tests, or violations that a program names. A run that broke for another reason is no catch."""
    named = tuple(dict.fromkeys(_FAILED.findall(done.stdout) + _VIOLATION.findall(done.stdout)))
    if not named:
        raise MisfitError(f"the suite ended with {done.returncode} and named no failure:\n{done.stdout}{done.stderr}")
    return named


def _say_result(result: Caught) -> None:
    verdict = f"{len(result.failed)} failed" if result.failed else "all passed"
    say(f"  {result.suite:<10} {result.seconds:6.1f} s  {verdict}")
    tests = Counter(_test_of(name) for name in result.failed)
    for name, times in list(tests.items())[:_SHOWN]:
        say(f"      {name}{f' ({times} cases)' if times > 1 else ''}")
    if len(tests) > _SHOWN:
        say(f"      and {len(tests) - _SHOWN} more")


def _test_of(name: str) -> str:
    """A test without its folder and case; a violation as it was told."""
    return name.rpartition("/")[2].partition("[")[0] if name.startswith("tests/") else name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
