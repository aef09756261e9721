"""SkyPilot's API server over HTTP: every call is a request of its own, whose outcome is fetched by its id.

Its Python client is not used: importing it takes eleven seconds, it prints, and it unpickles what the server sends
(docs/decisions/0025). Errors are read by their type's name and their message.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from services.provider_bridge.outbound.egress import Answer, Egress, VendorRefused
from services.provider_bridge.outbound.vendors.shapes import Object, a_list, a_text, an_object
from shared.problems import Unavailable

_REQUEST_ID = "x-skypilot-request-id"
_FAILED = 500
_LAUNCH = "sky.jobs.launch"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_FIELDS = ("job_id", "job_name", "status", "submitted_at", "start_at", "end_at", "failure_reason", "details")


class SkyError(Exception):
    """A request that came to a known end and failed: the name of the error's type, and its message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


class SkyApi:
    """The calls that managed jobs need."""

    def __init__(self, egress: Egress, user_id: str) -> None:
        self.egress = egress
        self._user = {"SKYPILOT_USER_ID": user_id, "SKYPILOT_USER": "tunewright"}

    async def launch(self, name: str, task: Object, *, check: Callable[[], None]) -> str:
        """Sends a job, once, if `check` still agrees; the id of the request. JSON is YAML: its head names the job."""
        text = f"{json.dumps({'name': name})}\n---\n{json.dumps(task)}\n"
        body = self._body({"task": text, "name": name})
        try:
            answer = await self.egress.start("/jobs/launch", json=body, check=check)
        except VendorRefused as refused:
            raise SkyError("Refused", str(refused)) from refused
        return _request_id(answer, "/jobs/launch")

    async def jobs(self, name_match: str, *, skip_finished: bool) -> tuple[list[Object], Answer | None]:
        """Managed jobs whose name holds a text, of whichever user; none where no controller runs."""
        body = {"skip_finished": skip_finished, "all_users": True, "name_match": name_match, "fields": list(_FIELDS)}
        try:
            told, answer = await self.ask("/jobs/queue/v2", body)
        except SkyError as error:
            if error.kind == "ClusterNotUpError":
                return [], None
            raise Unavailable(f"SkyPilot does not list its jobs: {error}") from error
        found = a_list(an_object(told).get("jobs")) if isinstance(told, dict) else a_list(told)
        jobs = [an_object(one) for one in found]
        return [job for job in jobs if name_match in a_text(job.get("job_name"))], answer

    async def launching(self) -> dict[str, str]:
        """Jobs that were sent and are in no list yet: their name, and the id of their request."""
        found: dict[str, str] = {}
        answer = await self.egress.get("/api/status")
        content: object = answer.json()
        if not isinstance(content, list):
            raise Unavailable("SkyPilot does not list its requests")
        for one in a_list(answer.json()):
            request = an_object(one)
            if request.get("name") == _LAUNCH:
                name = a_text(_decoded(request.get("request_body")).get("name"))
                found[name] = a_text(request.get("request_id"))
        return found

    async def cancel(self, job_ids: list[int]) -> None:
        """Asks for the end of jobs. Raises SkyError."""
        await self.ask("/jobs/cancel", {"job_ids": job_ids})

    async def forget(self, request_id: str) -> None:
        """Ends a request that has not come to its end. Raises SkyError."""
        await self.ask("/api/cancel", {"request_ids": [request_id]})

    async def log(self, job_id: int) -> str:
        """The log of a job so far."""
        body = self._body({"job_id": job_id, "follow": False, "refresh": False})
        answer = await self.egress.call("POST", "/jobs/logs", json=body, repeats=True)
        if "html" in answer.headers.get("content-type", ""):
            raise Unavailable("SkyPilot answers with a page where a log was due")
        return answer.body.decode("utf-8", "replace")

    async def ask(self, path: str, body: Object) -> tuple[Any, Answer]:
        """A request and what came of it. Raises SkyError."""
        try:
            answer = await self.egress.call("POST", path, json=self._body(body), repeats=True)
        except VendorRefused as refused:
            raise SkyError("Refused", str(refused)) from refused
        return await self.outcome(_request_id(answer, path))

    async def outcome(self, request_id: str) -> tuple[Any, Answer]:
        """What a request returned, once it has; the server holds the answer back until then. Raises SkyError."""
        answer = await self.egress.call("GET", "/api/get", params={"request_id": request_id}, answers=(_FAILED,))
        content = an_object(answer.json())
        if answer.status == _FAILED:
            error = _decoded(an_object(content.get("detail")).get("error"))
            if not error:
                raise Unavailable("SkyPilot answers 500 and does not say why")
            raise SkyError(a_text(error.get("type")), _COLOURS.sub("", a_text(error.get("message"))))
        if "return_value" not in content:
            raise Unavailable("SkyPilot answers with something that is no outcome")
        try:
            return json.loads(a_text(content["return_value"]) or "null"), answer
        except ValueError as error:
            raise Unavailable("SkyPilot's outcome is not JSON") from error

    def _body(self, body: Object) -> Object:
        return {
            "env_vars": self._user,
            "entrypoint": "",
            "entrypoint_command": "",
            "using_remote_api_server": True,
            "override_skypilot_config": {},
            **body,
        }


def _request_id(answer: Answer, path: str) -> str:
    found = answer.headers.get(_REQUEST_ID)
    if not found:
        raise Unavailable(f"what answers {path} is no SkyPilot API server")
    return found


def _decoded(text: object) -> Object:
    """An object that travels as JSON in a string."""
    try:
        return an_object(json.loads(a_text(text)))
    except ValueError:
        return {}
