"""Runs compose.yaml for real where no image can be pulled, and puts the demo job through it.

`just compose-smoke`, as root on a Debian machine. It starts a Docker daemon of its own, builds stand-ins for the public
base images from debootstrap and the wheels under the same tags, builds our two images from their Dockerfiles, brings
everything up healthy, submits the demo job over HTTP and checks the LoRA that comes back. Work folder:
$TUNEWRIGHT_SMOKE_DIR (default /var/tmp/tunewright-smoke); the root file system in it is kept for the next run.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, cast

import httpx

ROOT = Path(__file__).resolve().parents[2]
WORK = Path(os.environ.get("TUNEWRIGHT_SMOKE_DIR", "/var/tmp/tunewright-smoke"))  # noqa: S108 - the operator's choice
GATEWAY = "http://127.0.0.1:8001"
SERVICES = ("storage", "billing", "provider-bridge", "scheduler", "gateway")
_STAND_INS = ROOT / "deploy" / "docker" / "stand_ins"
_DEBIAN = "python3,python3-venv,ca-certificates,curl,wget,libgomp1"
_BASE_TAGS = ("python:3.11-slim-bookworm", "nvidia/cuda:13.0.1-base-ubuntu24.04")
_HEALTHY_S = 180
_JOB_S = 900


def run(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
    """Runs one command with its output shown; raises CalledProcessError when it fails."""
    print("+", *command, file=sys.stderr, flush=True)  # noqa: T201 - a recipe shows what it does
    subprocess.run([str(part) for part in command], check=True, env=env, cwd=cwd)


def install_tools() -> None:
    """Debian's Docker, compose and debootstrap, if they are not there."""
    missing = [tool for tool in ("dockerd", "docker-compose", "debootstrap") if shutil.which(tool) is None]
    if missing:
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "update", "-qq", env=quiet)
        packages = ("docker.io", "docker-compose", "iptables", "debootstrap")
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages, env=quiet)


@contextlib.contextmanager
def docker_daemon() -> Generator[dict[str, str]]:
    """A Docker daemon of our own on a private socket; gives the environment that reaches it."""
    socket, pid_file = WORK / "docker.sock", WORK / "docker.pid"
    pid_file.unlink(missing_ok=True)
    command = ["dockerd", "--data-root", WORK / "docker", "--exec-root", WORK / "exec"]
    command += ["-H", f"unix://{socket}", "--pidfile", pid_file]
    with (WORK / "dockerd.log").open("wb") as log:
        daemon = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
    env = {**os.environ, "DOCKER_HOST": f"unix://{socket}", "DOCKER_BUILDKIT": "0"}
    try:
        await_condition(60, "the Docker daemon answers", lambda: _answers(env))
        yield env
    finally:
        daemon.terminate()
        daemon.wait(60)


def _answers(env: Mapping[str, str]) -> bool:
    return subprocess.run(["docker", "info"], env=env, capture_output=True, check=False).returncode == 0  # noqa: S607


def await_condition(limit_s: float, what: str, holds: Any) -> None:
    """Waits until `holds()` is true, or raises TimeoutError naming what did not happen."""
    deadline = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {limit_s:.0f} s: {what}")
        time.sleep(0.5)


def root_file_system() -> Path:
    """A minimal Debian with Python, made once."""
    tar = WORK / "rootfs.tar"
    if not tar.exists():
        folder = WORK / "rootfs"
        if not (folder / "usr/bin/python3").exists():
            run("debootstrap", "--variant=minbase", f"--include={_DEBIAN}", "bookworm", folder)
        run("tar", "-C", folder, "--exclude=./var/cache/apt/archives/*.deb", "-cf", tar, ".")
    return tar


def build_base_images(env: Mapping[str, str]) -> None:
    """Stand-ins for the public images, under their tags: this machine's CA and pip settings go into the base."""
    context = WORK / "base"
    shutil.rmtree(context, ignore_errors=True)
    (context / "wheels").mkdir(parents=True)
    os.link(root_file_system(), context / "rootfs.tar")
    authority = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    shutil.copyfile(authority, context / "ca.crt")
    for folder in os.environ.get("PIP_FIND_LINKS", "").split():
        for wheel in Path(folder).glob("*.whl"):
            shutil.copy(wheel, context / "wheels")
    shutil.copy(_STAND_INS / "base.Dockerfile", context / "Dockerfile")
    run("docker", "build", "-q", "-t", _BASE_TAGS[0], context, env=env)
    run("docker", "tag", *_BASE_TAGS, env=env)
    for name, tag in (("postgres", "postgres:18-bookworm"), ("nats", "nats:2.15-alpine")):
        recipe = _STAND_INS / f"{name}.Dockerfile"
        run("docker", "build", "-q", "--network", "host", "-t", tag, "-f", recipe, ROOT, env=env)


