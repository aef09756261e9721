"""Hugging Face Jobs: a command in a container, found again by its labels."""

import base64
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec

from services.provider_bridge.domain.provider_status import RunStatus, read_word
from services.provider_bridge.outbound.egress import Answer, VendorRefused
from services.provider_bridge.outbound.fences import Fences
from services.provider_bridge.outbound.kinds import Materials, ProviderKind
from services.provider_bridge.outbound.ports import (
    Account,
    Balance,
    Capabilities,
    LogPage,
    OurRun,
    RunView,
    StartOrder,
    StartRefused,
    Tag,
    WebhookNote,
    WebhookRefused,
)
from services.provider_bridge.outbound.vendors.hub import API_URL, CREDENTIALS, NOT_FOUND, Hub, known_offers
from services.provider_bridge.outbound.vendors.reach import check_reach
from services.provider_bridge.outbound.vendors.shapes import Object, a_moment, a_number, a_text, an_object
from shared.contracts.offers import Offer
from shared.problems import Unavailable

_FLAVOR = "a10g-small"
_MARGIN_S = 900
"""The Hub's limit stands so long behind the trainer's own: for the boot, and for saving and delivering."""
_ALIVE_STAGES = ("SCHEDULING", "RUNNING")
"""In this order: a job that goes on from the one to the other between two lists is in the second."""
_LAST_LINES = 20
_RUN = "tunewright-run"
_ATTEMPT = "tunewright-attempt"
_INSTALLATION = "tunewright-installation"
_SPACES = re.compile(r"^(?:https://)?(?:huggingface\.co|hf\.co)/spaces/(.+)$")
_EXIT_CODE = re.compile(r"exit(?:ed)?(?: with)? code\W{0,3}([0-9]+)", re.IGNORECASE)
_OWN_EXIT_CODE = re.compile(r"trainer\.entry\.container: exit ([0-9]+) \(")


class HuggingFaceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the Hub is, who pays, and the container that runs."""

    api_url: str = API_URL
    namespace: str = ""
    """A user or organisation; empty = whose key it is."""
    image: str = ""
    """deploy/docker/trainer.Dockerfile in a registry that the Hub can reach, or `hf.co/spaces/OWNER/NAME`."""
    python: str = "/opt/tunewright/.venv-trainer/bin/python"
    """The trainer's Python in the image."""
    flavor: str = _FLAVOR
    """What a job runs on when nobody chose."""
    max_run_s: int = 24 * 3600
    """When the job sets no limit of its own."""


