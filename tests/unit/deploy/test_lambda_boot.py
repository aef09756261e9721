"""The first boot of a Lambda machine, run here in a folder of its own, with stand-ins for git, docker and python."""

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from services.provider_bridge.outbound.ports import StartOrder, Tag
from services.provider_bridge.outbound.vendors.lambda_boot import Source, user_data
from shared.contracts.run import ReportLine, RunSpec
from shared.ids import new_id
from tests.simulators.faults import Simulator
from tests.simulators.loopback import Answer, Call

MARK = "77c1f0"
TOKEN = f"""it's a token; $(touch leaked) `x` "y" {MARK}"""
ENTRY = "-m trainer.entry.container"


class Gateway(Simulator):
    """Keeps what is reported to it."""

    def route(self, call: Call) -> Answer:
        return Answer(200, {"ack": len(call.body.splitlines()), "commands": []})


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as running:
        yield running


class Machine:
    """One machine: its disk, and what was called on it."""

    def __init__(self, folder: Path, gateway: Gateway) -> None:
        self.folder = folder
        self.root = folder / "opt"
        self.cloud = folder / "cloud"
        self.gateway = gateway
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.program("git", 'if [ "$1" = clone ]; then mkdir -p "$4/trainer" "$4/.venv-trainer/bin"; '
                     f'cp "{self.bin}/entry" "$4/.venv-trainer/bin/python"; fi')  # fmt: skip
        self.program("python3", "")
        self.program("curl", f'exec {shutil.which("curl")} "$@"')
        self.program("docker", f'if [ "$1" = run ]; then exec "{self.bin}/entry"; fi')
        self.entry("exit 0")

    def program(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "{self.folder}/called"\n{body}\n', encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def entry(self, body: str) -> None:
        """What stands where the trainer's entry stands; it keeps its environment and the files that it names."""
        self.program(
            "entry",
            f'env > "{self.folder}/environment"\n'
            f'cp "{self.root}/run/spec.json" "{self.root}/run/token" "{self.folder}/"\n'
            f'stat -c %a "{self.root}/run/token" > "{self.folder}/mode"\n{body}',
        )

    def boot(self, source: Source, gateway_url: str | None = None) -> tuple[StartOrder, int]:
        attempt_id = new_id()
        spec = RunSpec(
            job_id="job-1",
            attempt_id=str(attempt_id),
            attempt_number=1,
            gateway_url=gateway_url or self.gateway.url,
            config={"--prompt": "it's 5 $ `here`"},
            dataloader=[],
            output_prefix="x",
        )
        order = StartOrder(tag=Tag(attempt_id=attempt_id, epoch=1), spec=spec, token=TOKEN, max_run_s=600)
        kept = self.cloud / "instances" / "i-1"
        (kept / "scripts").mkdir(parents=True, exist_ok=True)
        script = kept / "scripts" / "part-001"
        for path in (script, kept / "user-data.txt", kept / "user-data.txt.i"):
            path.write_text(user_data(order, source), encoding="utf-8")
        env = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "TW_ROOT": str(self.root),
            "TW_CLOUD_DIR": str(self.cloud),
            "TW_TRIES": "2",
            "TW_PAUSE_S": "0",
        }
        done = subprocess.run(["bash", str(script)], cwd=self.folder, env=env, check=False, timeout=60)
        return order, done.returncode

    def text(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")

    @property
    def called(self) -> list[str]:
        return self.text("called").splitlines()


@pytest.fixture
def machine(tmp_path: Path, gateway: Gateway) -> Machine:
    return Machine(tmp_path, gateway)


FROM_GIT = Source(git_url="https://git.example/tunewright.git", git_revision="v1.2")
FROM_IMAGE = Source(container_image="someone/tunewright:1")


@pytest.mark.parametrize("source", [FROM_GIT, FROM_IMAGE], ids=["git", "image"])
def test_the_entry_is_given_spec_and_token_in_private_files(machine: Machine, source: Source) -> None:
    order, code = machine.boot(source)
    assert code == 0
    assert msgspec.json.decode(machine.text("spec.json"), type=RunSpec) == order.spec
    assert machine.text("token") == TOKEN
    assert machine.text("mode").strip() == "600"
    assert machine.gateway.calls == [], "what has begun reports by itself"


def test_code_from_git_is_taken_at_its_revision_with_its_locked_environment(machine: Machine) -> None:
    machine.boot(FROM_GIT)
    code = machine.root / "code"
    assert machine.called[:4] == [
        f"git clone --quiet https://git.example/tunewright.git {code}",
        f"git -C {code} checkout --quiet v1.2",
        f"python3 {code}/trainer/setup_env.py",
        f"entry {ENTRY}",
    ]
    given = dict(line.split("=", 1) for line in machine.text("environment").splitlines() if line.startswith("TUNE"))
    assert given == {
        "TUNEWRIGHT_RUN_SPEC_FILE": f"{machine.root}/run/spec.json",
        "TUNEWRIGHT_ATTEMPT_TOKEN_FILE": f"{machine.root}/run/token",
        "TUNEWRIGHT_GATEWAY_URL": machine.gateway.url,
        "TUNEWRIGHT_MAX_RUN_S": "600",
        "TUNEWRIGHT_WORK_DIR": f"{machine.root}/work",
        "TUNEWRIGHT_AT_END": "exit",
    }


def test_an_image_is_pulled_and_run_with_the_same_settings(machine: Machine) -> None:
    machine.boot(FROM_IMAGE)
    pulled, run, *_ = machine.called
    assert pulled == "docker pull --quiet someone/tunewright:1"
    assert run.startswith("docker run --rm")
    assert f"--env TUNEWRIGHT_RUN_SPEC_FILE={machine.root}/run/spec.json" in run
    assert f"--volume {machine.root}:{machine.root}" in run
    assert run.endswith(f"someone/tunewright:1 {ENTRY}")


@pytest.mark.parametrize("source", [FROM_GIT, FROM_IMAGE], ids=["git", "image"])
def test_the_token_is_in_no_argument_no_environment_and_no_file_afterwards(machine: Machine, source: Source) -> None:
    machine.boot(source)
    (machine.folder / "token").unlink()  # the stand-in's own copy
    assert not (machine.folder / "leaked").exists()
    for path in machine.folder.rglob("*"):
        assert path.is_dir() or MARK not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize(
    ("program", "source"),
    [("git", FROM_GIT), ("python3", FROM_GIT), ("docker", FROM_IMAGE)],
    ids=["git", "env", "pull"],
)
def test_a_machine_that_cannot_fetch_the_trainer_tells_the_gateway(
    machine: Machine, program: str, source: Source
) -> None:
    if program == "python3":
        machine.program(program, "exit 1")
    else:
        machine.program(program, "exit 128")
    machine.gateway.next_.append("500 before")
    order, code = machine.boot(source)
    assert code == 1
    [_, told] = machine.gateway.calls
    assert told.path == f"/api/v1/attempts/{order.spec.attempt_id}/events"
    assert told.headers["authorization"] == f"Bearer {TOKEN}"
    assert told.headers["content-type"] == "application/x-ndjson"
    line = msgspec.json.decode(told.body, type=ReportLine)
    assert (line.type, line.seq, line.attempt, line.job) == ("failed", 1, order.spec.attempt_id, "job-1")
    assert line.data["kind"] == "unreachable"
    assert "could not fetch" in line.data["message"]
    assert any(call.startswith("curl ") for call in machine.called)
    assert MARK not in machine.text("called")


def test_an_entry_that_ends_before_the_trainer_began_is_told(machine: Machine) -> None:
    machine.entry("exit 64")
    _, code = machine.boot(FROM_GIT)
    assert code == 64
    [told] = machine.gateway.calls
    assert "ended with 64" in json.loads(told.body)["data"]["message"]


def test_a_trainer_that_has_begun_is_left_to_report_by_itself(machine: Machine) -> None:
    machine.entry('mkdir -p "$TUNEWRIGHT_WORK_DIR/a"; echo "{}" > "$TUNEWRIGHT_WORK_DIR/a/events.jsonl"; exit 70')
    _, code = machine.boot(FROM_GIT)
    assert code == 70
    assert machine.gateway.calls == []
