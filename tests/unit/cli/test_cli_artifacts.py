"""Fetching files: whole and verified, or not at all; over links that break and from servers that lie."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import Answer, Asked, Run, Server, as_json

JOB = "01a20118-37ae-7469-8b47-45a866170181"
BODY = bytes(range(256)) * 4096
NAME = "pytorch_lora_weights.safetensors"
PLACE = f"GET /api/cloud/storage/outputs/{JOB}/{NAME}"


def an_artifact(name: str = NAME, body: bytes = BODY) -> dict[str, Any]:
    return {
        "name": name,
        "bucket": "outputs",
        "object_key": f"{JOB}/{name}",
        "size_bytes": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
    }


def listed(server: Server, *artifacts: dict[str, Any]) -> None:
    server.on(f"GET /api/v1/jobs/{JOB}/artifacts", as_json({"artifacts": artifacts}))


def ranged(asked: Asked) -> Answer:
    start = int(asked.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
    return Answer(206 if start else 200, BODY[start:])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_is_fetched_and_its_path_printed(server: Server, run: Run, tmp_path: Path) -> None:
    listed(server, an_artifact(), an_artifact("checkpoint-5/model.safetensors"))
    server.on(PLACE, ranged)
    ended = run("artifacts", "get", JOB, NAME, "-o", str(tmp_path / "out"))
    assert (ended.code, ended.out) == (0, f"{tmp_path / 'out' / NAME}\n")
    assert (tmp_path / "out" / NAME).read_bytes() == BODY
    assert files(tmp_path / "out") == [NAME]


def test_a_broken_link_is_resumed_where_it_broke(server: Server, run: Run, tmp_path: Path) -> None:
    listed(server, an_artifact())
    server.on(PLACE, Answer(200, BODY, cut_after=300_000), ranged)
    ended = run("artifacts", "get", JOB, "-o", str(tmp_path))
    assert ended.code == 0, ended.err
    assert (tmp_path / NAME).read_bytes() == BODY
    resumed_at = server.requests(PLACE)[1].headers["Range"]
    assert resumed_at != "bytes=0-"


def test_a_run_that_was_ended_is_resumed_by_the_next(server: Server, run: Run, tmp_path: Path) -> None:
    listed(server, an_artifact())
    server.on(PLACE, Answer(200, BODY, cut_after=300_000), Answer(206, cut_after=0))
    first = run("artifacts", "get", JOB, "-o", str(tmp_path))
    assert first.code == 1
    assert not (tmp_path / NAME).exists()
    server.on(PLACE, ranged)
    assert run("artifacts", "get", JOB, "-o", str(tmp_path)).code == 0
    assert files(tmp_path) == [NAME]
    assert server.requests(PLACE)[-1].headers["Range"] != "bytes=0-"


def test_damaged_bytes_never_get_the_files_name(server: Server, run: Run, tmp_path: Path) -> None:
    listed(server, an_artifact())
    server.on(PLACE, Answer(200, bytes(len(BODY))))
    ended = run("artifacts", "get", JOB, "-o", str(tmp_path), "--json")
    assert (ended.code, ended.out) == (1, "")
    assert files(tmp_path) == []


def test_a_file_that_is_there_whole_is_not_fetched_again(server: Server, run: Run, tmp_path: Path) -> None:
    listed(server, an_artifact())
    (tmp_path / NAME).write_bytes(BODY)
    ended = run("artifacts", "get", JOB, "-o", str(tmp_path), "--json")
    assert ended.json()["files"][0]["sha256"] == hashlib.sha256(BODY).hexdigest()
    assert server.requests(PLACE) == []


@pytest.mark.parametrize("name", ["../escape", "/etc/escape", "a/../../escape", ".", ""])
def test_a_name_that_leads_out_of_the_directory_is_refused(server: Server, run: Run, tmp_path: Path, name: str) -> None:
    listed(server, an_artifact(), an_artifact(name))
    server.on(PLACE, ranged)
    ended = run("artifacts", "get", JOB, "-o", str(tmp_path / "out"))
    assert ended.code == 1
    assert files(tmp_path) == []


def test_names_patterns_and_last_parts_choose_files(server: Server, run: Run, tmp_path: Path) -> None:
    other = an_artifact("checkpoint-5/model.safetensors")
    listed(server, an_artifact(), other, an_artifact("samples/1.png"))
    server.on(PLACE, ranged)
    server.on(f"GET /api/cloud/storage/outputs/{JOB}/checkpoint-5/model.safetensors", ranged)
    assert run("artifacts", "get", JOB, "*.safetensors", "model.safetensors", "-o", str(tmp_path)).code == 0
    assert files(tmp_path) == ["checkpoint-5/model.safetensors", NAME]
    missing = run("artifacts", "get", JOB, "nothing", "-o", str(tmp_path))
    assert missing.code == 1
    assert "samples/1.png" in missing.err


def test_ls_as_json_and_as_lines(server: Server, run: Run) -> None:
    listed(server, an_artifact())
    assert run("artifacts", "ls", JOB, "--json").json()["artifacts"][0]["name"] == NAME
    assert run("artifacts", "ls", JOB).out.split("\t")[:2] == [NAME, str(len(BODY))]