class HuggingFaceProvider:
    """The jobs of one namespace."""

    def __init__(self, materials: Materials) -> None:
        self.name: str = KIND.name
        self._settings: HuggingFaceSettings = materials.settings
        self.capabilities: Capabilities = msgspec.structs.replace(
            KIND.capabilities, default_hardware=self._settings.flavor
        )
        self._installation = materials.installation
        self._clock = materials.clock
        self._fences = Fences()
        self._hub = Hub(materials, self._settings.namespace)
        self._prices: dict[str, int] = {}

    async def quote(self) -> list[Offer]:
        """Every flavor, at today's price."""
        offers = await self._hub.offers("/api/jobs/hardware", self.name)
        self._prices = {offer.hardware: offer.price_micro_usd_per_hour for offer in offers}
        return offers

    async def submit(self, order: StartOrder) -> str:
        """Creates the job, once. The ref is its id. A 500 here may have created it: `find` tells."""
        self._fences.check(order.tag)
        check_reach(order.spec.gateway_url, self._settings.api_url)
        body = self._body(order)
        existing = await self._find(order.tag)
        if existing is not None and existing.epoch == order.tag.epoch:
            return existing.ref
        namespace = await self._hub.namespace()
        try:
            answer = await self._hub.egress.start(
                f"/api/jobs/{namespace}", json=body, check=lambda: self._fences.check(order.tag)
            )
        except VendorRefused as refused:
            raise _refusal(refused, namespace) from refused
        ref = an_object(answer.json()).get("id")
        if not ref:
            raise Unavailable("the Hub took the job and did not name it")
        return str(ref)

    async def find(self, tag: Tag) -> RunView | None:
        """By the label of its attempt."""
        self._fences.check(tag)
        return await self._find(tag)

    async def fetch(self, ref: str) -> RunView | None:
        """The job; None once the Hub has forgotten it."""
        found = await self._job(ref)
        if found is None:
            return None
        view = self._view(*found)
        if read_word(self.name, view.word) is not RunStatus.ENDED or view.exit_code is not None:
            return view
        # The Hub's message does not always name the code; our own program's last word does.
        lines = (await self.logs(ref, None)).lines
        codes = [int(code) for line in lines for code in _OWN_EXIT_CODE.findall(line)]
        words = "\n".join([view.last_words, *lines[-_LAST_LINES:]]).strip()
        return msgspec.structs.replace(view, exit_code=codes[-1] if codes else None, last_words=words)

    async def logs(self, ref: str, after: str | None) -> LogPage:
        """The log begins anew with each call; the cursor counts its events."""
        return await self._hub.log_page(f"/api/jobs/{await self._hub.namespace()}/{ref}/logs", after)

    async def cancel(self, tag: Tag, ref: str, grace_s: float) -> None:  # noqa: ARG002 - the Hub's own grace it is
        """Asks the Hub, which ends the container."""
        self._fences.check(tag)
        try:
            await self._hub.egress.call("POST", f"/api/jobs/{await self._hub.namespace()}/{ref}/cancel", repeats=True)
        except VendorRefused as refused:
            # Jobs that are unknown or over cannot be cancelled; what else is wrong shows when it does not end.
            if refused.status != NOT_FOUND and not await self.confirm_gone(ref):
                raise Unavailable(f"the Hub does not cancel {ref}: {refused}") from refused

    async def confirm_gone(self, ref: str) -> bool:
        """Whether the job is in one of its last stages, or forgotten."""
        found = await self._job(ref)
        return found is None or not self._is_alive(_stage(found[0]))

    async def list_ours(self) -> list[OurRun]:
        """Jobs of this installation that wait or run."""
        found: dict[str, OurRun] = {}
        for stage in _ALIVE_STAGES:
            params = {"label": f"{_INSTALLATION}={self._installation}", "stage": stage}
            async for job, answer in self._hub.listed(f"/api/jobs/{await self._hub.namespace()}", params):
                tag = self._tag(job)
                if tag is not None and self._is_alive(_stage(job)):
                    ref = str(job.get("id"))
                    price = await self._price_of(a_text(job.get("flavor")))
                    found[ref] = OurRun(
                        tag=tag,
                        ref=ref,
                        started_at=self._view(job, answer).started_at,
                        price_micro_usd_per_hour=price,
                    )
        return list(found.values())

    def verify_webhook(self, headers: Mapping[str, str], query: Mapping[str, str], body: bytes) -> WebhookNote:  # noqa: ARG002 - the port's signature
        """The Hub's webhooks are about repositories, not about jobs."""
        raise WebhookRefused("unreadable", "Hugging Face sends no webhooks about jobs")

    async def validate_credentials(self) -> Account:
        """Whose key it is."""
        return await self._hub.account()

    async def balance(self) -> Balance:
        """Not told by any call."""
        return self._hub.balance()

    async def close(self) -> None:
        """Gives back connections."""
        await self._hub.egress.close()

    def _body(self, order: StartOrder) -> dict[str, Any]:
        if not self._settings.image:
            raise StartRefused(
                "A Hugging Face job has no container to run.",
                "Build deploy/docker/trainer.Dockerfile, push it to a registry that the Hub can reach, and set image.",
            )
        run_s = order.max_run_s or self._settings.max_run_s
        label = order.tag.label(self._installation)
        space = _SPACES.match(self._settings.image)
        return {
            "command": [self._settings.python, "-m", "trainer.entry.container"],
            "arguments": [],
            "environment": {"TUNEWRIGHT_MAX_RUN_S": str(run_s)},
            "secrets": {
                "TUNEWRIGHT_RUN_SPEC_BASE64": base64.b64encode(msgspec.json.encode(order.spec)).decode(),
                "TUNEWRIGHT_ATTEMPT_TOKEN": order.token,
                "HF_TOKEN": self._hub.token.reveal(),
            },
            "flavor": order.offer.hardware if order.offer else self._settings.flavor,
            "timeoutSeconds": run_s + _MARGIN_S,
            "labels": {
                "name": label,
                _RUN: label,
                _ATTEMPT: f"{self._installation}-{order.tag.attempt_id.hex}",
                _INSTALLATION: self._installation,
            },
            **({"spaceId": space[1]} if space else {"dockerImage": self._settings.image}),
        }

    async def _find(self, tag: Tag) -> RunView | None:
        """The one of the highest epoch; of two, the one that is alive."""
        params = {"label": f"{_ATTEMPT}={self._installation}-{tag.attempt_id.hex}"}
        views: list[tuple[int, bool, RunView]] = []
        async for job, answer in self._hub.listed(f"/api/jobs/{await self._hub.namespace()}", params):
            found = self._tag(job)
            if found is not None and found.attempt_id == tag.attempt_id:
                view = self._view(job, answer)
                views.append((found.epoch, self._is_alive(view.word), view))
        return max(views, key=lambda one: one[:2])[2] if views else None

    async def _price_of(self, flavor: str) -> int:
        if flavor not in self._prices:
            await self.quote()
        return self._prices.get(flavor, 0)

    async def _job(self, ref: str) -> tuple[Object, Answer] | None:
        try:
            answer = await self._hub.egress.get(f"/api/jobs/{await self._hub.namespace()}/{ref}")
        except VendorRefused as refused:
            if refused.status == NOT_FOUND:
                return None
            raise Unavailable(f"the Hub answers {refused}") from refused
        job = an_object(answer.json())
        if not job:
            raise Unavailable(f"the Hub shows nothing of {ref}")
        return job, answer

    def _tag(self, job: Object) -> Tag | None:
        return Tag.parse(str(an_object(job.get("labels")).get(_RUN)), self._installation)

    def _view(self, job: Object, answer: Answer) -> RunView:
        word = _stage(job)
        message = str(an_object(job.get("status")).get("message") or "")
        started, finished = (
            answer.ours(at) if (at := a_moment(job.get(key))) else None for key in ("startedAt", "finishedAt")
        )
        billed_s = a_number(an_object(job.get("durations")).get("runningSecs"))
        is_over = not self._is_alive(word)
        if is_over and finished is None:
            finished = started + timedelta(seconds=billed_s) if started and billed_s is not None else self._clock()
        code = _EXIT_CODE.search(message)
        return RunView(
            ref=str(job.get("id")),
            word=word,
            exit_code=0 if word == "COMPLETED" else int(code[1]) if code and word == "ERROR" else None,
            started_at=started,
            ended_at=finished if is_over else None,
            billed_s=(billed_s if started else 0.0) if is_over else None,  # what never began is free
            last_words=message,
            epoch=tag.epoch if (tag := self._tag(job)) is not None else None,
        )

    def _is_alive(self, word: str) -> bool:
        """A stage that nobody knows may well be a job that runs."""
        return read_word(self.name, word) not in {RunStatus.ENDED, RunStatus.GONE}


def _stage(job: Object) -> str:
    return str(an_object(job.get("status")).get("stage") or "")


def _refusal(refused: VendorRefused, namespace: str) -> StartRefused:
    if refused.status == NOT_FOUND:
        return StartRefused(
            f"The Hub has no namespace {namespace!r} in which this key may start jobs: {refused.excerpt}",
            "Set namespace of the provider to your user or organisation, and let the token start jobs there.",
        )
    return StartRefused(
        f"The Hub does not take the job: {refused.excerpt}", "Check image and flavor, and what the token may do."
    )


KIND: ProviderKind = ProviderKind(
    name="huggingface",
    title="Hugging Face Jobs",
    description="Containers on the Hub's GPUs, paid from the account's credits by the minute.",
    credentials=CREDENTIALS,
    settings=HuggingFaceSettings,
    capabilities=Capabilities(
        can_cancel=True,
        live_logs=True,
        cost=True,
        spot=False,
        max_run_time_s=None,
        upload_limit_bytes=None,
        site=None,
        metering="machine",
        default_hardware=_FLAVOR,
    ),
    build=HuggingFaceProvider,
    listed=known_offers("huggingface"),
)
