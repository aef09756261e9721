"""Makes the runs of the Replicate simulator real: each is trained by a Cog server, as in Replicate's own containers."""

import threading
import time
from typing import Any

import httpx

from tests.simulators.loopback import Call
from tests.simulators.replicate import Replicate, Run

_ANSWER_S = 60
_PACE_S = 0.2
"""Between two tries to get the container's one slot."""


class CogContainer:
    """One container with one slot; a run that finds it taken waits, as it would for a machine."""

    def __init__(self, vendor: Replicate, url: str) -> None:
        self._vendor = vendor
        self._url = url.rstrip("/")
        vendor.on_create = self._create
        vendor.on_cancel = self._cancel
        vendor.on_told = self._told

    def _create(self, run: Run) -> None:
        threading.Thread(target=self._start, args=(run,), daemon=True).start()

    def _start(self, run: Run) -> None:
        body = {"input": run.input, "webhook": f"{self._vendor.url}/cog/{run.id}"}
        while run.status == "starting":
            answer = self._ask("PUT", f"/{run.kind}/{run.id}", body)
            if answer.status_code not in {409, 503}:
                assert answer.status_code == 202, answer.text
                return
            time.sleep(_PACE_S)

    def _cancel(self, run: Run) -> None:
        path = f"/{run.kind}/{run.id}/cancel"
        threading.Thread(target=self._ask, args=("POST", path), daemon=True).start()

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        headers = {"Prefer": "respond-async"}
        return httpx.request(method, f"{self._url}{path}", json=body, headers=headers, timeout=_ANSWER_S)

    def _told(self, call: Call) -> None:
        """What the container posts: a part of the run, without its input and its moments."""
        told = call.json()
        run = self._vendor.runs[call.path.rpartition("/")[2]]
        run.logs = told.get("logs", run.logs)
        self._vendor.begin(run)
        match told["status"]:
            case "succeeded":
                self._vendor.finish(run, output=told.get("output"))
            case "failed":
                self._vendor.finish(run, error=str(told.get("error")))
            case "canceled":
                self._vendor.cancelled(run)
            case _:
                run.output = told.get("output", run.output)
