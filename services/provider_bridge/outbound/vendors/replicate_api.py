"""Trainings and predictions by our own egress: the calls in which Replicate's client loses data or money."""

from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from services.provider_bridge.outbound.egress import Answer, Egress, VendorRefused
from services.provider_bridge.outbound.ports import StartRefused
from services.provider_bridge.outbound.vendors.shapes import Object, a_list, a_moment, a_text, an_object
from shared.problems import Unavailable

PREDICTION_LIMIT_S = 1800
_PAGES = 50
"""Of 100 runs each, looked through for those that are ours."""
_PREDICTIONS = "predictions/"


class ReplicateApi:
    """Runs of one kind: trainings, or predictions. The ref of a training is its id, of a prediction a path."""

    def __init__(self, egress: Egress, *, predictions: bool) -> None:
        self._egress = egress
        self._predictions = predictions
        self.clock_ahead = timedelta(0)
        """Replicate's clock minus ours, as the last answer showed it."""

    def ref(self, run_id: str) -> str:
        """By which a run of this kind is asked for, whatever kind new runs are of then."""
        return f"{_PREDICTIONS}{run_id}" if self._predictions else run_id

    async def create(
        self, body: Object, *, model: str, version: str, limit_s: int | None, check: Callable[[], None]
    ) -> str:
        """Starts a run, once, if `check` lets it when its turn has come; its ref.

        Raises StartRefused for what Replicate does not take.
        """
        try:
            if self._predictions:
                headers = {"Cancel-After": f"{limit_s or PREDICTION_LIMIT_S}s"}
                body = {**body, "version": version}
                answer = await self._egress.start("/predictions", json=body, check=check, headers=headers)
            else:
                path = f"/models/{model}/versions/{version}/trainings"
                answer = await self._egress.start(path, json=body, check=check)
        except VendorRefused as refusal:
            raise _refused(refusal) from refusal
        return self.ref(a_text(_run(answer.json())["id"]))

    async def newest_version(self, model: str) -> str:
        """The id of the newest version of `owner/name`. Raises StartRefused if there is no such model or version."""
        try:
            answer = await self._egress.get(f"/models/{model}")
        except VendorRefused as refusal:
            raise _refused(refusal) from refusal
        version = a_text(an_object(an_object(answer.json()).get("latest_version")).get("id"))
        if not version:
            raise StartRefused(f"{model} has no version at Replicate.", "Push one: `cog push`, see deploy/replicate.")
        return version

    async def get(self, ref: str) -> tuple[Object, Answer] | None:
        """One run; None if Replicate does not know it."""
        try:
            answer = await self._egress.get(self._path(ref))
        except VendorRefused as refusal:
            if refusal.status == HTTPStatus.NOT_FOUND:
                return None
            raise Unavailable(f"Replicate does not show {ref}: {refusal}") from refusal
        self._note_clock(answer)
        return _run(answer.json()), answer

    async def cancel(self, ref: str) -> None:
        """Asks for the end. Raises VendorRefused, for one that is over or unknown too."""
        await self._egress.call("POST", f"{self._path(ref)}/cancel")

    async def runs(self, since: datetime) -> AsyncIterator[tuple[Object, Answer]]:
        """Every run created since, newest first. Raises Unavailable when they are too many to look through."""
        query: dict[str, str] | None = None
        for _page in range(_PAGES):
            answer = await self._egress.get("/predictions" if self._predictions else "/trainings", params=query)
            self._note_clock(answer)
            page = an_object(answer.json())
            if not isinstance(page.get("results"), list):
                raise Unavailable("Replicate's answer is not a list of runs")
            for each in a_list(page["results"]):
                shown = _run(each)
                born = a_moment(shown.get("created_at"))
                if born is not None and answer.ours(born) < since:
                    return
                yield shown, answer
            following = a_text(page.get("next"))
            if not following:
                return
            query = dict(parse_qsl(urlsplit(following).query))  # the cursor alone: our key goes to no other address
        raise Unavailable(f"the account has more than {_PAGES} pages of runs since {since:%Y-%m-%d %H:%M}")

    def _note_clock(self, answer: Answer) -> None:
        self.clock_ahead = timedelta(seconds=answer.clock_ahead_s)

    def _path(self, ref: str) -> str:
        return f"/{ref}" if ref.startswith(_PREDICTIONS) else f"/trainings/{ref}"


def _run(content: Any) -> Object:
    shown = an_object(content)
    if a_text(shown.get("id")) and a_text(shown.get("status")):
        return shown
    raise Unavailable("Replicate's answer is not a training or prediction")


def _refused(refusal: VendorRefused) -> StartRefused:
    detail = a_text(an_object(refusal.content).get("detail")) or refusal.excerpt
    return StartRefused(
        f"Replicate refuses the run ({refusal.status}): {detail}",
        "Check the provider's settings: model, version and destination must exist, and the destination be yours.",
    )
