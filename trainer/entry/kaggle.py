"""Kaggle: write the kernel (one script and its metadata) that runs one job, ready for `kaggle kernels push`.

`python -m trainer.entry.kaggle FOLDER --owner USER --title TITLE --input FILE`. Kaggle has no cancel, no environment
and no secrets by API: the run stops when the gateway says so in an answer to a report, its token stands in the script
(every saved version shows it, so kernels are private and tokens live as long as the attempt), and it ends itself
before Kaggle does.
"""

import argparse
import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_TEMPLATE = Path(__file__).with_name("kaggle_kernel.py")
_JOB_LINE = 'JOB = "{}"'
_SHORTEST_SLUG = 5
_LONGEST_TITLE = 50
SESSION_S = 9 * 3600
"""The shortest session limit that people report, in seconds."""
_MARGIN_S = 900
_GRACE_S = 600
WORKING = "/kaggle/working/tunewright"


@dataclass(frozen=True, kw_only=True)
class KernelJob:
    """What the kernel runs. `source` is `{"folder": ...}` or `{"git": url, "revision": branch or tag}`."""

    input: dict[str, Any]
    source: dict[str, str]
    packages: str = "locks"
    """`locks`, or a Python that has the trainer's packages; empty for the one that Kaggle runs."""
    work_dir: str = ""
    """Results stay there as the kernel's output; empty when a gateway takes them."""
    max_run_s: float = SESSION_S - _MARGIN_S
    grace_s: float = _GRACE_S


def kernel_script(job: KernelJob) -> str:
    """The script with the job in it."""
    text = _TEMPLATE.read_text(encoding="utf-8")
    if text.count(_JOB_LINE) != 1:
        raise ValueError(f"{_TEMPLATE.name} has no line {_JOB_LINE}")
    return text.replace(_JOB_LINE, f"JOB = {json.dumps(asdict(job))!r}")


def kernel_metadata(owner: str, title: str, datasets: list[str], *, gpu: bool = True) -> dict[str, Any]:
    """`kernel-metadata.json`. Raises ValueError for a title from which Kaggle would make another kernel."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    if not _SHORTEST_SLUG <= len(slug) <= _LONGEST_TITLE or len(title) > _LONGEST_TITLE:
        raise ValueError(f"the title {title!r} needs {_SHORTEST_SLUG} to {_LONGEST_TITLE} letters and digits")
    return {
        "id": f"{owner}/{slug}",
        "title": title,
        "code_file": "kernel.py",
        "language": "python",
        "kernel_type": "script",
        "is_private": True,
        "enable_gpu": gpu,
        "enable_tpu": False,
        "enable_internet": True,
        **({"machine_shape": "NvidiaTeslaT4"} if gpu else {}),
        "dataset_sources": datasets,
        "competition_sources": [],
        "kernel_sources": [],
        "model_sources": [],
    }


def write_kernel(folder: Path, job: KernelJob, metadata: dict[str, Any]) -> None:
    """The folder that `kaggle kernels push -p` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernel-metadata.json").write_text(json.dumps(metadata, indent=1), encoding="utf-8")
    script = folder / str(metadata["code_file"])
    script.touch(mode=0o600)
    script.write_text(kernel_script(job), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Command line. The token comes from a file: arguments are visible to everyone on the machine."""
    parser = argparse.ArgumentParser(prog="python -m trainer.entry.kaggle", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--owner", required=True, help="the Kaggle user")
    parser.add_argument("--title", required=True)
    parser.add_argument("--input", type=Path, required=True, help="the entry's input as JSON")
    parser.add_argument("--token-file", type=Path, help="the attempt's token, for an input with run_spec")
    parser.add_argument("--git", help="where the kernel clones Tunewright from")
    parser.add_argument("--revision", default="main")
    parser.add_argument("--dataset", action="append", default=[], help="USER/SLUG of an input dataset")
    parser.add_argument("--source-folder", default="/kaggle/input", help="where the trainer lies, without --git")
    parser.add_argument("--packages", default="locks")
    parser.add_argument("--work-dir", help="default: the kernel's output folder, or none with a gateway")
    parser.add_argument("--max-run-s", type=float, default=SESSION_S - _MARGIN_S)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args(arguments)
    given: dict[str, Any] = json.loads(options.input.read_text(encoding="utf-8"))
    if options.token_file is not None:
        given["token"] = options.token_file.read_text(encoding="utf-8").strip()
    run_spec: dict[str, Any] = given.get("run_spec") or {}
    reports = bool(run_spec.get("gateway_url"))
    job = KernelJob(
        input=given,
        source={"git": options.git, "revision": options.revision} if options.git else {"folder": options.source_folder},
        packages=options.packages,
        work_dir=options.work_dir if options.work_dir is not None else "" if reports else WORKING,
        max_run_s=options.max_run_s,
    )
    write_kernel(
        options.folder, job, kernel_metadata(options.owner, options.title, options.dataset, gpu=not options.cpu)
    )
    sys.stdout.write(f"kaggle kernels push -p {options.folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
