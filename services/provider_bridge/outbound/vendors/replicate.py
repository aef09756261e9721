"""Replicate: one run is one training of a trainer model (or one prediction), found again by the label in its input.

A training has no time limit at Replicate; a prediction ends after 30 minutes. The hardware is the model's, not the
caller's, so each kind of hardware that jobs may ask for needs a trainer model of its own.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit
from uuid import UUID

import msgspec

from services.provider_bridge.domain.provider_status import RunStatus, read_word
from services.provider_bridge.outbound.egress import Answer, Egress, RateLimit, VendorRefused
from services.provider_bridge.outbound.fences import Fences
from services.provider_bridge.outbound.kinds import CredentialField, Materials, ProviderKind
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
from services.provider_bridge.outbound.vendors.reach import check_reach, webhook_for
from services.provider_bridge.outbound.vendors.replicate_api import PREDICTION_LIMIT_S, ReplicateApi
from services.provider_bridge.outbound.vendors.replicate_client import UPLOAD_LIMIT_BYTES, ReplicateClient
from services.provider_bridge.outbound.vendors.replicate_hardware import HARDWARE, hardware_of
from services.provider_bridge.outbound.vendors.replicate_runs import label_of, log_page, view_of
from services.provider_bridge.outbound.vendors.replicate_webhooks import WebhookSecrets, attempt_in, verify
from services.provider_bridge.outbound.vendors.shapes import Object, a_text
from shared.contracts.offers import Offer
from shared.contracts.provider import VersionView
from shared.problems import Unavailable
from shared.settings import Secret

NAME = "replicate"
_OLDEST_TRAINING = timedelta(days=8)
_OLDEST_PREDICTION = timedelta(hours=3)
"""An account may make many a second: no more are looked through than can be alive."""
_OVER = frozenset({RunStatus.ENDED, RunStatus.GONE})
_CLOCKS_DIFFER = timedelta(days=1)
_EVENTS = ["start", "completed"]
_UUID7 = 7

CAPABILITIES = Capabilities(
    can_cancel=True,
    live_logs=True,
    cost=True,
    spot=False,
    max_run_time_s=None,
    upload_limit_bytes=UPLOAD_LIMIT_BYTES,
    site=None,
    metering="machine",
    webhooks=True,
    default_hardware="gpu-h100",
)


class ReplicateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator says of the account's models (deploy/replicate/README.md)."""

    api_url: str = "https://api.replicate.com/v1"
    model: str = ""
    """`owner/name` of the model that trains, pushed from deploy/replicate."""
    version: str = ""
    """Of `model`; empty = the newest."""
    destination: str = ""
    """`owner/name` of the model that trainings go to; it exists and is yours."""
    hardware: str = "gpu-h100"
    """What `model` runs on: a SKU or a profile such as `h100-x2`."""
    trainers: dict[str, str] = {}
    """More hardware: SKU or profile -> `owner/name` of the same trainer on it; its newest version is used."""
    run_as: Literal["training", "prediction"] = "training"
    prices_usd_per_s: dict[str, float] = {}
    """By SKU, where Replicate's price differs from the table of ours."""


