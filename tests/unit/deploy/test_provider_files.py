"""What can be known of the providers' images without building one."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.lock_env import PINS, pins

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILES = [
    *ROOT.glob("deploy/*/Dockerfile"),
    *ROOT.glob("deploy/*/*/Dockerfile"),
    *ROOT.glob("deploy/docker/*.Dockerfile"),
]
COG: dict[str, Any] = yaml.safe_load((ROOT / "deploy/replicate/cog.yaml").read_text(encoding="utf-8"))
STAND_IN = (
    '#!/bin/sh\nprintf "%s\\n" "$0" "$@" "HF_HOME=$HF_HOME" "WORK=$TUNEWRIGHT_WORK_DIR" "AT_END=$TUNEWRIGHT_AT_END"\n'
)
OLDEST_CUDA = (12, 4)


def version(text: str) -> tuple[int, int]:
    """Major and minor."""
    major, minor, *_ = text.split(".")
    return int(major), int(minor)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_everything_an_image_copies_is_there_and_not_ignored(dockerfile: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for line in dockerfile.read_text(encoding="utf-8").splitlines():
        copied = re.match(r"COPY (?!--from)(\S+) \S+$", line)
        if copied:
            assert (ROOT / copied[1]).exists(), f"{dockerfile.name}: {line}"
            assert copied[1].split("/")[0] not in ignored, line


def test_the_runpod_image_is_on_a_cuda_base_of_the_asked_age() -> None:
    text = (ROOT / "deploy/runpod/Dockerfile").read_text(encoding="utf-8")
    base = re.search(r"nvidia/cuda:(\d+\.\d+)", text)
    assert base is not None
    assert version(base[1]) >= OLDEST_CUDA


def test_every_package_of_the_worker_has_hashes() -> None:
    text = (ROOT / "deploy/runpod/requirements.txt").read_text(encoding="utf-8")
    packages = re.split(r"\n(?=[a-z0-9])", text)
    assert len(packages) > 10
    assert all("--hash=sha256:" in package for package in packages)
    assert {"runpod==1.12.0", "msgspec==0.22.0"} <= {package.split()[0] for package in packages}


def test_cog_builds_with_our_locked_versions_and_entries_that_exist() -> None:
    assert version(COG["build"]["cuda"]) >= OLDEST_CUDA
    assert COG["build"]["gpu"] is True
    assert (ROOT / COG["build"]["python_requirements"]) == PINS
    assert PINS.read_text(encoding="utf-8") == pins(), "run trainer/lock_env.py, or write pins() there"
    for entry in ("train", "predict"):
        file, _, name = COG[entry].partition(":")
        assert re.search(rf"^(def|class) {name}\b", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture
def container(tmp_path: Path) -> Path:
    """The image's file tree, with programs that print how they were called in place of the interpreters."""
    for name in (".venv-runpod/bin/python", ".venv-trainer/bin/python"):
        program = tmp_path / name
        program.parent.mkdir(parents=True)
        program.write_text(STAND_IN, encoding="utf-8")
        program.chmod(0o755)
    script = tmp_path / "deploy" / "runpod" / "start.sh"
    script.parent.mkdir(parents=True)
    script.write_text((ROOT / "deploy/runpod/start.sh").read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def started(container: Path, *arguments: str, **environ: str) -> list[str]:
    """The lines that the program which start.sh became has printed."""
    env = {"PATH": os.environ["PATH"], "TUNEWRIGHT_VOLUME": str(container / "volume"), **environ}
    command = ["bash", str(container / "deploy" / "runpod" / "start.sh"), *arguments]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.splitlines()


def test_a_container_without_a_job_is_a_serverless_worker(container: Path) -> None:
    lines = started(container, "--rp_serve_api")
    assert lines[:3] == [
        f"{container}/.venv-runpod/bin/python",
        f"{container}/deploy/runpod/handler.py",
        "--rp_serve_api",
    ]
    assert lines[3:] == ["HF_HOME=", "WORK=", "AT_END="]


@pytest.mark.parametrize("variable", ["TUNEWRIGHT_RUN_SPEC", "TUNEWRIGHT_RUN_SPEC_BASE64", "TUNEWRIGHT_INPUT_FILE"])
def test_a_container_with_a_job_runs_it_and_ends_its_pod(container: Path, variable: str) -> None:
    lines = started(container, **{variable: "{}"})
    assert lines[:3] == [f"{container}/.venv-trainer/bin/python", "-m", "trainer.entry.container"]
    assert lines[-1] == "AT_END=terminate-runpod-pod"
    assert started(container, **{variable: "{}", "TUNEWRIGHT_AT_END": "exit"})[-1] == "AT_END=exit"


def test_a_mounted_volume_keeps_models_and_runs(container: Path) -> None:
    (container / "volume").mkdir()
    lines = started(container)
    assert f"HF_HOME={container}/volume/huggingface" in lines
    assert f"WORK={container}/volume/tunewright" in lines
    assert "HF_HOME=/elsewhere" in started(container, HF_HOME="/elsewhere")
