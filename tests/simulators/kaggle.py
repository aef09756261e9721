"""Kaggle's kernels on loopback: takes what the vendor's client pushes, and runs a pushed script as a session would."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.simulators.loopback import Answer, Call, Loopback

_SERVICE = "/v1/kernels.KernelsApiService/"
ENVIRONMENT = {"KAGGLE_USERNAME": "someone", "KAGGLE_KEY": "0123456789abcdef0123456789abcdef"}


@dataclass
class KernelVersion:
    """One pushed version of a kernel and its session."""

    pushed: dict[str, Any]
    number: int
    status: str = "QUEUED"
    exit_code: int | None = None
    log: str = ""


class Kaggle(Loopback):
    """One account."""

    def __init__(self) -> None:
        super().__init__(self._route)
        self.kernels: dict[str, list[KernelVersion]] = {}
        self.refusal = ""
        """What SaveKernel answers as its error; a full set of sessions, for example."""

    def client_program(self, code: str) -> str:
        """A program for the vendor's interpreter: `api` is an authenticated client that speaks to this server."""
        return (
            "import json, kagglesdk.kaggle_env as env\n"
            f"env._env_to_endpoint[env.KaggleEnv.PROD] = {self.url!r}\n"
            "from kaggle.api.kaggle_api_extended import KaggleApi\n"
            f"api = KaggleApi(); api.authenticate()\n{code}"
        )

    def execute(self, slug: str, python: str, env: dict[str, str], folder: Path) -> KernelVersion:
        """Run the newest version's script to its end, with nothing of ours in its environment but `env`."""
        version = self.kernels[slug][-1]
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / "script.py"
        script.write_text(version.pushed["text"], encoding="utf-8")
        version.status = "RUNNING"
        done = subprocess.run([python, str(script)], cwd=folder, env=env, check=False, capture_output=True, text=True)
        script.unlink()
        version.exit_code = done.returncode
        version.status = "COMPLETE" if done.returncode == 0 else "ERROR"
        version.log = done.stdout + done.stderr
        return version

    def _route(self, call: Call) -> Answer:
        if not call.headers.get("authorization", "").startswith("Basic "):
            return Answer(401, {"code": 401, "message": "Unauthenticated"})
        method = call.path.removeprefix(_SERVICE)
        body = call.json()
        if method == "SaveKernel":
            return self._save(body)
        version = self.kernels.get(f"{body.get('userName')}/{body.get('kernelSlug')}", [None])[-1]
        if version is None:
            return Answer(404, {"code": 404, "message": "Not found"})
        if method == "GetKernelSessionStatus":
            return Answer(200, {"status": version.status})
        if method == "ListKernelSessionOutput":
            line = {"stream_name": "stdout", "time": 1.0, "data": version.log}
            return Answer(200, {"files": [], "log": json.dumps([line])})
        return Answer(404, {"code": 404, "message": method})

    def _save(self, body: dict[str, Any]) -> Answer:
        if self.refusal:
            return Answer(200, {"error": self.refusal})
        versions = self.kernels.setdefault(body["slug"], [])
        versions.append(KernelVersion(body, len(versions) + 1))
        url = f"https://www.kaggle.com/code/{body['slug']}"
        return Answer(200, {"ref": f"/code/{body['slug']}", "url": url, "versionNumber": len(versions)})