def build_our_images(env: Mapping[str, str], source: Path) -> None:
    """The two images of compose.yaml, from their own Dockerfiles."""
    for name in ("control-plane", "trainer"):
        recipe = source / "deploy" / "docker" / f"{name}.Dockerfile"
        run("docker", "build", "-q", "--network", "host", "-t", f"tunewright/{name}:dev", "-f", recipe, source, env=env)


def checked_out_source() -> Path:
    """What is committed, in a folder of its own, with the demo's data, base model and secrets beside compose.yaml."""
    source = WORK / "source"
    shutil.rmtree(source, ignore_errors=True)
    run("git", "clone", "-q", "--depth", "1", f"file://{ROOT}", source)
    trainer_python = ROOT / ".venv-trainer" / "bin" / "python"
    run(trainer_python, "-m", "trainer.demo_data", source / "data" / "digits", cwd=source)
    shutil.copytree(source / "trainer/fixtures/tiny-flux-digits", source / "models" / "tiny-flux-digits")
    (source / "configs").mkdir()
    run(sys.executable, "-m", "deploy.docker.environment", cwd=source)
    return source


def healthy(env: Mapping[str, str], source: Path) -> bool:
    """Whether all five service containers report healthy."""
    states: list[str] = []
    for service in SERVICES:
        found = subprocess.run(
            ["docker-compose", "ps", "-q", service],  # noqa: S607
            env=env,
            cwd=source,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        inspect = ["docker", "inspect", "-f", "{{.State.Health.Status}}", found]
        states.append(subprocess.run(inspect, env=env, capture_output=True, text=True, check=False).stdout.strip())
    print("health:", dict(zip(SERVICES, states, strict=True)), file=sys.stderr, flush=True)  # noqa: T201
    return states == ["healthy"] * len(SERVICES)


def demo_job(source: Path) -> dict[str, Any]:
    """Submits the demo job over HTTP and waits for its end; the job as the API shows it."""
    config = json.loads((source / "trainer/demo_config.json").read_text(encoding="utf-8"))
    loader = json.loads((source / "trainer/demo_dataloader.json").read_text(encoding="utf-8"))
    config["--pretrained_model_name_or_path"] = "/models/tiny-flux-digits"
    loader[0]["instance_data_dir"] = "/data/digits"
    with httpx.Client(base_url=GATEWAY, timeout=30) as http:
        body = {"config": config, "dataloader_config": loader, "tracker_run_name": "compose-smoke"}
        answer = http.post("/api/cloud/jobs/submit", params={"provider": "local"}, json=body).raise_for_status().json()
        job_id = answer["job_id"]

        def ended() -> bool:
            return bool(http.get(f"/api/cloud/jobs/{job_id}").raise_for_status().json()["job"]["is_terminal"])

        await_condition(_JOB_S, "the demo job ends", ended)
        job = http.get(f"/api/cloud/jobs/{job_id}").raise_for_status().json()["job"]
        if job["status"] != "completed":
            raise RuntimeError(f"the demo job ended as {job['status']}: {job['error_message']}")
        key = f"/api/cloud/storage/outputs/{job_id}/pytorch_lora_weights.safetensors"
        job["lora_bytes"] = len(http.get(key).raise_for_status().content)
        return cast("dict[str, Any]", job)


def main() -> int:
    """Everything, in order; exit code 0 only when the job completed and its LoRA came back."""
    if os.geteuid() != 0:
        sys.exit("compose-smoke starts a Docker daemon: run it as root on a Debian machine")
    WORK.mkdir(parents=True, exist_ok=True)
    install_tools()
    with docker_daemon() as env:
        build_base_images(env)
        source = checked_out_source()
        build_our_images(env, source)
        try:
            run("docker-compose", "up", "-d", "--no-build", env=env, cwd=source)
            await_condition(_HEALTHY_S, "five services are healthy", lambda: healthy(env, source))
            job = demo_job(source)
        finally:
            with (WORK / "compose.log").open("wb") as log:
                subprocess.run(
                    ["docker-compose", "logs", "--no-color"],  # noqa: S607
                    env=env,
                    cwd=source,
                    stdout=log,
                    stderr=log,
                    check=False,
                )
            run("docker-compose", "down", "-v", "-t", "20", env=env, cwd=source)
    print(json.dumps({name: job.get(name) for name in ("job_id", "status", "cost_usd", "lora_bytes")}, indent=2))  # noqa: T201
    return 0 if job["status"] == "completed" and job["lora_bytes"] > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
