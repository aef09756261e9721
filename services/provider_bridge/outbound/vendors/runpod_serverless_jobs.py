"""RunPod's job API by our own egress, and what it shows of a job in our terms."""

import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import msgspec

from services.provider_bridge.domain.exits import exit_code_in
from services.provider_bridge.domain.provider_status import RunStatus, read_word
from services.provider_bridge.outbound.egress import Egress, Forbidden, RateLimit, VendorRefused
from services.provider_bridge.outbound.ports import RunView, StartRefused
from services.provider_bridge.outbound.vendors.gathering import Gathered
from services.provider_bridge.outbound.vendors.shapes import Object, a_list, a_number, a_text, an_object
from shared.clock import Clock
from shared.problems import Unavailable

NAME = "runpod_serverless"
JOB_LIMITS = (RateLimit(calls=1000, per_s=10),)
LIST_LIMITS = (RateLimit(calls=8, per_s=10),)
"""RunPod allows 10 lists in 10 s."""
MAX_BODY_BYTES = 10 * 1000 * 1000
_LOOKED_AT = 200
"""Listed jobs whose label has to be asked for one by one, at most."""
_KEPT_LABELS = 5000
_LAST_WORDS_CHARS = 500
_OVER = frozenset({RunStatus.ENDED, RunStatus.GONE})


def is_over(word: str) -> bool:
    """Whether a job of this status costs nothing any more."""
    return read_word(NAME, word) in _OVER


class RunPodJobs:
    """The jobs of one endpoint. A job's ref is `endpoint/job`: the endpoint in the settings may change."""

    def __init__(self, jobs: Egress, lists: Egress, endpoint_id: str, clock: Clock) -> None:
        self._jobs = jobs
        self._lists = lists
        self._listed = Gathered(self._list, 0.0)
        self._endpoint_id = endpoint_id
        self._clock = clock
        self._labels: dict[str, str] = {}
        """Of jobs that were looked at; a job's label never changes."""

    async def run(self, body: Object, check: Callable[[], None]) -> str:
        """Queues a job, once, if `check` lets it when its turn has come; its ref.

        Raises StartRefused for what RunPod does not take.
        """
        size = len(msgspec.json.encode(body))
        if size > MAX_BODY_BYTES:
            raise StartRefused(
                f"The job is {size} bytes large; RunPod takes {MAX_BODY_BYTES}.",
                "Shorten the config: datasets do not belong into it, the run fetches them.",
            )
        try:
            answer = await self._jobs.start(f"/{self._endpoint_id}/run", json=body, check=check)
        except VendorRefused as refusal:
            raise _refused(self._endpoint_id, refusal) from refusal
        job_id = a_text(an_object(answer.json()).get("id"))
        if not job_id:
            raise Unavailable("RunPod's answer names no job")
        return f"{self._endpoint_id}/{job_id}"

    async def fetch(self, ref: str) -> RunView | None:
        """A job as `/status` shows it; None once RunPod has forgotten it, or deleted it at the end of its ttl."""
        endpoint_id, _, job_id = ref.rpartition("/")
        if not endpoint_id:
            return None
        try:
            answer = await self._jobs.get(f"/{endpoint_id}/status/{job_id}")
        except VendorRefused as refusal:
            if refusal.status == HTTPStatus.NOT_FOUND:
                return None
            raise Unavailable(f"RunPod does not show {ref}: {refusal}") from refusal
        shown = an_object(answer.json())
        if not a_text(shown.get("status")):
            raise Unavailable("RunPod's answer is not a job")
        self._learn(job_id, shown)
        return self._view(ref, shown)

    async def labelled(self) -> AsyncIterator[tuple[str, str, str]]:
        """Label, ref and word of every listed job whose label RunPod shows, in the list's order.

        `/requests` is among the operations whose limits RunPod documents; its answer is not documented. Where it is
        refused, nothing is listed. A job's label is read in its input if that is shown, else in what its handler said.
        """
        asked = 0
        for shown in await self._listed():
            job_id, word = a_text(shown.get("id")), a_text(shown.get("status"))
            if not job_id:
                continue
            ref = f"{self._endpoint_id}/{job_id}"
            self._learn(job_id, shown)
            if job_id not in self._labels and asked < _LOOKED_AT:
                asked += 1
                view = await self.fetch(ref)
                word = word if view is None else view.word
            label = self._labels.get(job_id)
            if label:
                yield label, ref, word

    async def _list(self) -> list[Object]:
        try:
            answer = await self._lists.get(f"/{self._endpoint_id}/requests")
        except (VendorRefused, Forbidden):
            return []
        content: Any = answer.json()
        listed = a_list(content) or a_list(an_object(content).get("requests"))
        return [an_object(each) for each in listed]

    def _learn(self, job_id: str, shown: Object) -> None:
        label = label_of(shown)
        if label or "input" in shown or is_over(a_text(shown.get("status"))):
            self._labels[job_id] = label
            if len(self._labels) > _KEPT_LABELS:
                self._labels.pop(next(iter(self._labels)))

    def _view(self, ref: str, shown: Object) -> RunView:
        word = a_text(shown.get("status"))
        # RunPod shows no moments: a job that has ended did so before now.
        ended_at = self._clock() if is_over(word) else None
        spent_ms = a_number(shown.get("executionTime"))
        if spent_ms is None and "delayTime" not in shown:  # no worker ever took it out of the queue
            spent_ms = 0.0
        billed_s = spent_ms / 1000 if ended_at and spent_ms is not None else None
        return RunView(
            ref=ref,
            word=word,
            exit_code=exit_code_of(word, shown),
            started_at=ended_at - timedelta(seconds=billed_s) if ended_at and billed_s is not None else None,
            ended_at=ended_at,
            billed_s=billed_s,
            last_words=error_in(shown),
        )


def label_of(shown: Object) -> str:
    """Our label in a job's input, progress or answer; empty if none of them is shown, or holds it."""
    return a_text(an_object(shown.get("input")).get("label")) or a_text(an_object(shown.get("output")).get("label"))


def exit_code_of(word: str, shown: Object) -> int | None:
    """The trainer's exit code as the handler told it, in its answer or in its one sentence."""
    told = an_object(shown.get("output")).get("exit_code")
    if word in {"COMPLETED", "FAILED"} and isinstance(told, int) and not isinstance(told, bool):
        return told
    match word:
        case "COMPLETED":
            return 0
        case "FAILED":
            return exit_code_in(error_in(shown))
        case _:
            return None


def error_in(shown: Object) -> str:
    """The error as a sentence: RunPod's worker wraps what was raised into JSON text."""
    told = a_text(shown.get("error"))
    try:
        content = an_object(json.loads(told))
    except json.JSONDecodeError:
        content = {}
    message = a_text(content.get("error_message"))
    return (message or told)[-_LAST_WORDS_CHARS:]


def _refused(endpoint_id: str, refusal: VendorRefused) -> StartRefused:
    return StartRefused(
        f"RunPod's endpoint {endpoint_id} refuses the job ({refusal.status}): {refusal.excerpt}",
        "Check endpoint_id in the provider's settings, and that the endpoint runs deploy/runpod.",
    )
