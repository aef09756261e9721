"""Kaggle: write the kernel (one script and its metadata) that runs one job, ready for `kaggle kernels push`.

`python -m trainer.entry.kaggle FOLDER --owner USER --title TITLE --input FILE`. Kaggle has no cancel, no environment
and no secrets by API: the run stops when the gateway says so in an answer to a report, its token stands in the script
(every saved version shows it, so kernels are private and tokens live as long as the attempt), and it ends itself
before Kaggle does.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from shared.contracts.kaggle import LONGEST_RUN_S, KernelJob, kernel_script, slug_of

WORKING = "/kaggle/working/tunewright"


def kernel_metadata(owner: str, title: str, datasets: list[str], *, gpu: bool = True) -> dict[str, Any]:
    """`kernel-metadata.json`. Raises ValueError for a title from which Kaggle would make another kernel."""
    return {
        "id": f"{owner}/{slug_of(title)}",
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
    parser.add_argument("--max-run-s", type=float, default=LONGEST_RUN_S)
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
