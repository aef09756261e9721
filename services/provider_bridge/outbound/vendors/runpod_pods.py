"""RunPod pods by its REST API v2 (`runpod`): a container on rented GPUs that ends itself, or is ended by us.

The vendor's client has no v2 and pastes values into GraphQL text (providers.md §3.6), so the calls are made here.
A pod has no exit code and no deadline of its own: the trainer reports, the bridge meters and ends the machine
(docs/decisions/0024). 60 calls a minute are allowed, so one list of all pods answers every question about any.
"""

import base64
import http
from collections.abc import Mapping
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any

import msgspec

from services.provider_bridge.outbound.egress import Answer, Egress, Forbidden, RateLimit, VendorRefused
from services.provider_bridge.outbound.fences import Fences
from services.provider_bridge.outbound.kinds import CredentialField, Materials, ProviderKind
from services.provider_bridge.outbound.ports import (
    Account,
    Balance,
    Capabilities,
    CredentialRefused,
    LogPage,
    NoCapacity,
    OurRun,
    RunView,
    StartOrder,
    StartRefused,
    Tag,
    WebhookNote,
    WebhookRefused,
)
from services.provider_bridge.outbound.vendors.machines import Machine, Roll
from services.provider_bridge.outbound.vendors.reach import check_reach
from services.provider_bridge.outbound.vendors.runpod_gpus import CatalogueShown, Cloud, Profile, gpu_id, offers
from services.provider_bridge.outbound.vendors.runpod_shapes import (
    AccountShown,
    BalanceShown,
    BillsShown,
    PodShown,
    PodsShown,
    line_of,
    start_refused,
)
from services.provider_bridge.outbound.vendors.server_events import events_of
from services.provider_bridge.outbound.vendors.shapes import a_moment
from shared.contracts.offers import Offer
from shared.problems import Unavailable

NAME = "runpod"
API_URL = "https://api.runpod.io"
CAPABILITIES = Capabilities(
    can_cancel=True,
    live_logs=True,
    cost=True,
    spot=False,
    max_run_time_s=None,
    upload_limit_bytes=None,
    site=None,
    metering="machine",
    knows_outcome=False,
    default_hardware="NVIDIA GeForce RTX 4090",
)
LOG_LINES = 1000
"""The most lines of one page."""
_LOG_QUIET_S = 1.0
"""The stream stays open: after so long without a line the page is whole."""
_HAS_STOPPED = frozenset({"EXITED", "ERROR"})
_HAS_CONTAINER = frozenset({"RUNNING", "STARTING"})
_KEPT = 10_000


class RunPodSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where and on what pods run."""

    api_url: str = API_URL
    image: str = ""
    """The image of deploy/runpod/Dockerfile, as RunPod can pull it."""
    gpu: str = "RTX 4090"
    """For runs without a chosen offer."""
    gpu_count: int = 1
    clouds: tuple[Cloud, ...] = ("SECURE", "COMMUNITY")
    """Which may be used: COMMUNITY is cheaper, and its hosts belong to strangers. The first is the default."""
    data_center_ids: tuple[str, ...] = ()
    """Where pods may be put; empty = anywhere."""
    disk_gb: int = 60
    network_volume_id: str = ""
    """Keeps base models and checkpoints from run to run; it lies in one data centre, and so do the pods then."""
    volume_path: str = "/runpod-volume"
    registry_id: str = ""
    """RunPod's credential of a private registry."""
    min_cuda_version: str = ""
    calls_per_minute: int = 60
    """Of RunPod's v2 API, as the account's RateLimit-Policy allows."""


