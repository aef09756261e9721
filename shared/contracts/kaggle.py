"""The Kaggle kernel of one job: its script, and what its log says in the end.

Written by the bridge, which pushes it, and by `trainer.entry.kaggle`, for who pushes by hand.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

_PROGRAM = Path(__file__).with_name("kaggle_script.py")
_JOB_LINE = 'JOB = "{}"'
_EXIT_LINE = re.compile(r"^tunewright: exit code ([0-9]+)$", re.MULTILINE)
SHORTEST_SLUG = 5
LONGEST_TITLE = 50
SESSION_S = 9 * 3600
"""The shortest session limit that people report, in seconds."""
MARGIN_S = 900
"""A run ends itself so long before its session does."""
LONGEST_RUN_S = SESSION_S - MARGIN_S
_GRACE_S = 600


class KernelJob(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel runs. `source` is `{"folder": ...}` or `{"git": url, "revision": branch or tag}`."""

    input: dict[str, Any]
    source: dict[str, str]
    packages: str = "locks"
    """`locks`, or a Python that has the trainer's packages; empty for the one that Kaggle runs."""
    work_dir: str = ""
    """Results stay there as the kernel's output; empty when a gateway takes them."""
    max_run_s: float = LONGEST_RUN_S
    grace_s: float = _GRACE_S


def kernel_script(job: KernelJob) -> str:
    """The script with the job in it."""
    text = _PROGRAM.read_text(encoding="utf-8")
    if text.count(_JOB_LINE) != 1:
        raise ValueError(f"{_PROGRAM.name} has no line {_JOB_LINE}")
    return text.replace(_JOB_LINE, f"JOB = {json.dumps(msgspec.to_builtins(job))!r}")


def slug_of(title: str) -> str:
    """The slug that Kaggle makes of a title. Raises ValueError where it would make another kernel's."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    if not SHORTEST_SLUG <= len(slug) <= LONGEST_TITLE or len(title) > LONGEST_TITLE:
        raise ValueError(f"the title {title!r} needs {SHORTEST_SLUG} to {LONGEST_TITLE} letters and digits")
    return slug


def exit_code_in(log: Iterable[str]) -> int | None:
    """The trainer's exit code, as the script wrote it into its log; None for a script that did not come so far."""
    found = [int(code) for text in log for code in _EXIT_LINE.findall(text)]
    return found[-1] if found else None