class ReplicateProvider:
    """The runs of one account."""

    def __init__(self, materials: Materials) -> None:
        settings: ReplicateSettings = materials.settings
        self._settings = settings
        self._installation = materials.installation
        self._clock = materials.clock
        self._egress = Egress(
            settings.api_url,
            materials.network,
            materials.clock,
            headers={"Authorization": Secret(f"Bearer {materials.credentials['api_token'].reveal()}")},
            limits=(RateLimit(calls=500, per_s=60),),
        )
        self._api = ReplicateApi(self._egress, predictions=settings.run_as == "prediction")
        self.client = ReplicateClient(self._egress)
        """Versions and files, for those who show them or hand them over."""
        self._oldest = _OLDEST_PREDICTION if settings.run_as == "prediction" else _OLDEST_TRAINING
        self._fences = Fences()
        self._secrets = WebhookSecrets()

    @property
    def name(self) -> str:
        """`replicate`."""
        return NAME

    @property
    def capabilities(self) -> Capabilities:
        """Cancels, shows its log, tells seconds; no time limit unless runs are predictions."""
        settings = self._settings
        limit = PREDICTION_LIMIT_S if settings.run_as == "prediction" else None
        return msgspec.structs.replace(CAPABILITIES, max_run_time_s=limit, default_hardware=_sku(settings.hardware))

    async def quote(self) -> list[Offer]:
        """One offer for each hardware that has a trainer; Replicate does not say what is free."""
        there = await self.client.skus()
        known = [hardware for name in self._trainers() if (hardware := hardware_of(name)) is not None]
        offers = [
            each.offer(NAME, self._settings.prices_usd_per_s, "unknown" if each.sku in there else "none")
            for each in known
        ]
        limit = self.capabilities.max_run_time_s
        return [msgspec.structs.replace(offer, max_run_s=limit) for offer in offers]

    async def submit(self, order: StartOrder) -> str:
        """Creates the training, unless there is one with this very tag."""
        self._fences.check(order.tag)
        settings = self._settings
        check_reach(order.spec.gateway_url, settings.api_url)
        if settings.run_as == "prediction" and (order.max_run_s or 0) > PREDICTION_LIMIT_S:
            raise StartRefused(
                f"Replicate ends predictions after {PREDICTION_LIMIT_S} s; this run may take {order.max_run_s} s.",
                "Set run_as to training, or lower max_run_s.",
            )
        model = self._trainer_for(order.offer)
        found = await self._newest(order.tag)
        if found is not None and found.epoch == order.tag.epoch:
            return found.ref
        fixed = settings.version if model == settings.model else ""
        version = fixed or await self._api.newest_version(model)
        return await self._api.create(
            self._body(order),
            model=model,
            version=version,
            limit_s=order.max_run_s,
            check=lambda: self._fences.check(order.tag),
        )

    async def find(self, tag: Tag) -> RunView | None:
        """The attempt's run of the highest epoch, in the list of the newest; of two, the one that lives."""
        self._fences.check(tag)
        return await self._newest(tag)

    async def fetch(self, ref: str) -> RunView | None:
        """The run as GET shows it."""
        await self._renew_secrets()
        found = await self._api.get(ref)
        return None if found is None else self._view(*found)

    async def logs(self, ref: str, after: str | None) -> LogPage:
        """What the log has grown by; the cursor counts characters."""
        found = await self._api.get(ref)
        if found is None:
            return LogPage(lines=[], cursor=after)
        return log_page(found[0], after, is_over=_is_over(a_text(found[0]["status"])))

    async def cancel(self, tag: Tag, ref: str, grace_s: float) -> None:  # noqa: ARG002 - Replicate uses force by itself
        """Asks Replicate to cancel; it raises in the run's code, and ends the container if that does not help."""
        self._fences.check(tag)
        try:
            await self._api.cancel(ref)
        except VendorRefused as refusal:
            view = await self.fetch(ref)
            if view is not None and not _is_over(view.word):
                raise Unavailable(f"Replicate does not cancel {ref}: {refusal}") from refusal

    async def confirm_gone(self, ref: str) -> bool:
        """Whether Replicate says that it has ended; what it does not know is gone."""
        view = await self.fetch(ref)
        return view is None or _is_over(view.word)

    async def list_ours(self) -> list[OurRun]:
        """Living runs with a label of this installation."""
        await self._renew_secrets()
        ours: list[OurRun] = []
        async for shown, answer in self._api.runs(since=self._clock() - self._oldest):
            tag = Tag.parse(label_of(shown), self._installation)
            if tag is not None and not _is_over(a_text(shown["status"])):
                view = self._view(shown, answer)
                price = self._price_of(a_text(shown.get("model")))
                run = OurRun(tag=tag, ref=view.ref, started_at=view.started_at, price_micro_usd_per_hour=price)
                ours.append(run)
        return ours

    def verify_webhook(self, headers: Mapping[str, str], query: Mapping[str, str], body: bytes) -> WebhookNote:
        """Checks signature and age, by secrets that earlier calls have fetched.

        After one that fits no secret the next call fetches them anew; Replicate repeats what is refused for a minute.
        """
        try:
            told = verify(headers, body, self._secrets.keys, self._clock() + self._api.clock_ahead)
        except WebhookRefused as refusal:
            if refusal.reason == "invalid_signature":
                self._secrets.missed()
            raise
        tag = Tag.parse(told.label, self._installation)
        return WebhookNote(
            webhook_id=headers["webhook-id"],
            ref=self._api.ref(told.id),
            word=told.status,
            attempt_id=tag.attempt_id if tag is not None else attempt_in(query),
        )

    async def validate_credentials(self) -> Account:
        """The account that the key belongs to."""
        return await self.client.account()

    @property
    def version(self) -> str | None:
        """The version that trains; None = the newest."""
        return self._settings.version or None

    async def versions(self, model_id: str | None) -> list[VersionView]:
        """The versions of a model, or of the one that trains."""
        model = model_id or self._settings.model
        return await self.client.versions(model) if model else []

    async def balance(self) -> Balance:
        """Nobody can say."""
        return Balance(micro_usd=None, note="Replicate has no billing endpoint; see replicate.com/account/billing.")

    async def close(self) -> None:
        """Gives back connections."""
        await self._egress.close()

    def _trainers(self) -> dict[str, str]:
        own = {self._settings.hardware: self._settings.model} if self._settings.model else {}
        return {**self._settings.trainers, **own}

    def _price_of(self, model: str) -> int:
        name = next((name for name, each in self._trainers().items() if each == model), self._settings.hardware)
        hardware = hardware_of(name)
        offer = None if hardware is None else hardware.offer(NAME, self._settings.prices_usd_per_s, "unknown")
        return 0 if offer is None else offer.price_micro_usd_per_hour

    def _trainer_for(self, offer: Offer | None) -> str:
        wanted = _sku(self._settings.hardware if offer is None else offer.hardware)
        model = next((model for name, model in self._trainers().items() if _sku(name) == wanted), None)
        if model is None:
            raise StartRefused(
                f"There is no trainer model for Replicate's hardware {wanted}.",
                "Push deploy/replicate to a model with that hardware, and name it in the provider's settings "
                "(model, or trainers).",
            )
        if self._settings.run_as == "training" and not self._settings.destination:
            raise StartRefused(
                "It is not said which of your models Replicate shall put trainings in.",
                "Create a model at Replicate and set `destination` to its owner/name.",
            )
        return model

    def _body(self, order: StartOrder) -> Object:
        label = order.tag.label(self._installation)
        spec = msgspec.json.encode(order.spec).decode()
        given: Object = {"run_spec": spec, "token": order.token, "label": label}
        if order.max_run_s is not None:
            given["max_run_s"] = order.max_run_s
        body: Object = {"input": given}
        if self._settings.run_as == "training":
            body["destination"] = self._settings.destination
        url = webhook_for(order.webhook_url, self._settings.api_url)
        if url is not None:
            body |= {"webhook": _labelled(url, label), "webhook_events_filter": _EVENTS}
        return body

    async def _newest(self, tag: Tag) -> RunView | None:
        await self._renew_secrets()
        found: list[tuple[int, bool, RunView]] = []
        async for shown, answer in self._api.runs(since=self._since(tag.attempt_id)):
            known = Tag.parse(label_of(shown), self._installation)
            if known is not None and known.attempt_id == tag.attempt_id:
                view = self._view(shown, answer)
                found.append((known.epoch, not _is_over(view.word), view))
        return max(found, key=lambda each: each[:2])[2] if found else None

    def _view(self, shown: Object, answer: Answer) -> RunView:
        known = Tag.parse(label_of(shown), self._installation)
        view = view_of(shown, self._api.ref(a_text(shown["id"])), answer)
        return view if known is None else msgspec.structs.replace(view, epoch=known.epoch)

    def _since(self, attempt_id: UUID) -> datetime:
        """No run of the attempt is older: its id says when it was made, by a clock that may differ from ours."""
        now, born = self._clock(), _born(attempt_id)
        oldest = now - self._oldest
        if born is None or born - now > _CLOCKS_DIFFER:
            return oldest
        return max(born - _CLOCKS_DIFFER, oldest)

    async def _renew_secrets(self) -> None:
        """Fetches the webhook secret when it is due. A failure costs webhooks alone: looking goes on without them."""
        now = self._clock()
        if not self._secrets.is_due(now):
            return
        self._secrets.asked(now)
        try:
            self._secrets.learned(await self.client.webhook_secret())
        except (Unavailable, StartRefused, VendorRefused):
            return


def _is_over(word: str) -> bool:
    return read_word(NAME, word) in _OVER


def _sku(name: str) -> str:
    hardware = hardware_of(name)
    return name if hardware is None else hardware.sku


def _born(attempt_id: UUID) -> datetime | None:
    """When a UUID version 7 was made; None for others."""
    return datetime.fromtimestamp((attempt_id.int >> 80) / 1000, UTC) if attempt_id.version == _UUID7 else None


def _labelled(url: str, label: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query=urlencode([*parse_qsl(parts.query), ("label", label)])))


KIND = ProviderKind(
    name=NAME,
    title="Replicate",
    description="Trainings of a model of yours on Replicate's GPUs, charged by the second of training.",
    credentials=(CredentialField(name="api_token", variable="REPLICATE_API_TOKEN"),),
    settings=ReplicateSettings,
    capabilities=CAPABILITIES,
    build=ReplicateProvider,
    listed=tuple(each.offer(NAME, {}, "unknown") for each in HARDWARE),
)