class RunPodPods:
    """The pods of one account."""

    def __init__(self, materials: Materials) -> None:
        self._settings: RunPodSettings = materials.settings
        self._installation = materials.installation
        self._clock = materials.clock
        key = materials.credentials["api_key"].reveal()
        limits = (RateLimit(calls=self._settings.calls_per_minute, per_s=60),)
        headers = {"Authorization": f"Bearer {key}"}
        self._api = Egress(self._settings.api_url, materials.network, self._clock, headers=headers, limits=limits)
        self._roll = Roll(self._installation, self._listed, self._show, 60 / self._settings.calls_per_minute)
        self._fences = Fences()
        self._prices: dict[str, int] = {}
        self._stopped: dict[str, datetime] = {}
        """What each pod cost while it ran, in micro-dollars per hour: a pod that has stopped shows 0."""
        self._stop_asked: dict[str, datetime] = {}

    @property
    def name(self) -> str:
        """`runpod`."""
        return NAME

    @property
    def capabilities(self) -> Capabilities:
        """Any length of run; no spot pods in v2; no outcome."""
        return CAPABILITIES

    async def quote(self) -> list[Offer]:
        """Every GPU in the clouds and data centres that may be used, at its list price."""
        found: list[Offer] = []
        for cloud in self._settings.clouds:
            params = {"include": "AVAILABILITY", "product": "POD", "cloud": cloud}
            found += offers(NAME, (await self._read("/v2/catalog/gpus", params)).read(CatalogueShown).gpus, cloud)
        only = self._settings.data_center_ids
        return [offer for offer in found if not only or offer.region is None or offer.region in only]

    async def submit(self, order: StartOrder) -> str:
        """Creates a pod under the tag's name, unless there is one."""
        self._fences.check(order.tag)
        check_reach(order.spec.gateway_url, self._settings.api_url)
        body = self._body(order)
        there = await self._roll.under(order.tag)
        if there is not None:
            return there.ref
        try:
            answer = await self._api.start("/v2/pods", json=body, check=lambda: self._fences.check(order.tag))
        except VendorRefused as refusal:
            raise start_refused(refusal, order.token) from refusal
        except Forbidden as refusal:
            # Valid keys are refused single GPUs by 403: the next candidate may do (providers.md §3.2).
            raise NoCapacity(f"RunPod does not give this account such a machine: {refusal.message}") from refusal
        return self._machine(answer.read(PodShown), answer).ref

    async def find(self, tag: Tag) -> RunView | None:
        """The attempt's newest pod, one that has merely stopped included."""
        self._fences.check(tag)
        return await self._roll.newest(tag.attempt_id)

    async def fetch(self, ref: str) -> RunView | None:
        """The pod; one that is deleted is shown as TERMINATED once RunPod's bill for it is closed."""
        return await self._roll.view(ref) or await self._billed(ref)

    async def logs(self, ref: str, after: str | None) -> LogPage:
        """The container's lines; the cursor is the id of the last event."""
        params: dict[str, Any] = {"source": "container", "tail": 5000}
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after is not None else {})}
        lines: list[str] = []
        cursor = after
        try:
            async with (
                self._api.stream(f"/v2/pods/{ref}/logs", params=params, headers=headers) as response,
                aclosing(events_of(response, quiet_s=_LOG_QUIET_S)) as events,
            ):
                async for event in events:
                    if event.id and event.id == after:
                        continue  # resumed at the event instead of behind it
                    lines.append(line_of(event.data))
                    cursor = event.id or cursor
                    if len(lines) >= LOG_LINES:
                        break
        except VendorRefused:
            return LogPage(lines=[], cursor=after)  # it has no log, or is not there any more
        return LogPage(lines=lines, cursor=cursor)

    async def cancel(self, tag: Tag, ref: str, grace_s: float) -> None:
        """Stops the container, so that its trainer may save, and deletes the pod once it has stopped or had its time.

        A pod that has stopped still costs its disk: whoever wants it gone asks until `confirm_gone`.
        """
        self._fences.check(tag)
        machine = await self._roll.one(ref)
        if machine is None or machine.is_over:
            return
        asked = self._stop_asked.get(ref)
        if machine.word in _HAS_CONTAINER and asked is None and grace_s > 0:
            self._stop_asked[ref] = self._clock()
            _forget_oldest(self._stop_asked)
            await self._tolerated("POST", f"/v2/pods/{ref}/action", {"action": "stop"})
        elif machine.word in _HAS_STOPPED or asked is None or self._clock() - asked >= timedelta(seconds=grace_s):
            await self._tolerated("DELETE", f"/v2/pods/{ref}")

    async def confirm_gone(self, ref: str) -> bool:
        """Whether the pod is deleted: one that has stopped is not gone, its disk costs money."""
        return await self._roll.is_gone(ref)

    async def list_ours(self) -> list[OurRun]:
        """Every pod of ours that is not deleted."""
        return await self._roll.alive()

    def verify_webhook(self, headers: Mapping[str, str], query: Mapping[str, str], body: bytes) -> WebhookNote:  # noqa: ARG002 - the port's signature
        """RunPod sends none about pods."""
        raise WebhookRefused("unreadable", "RunPod sends no webhooks about pods")

    async def validate_credentials(self) -> Account:
        """Whose key it is."""
        try:
            account = (await self._api.get("/v2/account")).read(AccountShown)
        except VendorRefused as refusal:
            raise Unavailable(f"RunPod does not tell whose key this is: {refusal}") from refusal
        return Account(username=account.email or account.id, detail=f"account {account.id}")

    async def balance(self) -> Balance:
        """What is left, if the key may read it."""
        try:
            shown = (await self._api.get("/v2/billing/balance")).read(BalanceShown)
        except (VendorRefused, Forbidden):
            return Balance(micro_usd=None, note="This key may not read it: see Billing in RunPod's console.")
        if shown.billing_mode != "PREPAID":
            return Balance(micro_usd=None, note=f"The account is {shown.billing_mode.lower()}: RunPod sends invoices.")
        return Balance(micro_usd=round(shown.balance_amount * 1_000_000))

    async def close(self) -> None:
        """Gives back connections."""
        await self._api.close()

    async def _listed(self) -> list[Machine]:
        answer = await self._read("/v2/pods")
        return [self._machine(pod, answer) for pod in answer.read(PodsShown).pods]

    async def _show(self, ref: str) -> Machine | None:
        try:
            answer = await self._api.get(f"/v2/pods/{ref}")
        except VendorRefused as refusal:
            if refusal.status == http.HTTPStatus.NOT_FOUND:
                return None
            raise Unavailable(f"RunPod does not show the pod: {refusal}") from refusal
        return self._machine(answer.read(PodShown), answer)

    async def _billed(self, ref: str) -> RunView | None:
        """A deleted pod with the seconds that RunPod charges for; None until its last hour is over, or without a price.

        The hour in progress is still being added up, so a record of it would be too small.
        """
        price = self._prices.get(ref)
        if price is None:
            return None
        params = {"podId": ref, "bucketSize": "hour"}
        try:
            records = (await self._read("/v2/billing/pods", params)).read(BillsShown).records
        except CredentialRefused:
            return None
        ends = [a_moment(record.end_time) for record in records]
        if not records or any(end is None or end > self._clock() for end in ends):
            return None
        billed_s = sum(record.gpu_amount for record in records) * 1_000_000 / price * 3600
        return RunView(ref=ref, word="TERMINATED", billed_s=billed_s)

    def _machine(self, pod: PodShown, answer: Answer) -> Machine:
        price = round((pod.cost or 0.0) * 1_000_000)
        if price:
            self._prices[pod.id] = price
            _forget_oldest(self._prices)
        created_at = a_moment(pod.created_at)
        return Machine(
            ref=pod.id,
            label=pod.name,
            word=pod.status,
            started_at=answer.ours(created_at) if created_at is not None else None,
            price_micro_usd_per_hour=price,
            is_over=pod.status == "TERMINATED",
            stopped_at=self._stopped_since(pod),
        )

    def _stopped_since(self, pod: PodShown) -> datetime | None:
        """When we first saw it stopped: RunPod does not say when that was, and its GPUs cost nothing since then."""
        if pod.status in _HAS_STOPPED and pod.id not in self._stopped:
            self._stopped[pod.id] = self._clock()
            _forget_oldest(self._stopped)
        return self._stopped.get(pod.id)

    def _body(self, order: StartOrder) -> dict[str, Any]:
        """What creates the pod. Raises StartRefused when the settings do not say enough."""
        chosen = self._settings
        if not chosen.image:
            raise StartRefused(
                "No image is set for RunPod's pods.",
                "Build deploy/runpod/Dockerfile, push it, and set `image` of the provider `runpod`.",
            )
        profile = Profile(gpu_id(chosen.gpu), chosen.gpu_count, *chosen.clouds[:1])
        regions = chosen.data_center_ids
        if order.offer is not None:
            profile = Profile.parse(order.offer.hardware)
            regions = (order.offer.region,) if order.offer.region is not None else regions
        gpu: dict[str, Any] = {"id": profile.gpu, "count": profile.count}
        if chosen.min_cuda_version:
            gpu["minCudaVersion"] = chosen.min_cuda_version
        body: dict[str, Any] = {
            "name": order.tag.label(self._installation),
            "image": chosen.image,
            "gpu": gpu,
            "cloud": profile.cloud,
            "disk": chosen.disk_gb,
            "env": _environment(order, chosen.api_url),
        }
        if regions:
            body["dataCenterIds"] = list(regions)
        if chosen.registry_id:
            body["registry"] = chosen.registry_id
        if chosen.network_volume_id:
            volume = {"volumeId": chosen.network_volume_id, "path": chosen.volume_path}
            body["mounts"] = {"network": [volume]}
        return body

    async def _read(self, path: str, params: Mapping[str, str] | None = None) -> Answer:
        try:
            return await self._api.get(path, params=params)
        except VendorRefused as refusal:
            raise Unavailable(f"RunPod does not answer {path}: {refusal}") from refusal

    async def _tolerated(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        """A call that may come too late: the pod is gone (404), or is in another state by now (409)."""
        try:
            await self._api.call(method, path, json=body)
        except VendorRefused as refusal:
            if refusal.status not in {http.HTTPStatus.NOT_FOUND, http.HTTPStatus.CONFLICT}:
                raise Unavailable(f"RunPod does not end the pod: {refusal}") from refusal


def _environment(order: StartOrder, api_url: str) -> dict[str, str]:
    """What `trainer.entry.container` reads (docs/provider-entries.md)."""
    env = {
        "TUNEWRIGHT_RUN_SPEC_BASE64": base64.b64encode(msgspec.json.encode(order.spec)).decode(),
        "TUNEWRIGHT_ATTEMPT_TOKEN": order.token,
        "TUNEWRIGHT_AT_END": "terminate-runpod-pod",
    }
    if order.spec.gateway_url is not None:
        env["TUNEWRIGHT_GATEWAY_URL"] = order.spec.gateway_url
    if order.max_run_s is not None:
        env["TUNEWRIGHT_MAX_RUN_S"] = str(order.max_run_s)
    if api_url != API_URL:
        env["TUNEWRIGHT_RUNPOD_API_URL"] = api_url
    return env


def _forget_oldest(kept: dict[str, Any]) -> None:
    while len(kept) > _KEPT:
        kept.pop(next(iter(kept)))


KIND = ProviderKind(
    name=NAME,
    title="RunPod pods",
    description="A container on rented GPUs, for runs of any length.",
    credentials=(CredentialField(name="api_key", variable="RUNPOD_API_KEY"),),
    settings=RunPodSettings,
    capabilities=CAPABILITIES,
    build=RunPodPods,
)
