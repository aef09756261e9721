"""The last full run as files: `docs/benchmarks.json` for programs, a table in `docs/benchmarks.md` for people."""

from pathlib import Path

import msgspec

from tests.bench.bench import Result, figure
from tests.bench.machine import Control, Machine

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
DATA = ROOT / "docs" / "benchmarks.json"
BEGIN = "<!-- figures: written by `just bench --write` -->"
END = "<!-- end of figures -->"


class Run(msgspec.Struct, kw_only=True):
    """One benchmark's last written run."""

    title: str
    measured_at: str
    commit: str
    seconds: float
    stolen_percent: float | None = None
    """Of the processors' time, what the host gave to others meanwhile."""
    before: Control | None = None
    after: Control | None = None
    software: str = ""
    """What else the figures depend on, where it is not the machine's."""
    results: list[Result]


class Report(msgspec.Struct, kw_only=True):
    """Everything that is kept: a benchmark that was not run keeps its old figures and their date."""

    machine: Machine
    runs: dict[str, Run]


def kept_machine(data: Path = DATA) -> Machine:
    """The machine of the last written run."""
    return msgspec.json.decode(data.read_bytes(), type=Report).machine


def write(machine: Machine, runs: dict[str, Run], *, page: Path = PAGE, data: Path = DATA) -> None:
    """Puts the runs in the place of their predecessors, in both files."""
    kept = msgspec.json.decode(data.read_bytes(), type=Report).runs if data.exists() else {}
    report = Report(machine=machine, runs=dict(sorted({**kept, **runs}.items())))
    data.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    before, found, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"{page.name} lacks the line {BEGIN if not found else END}")
    page.write_text(f"{before}{BEGIN}\n\n{render(report)}\n{END}{after}", encoding="utf-8")


def render(report: Report) -> str:
    """The machine and one table for each benchmark, as Markdown."""
    machine = report.machine
    packages = ", ".join(f"{name} {number}" for name, number in machine.packages.items())
    hardware = f"{machine.cores} cores of {machine.cpu}, {machine.memory_gib:g} GiB, {machine.filesystem}"
    software = f"{machine.kernel}, Python {machine.python}, PostgreSQL {machine.postgres}, {packages}"
    lines = [f"Machine: {hardware}; {software}.", ""]
    for name, run in report.runs.items():
        lines += [f"### {name[0]}. {run.title}", "", *_table(run.results), "", _footnote(run), ""]
    return "\n".join(lines)


def _table(results: list[Result]) -> list[str]:
    rows = ["| figure | ours | limit or peer | ratio | target | |", "|---|---|---|---|---|---|"]
    for one in results:
        spread = f" ({figure(one.least)} to {figure(one.most)})" if one.rounds > 1 else ""
        limit = "" if one.limit is None else f"{figure(one.limit)} {one.limit_is}".strip()
        ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
        met = {None: "", True: "met", False: "**missed**"}[one.met]
        name = f"{one.name}: {one.note}" if one.note else one.name
        rows.append(f"| {name} | {figure(one.value)} {one.unit}{spread} | {limit} | {ratio} | {one.target} | {met} |")
    return rows


def _footnote(run: Run) -> str:
    def felt(control: Control) -> str:
        return (
            f"load {control.load_1m:g}, {figure(control.select_1_per_s)} `select 1`/s, "
            f"{figure(control.fdatasync_per_s)} fdatasync/s"
        )

    stolen = "" if run.stolen_percent is None else f", {run.stolen_percent:.0f} % of the processors stolen by the host"
    parts = [f"{run.measured_at}, commit {run.commit}, {run.seconds:.0f} s{stolen}."]
    if run.before is not None and run.after is not None:
        parts.append(f"Control before: {felt(run.before)}; after: {felt(run.after)}.")
    return " ".join([*parts, run.software]).rstrip()
