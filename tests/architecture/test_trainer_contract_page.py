"""docs/trainer-contract.md says all that the code says, and nothing else."""

import re
from typing import get_args

from services.gateway.domain.report_batch import MILESTONES
from services.scheduler.domain.retry_policy import AFTER_A_WHILE, AT_ONCE
from shared.contracts.run import EXIT_CODES, ExitCode, GpuFaultKind, ReportType
from tests.support.sources import ROOT
from trainer.control import COMMANDS
from trainer.gpu import GpuSample

TEXT = (ROOT / "docs" / "trainer-contract.md").read_text(encoding="utf-8")
VARIABLE = re.compile(r"[\"`](TRAINER_[A-Z_]+)[\"`]")


def _rows(section: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    part = TEXT.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_every_report_type_is_documented_and_milestones_are_marked() -> None:
    told = {row[0].strip("`* "): row[0].endswith("*") for row in _rows("Report lines")}
    assert told == {name: name in MILESTONES for name in get_args(ReportType)}


def test_every_failure_is_documented_with_its_exit_code_and_whether_it_is_tried_again() -> None:
    told = {row[0].strip("`"): (int(row[1]), row[2]) for row in _rows("Failures")}
    again = dict.fromkeys(AT_ONCE, "at once") | dict.fromkeys(AFTER_A_WHILE, "after a while")
    assert told == {kind: (code.value, again.get(kind, "no")) for kind, code in EXIT_CODES.items()}
    assert all(row[3] for row in _rows("Failures")), "each says what helps"


def test_every_exit_code_is_documented() -> None:
    codes = set(EXIT_CODES.values()) | {ExitCode.DONE, ExitCode.SUPERSEDED}
    assert codes == set(ExitCode)
    assert f"{ExitCode.DONE.value} is done, {ExitCode.SUPERSEDED.value} means" in TEXT


def test_every_gpu_fault_and_command_is_documented() -> None:
    assert {row[0].strip("`") for row in _rows("GPU faults")} == set(get_args(GpuFaultKind))
    assert {row[0].strip("`") for row in _rows("Commands")} == set(COMMANDS)


def test_every_number_of_the_gpu_is_documented() -> None:
    sample = GpuSample(1, 1, 1.0, 1, 1, 1, frozenset(), ())
    assert all(f"`{name}`" in TEXT for name in sample.numbers())


def test_every_variable_is_documented() -> None:
    told = {name for row in _rows("Environment") for name in VARIABLE.findall(row[0])}
    read = {
        name for path in (ROOT / "trainer").rglob("*.py") for name in VARIABLE.findall(path.read_text(encoding="utf-8"))
    }
    assert told == read
