"""Lambda Cloud (`lambda`): a virtual machine that runs one job and costs money until it is terminated.

The vendor has no client worth having (providers.md §4.2). It knows no job, log, exit code, stop or launch time: the
trainer reports, the launch time stands in a tag of ours, and the bridge ends the machine (docs/decisions/0024).
"""

import asyncio
import http
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from services.provider_bridge.outbound.egress import (
    Answer,
    Egress,
    Forbidden,
    RateLimit,
    VendorRefused,
    limiter_of,
)
from services.provider_bridge.outbound.fences import Fences
from services.provider_bridge.outbound.kinds import CredentialField, Materials, ProviderKind
from services.provider_bridge.outbound.ports import (
    Account,
    Balance,
    Capabilities,
    CredentialRefused,
    LogPage,
    NoCapacity,
    NoFunds,
    OurRun,
    RunView,
    StartOrder,
    StartRefused,
    Tag,
    WebhookNote,
    WebhookRefused,
)
from services.provider_bridge.outbound.vendors.lambda_boot import Source, user_data
from services.provider_bridge.outbound.vendors.lambda_shapes import (
    InstanceShown,
    InstancesShown,
    KeysShown,
    LaunchedShown,
    OneShown,
    TypesShown,
    offers,
    refusal_of,
)
from services.provider_bridge.outbound.vendors.machines import Machine, Roll
from services.provider_bridge.outbound.vendors.reach import check_reach
from shared.contracts.offers import Offer
from shared.problems import Unavailable

NAME = "lambda"
API_URL = "https://cloud.lambda.ai"
LABEL_TAG = "tunewright-run"
STARTED_TAG = "tunewright-started"
"""Milliseconds since 1970 by our clock, when the launch was asked for: Lambda does not show it."""
CAPABILITIES = Capabilities(
    can_cancel=True,
    live_logs=False,
    cost=False,
    spot=False,
    max_run_time_s=None,
    upload_limit_bytes=None,
    site=None,
    metering="machine",
    knows_outcome=False,
    default_hardware="gpu_1x_a10",
)
_ON_ITS_WAY_OUT = "terminating"


class LambdaSettings(Source, frozen=True, kw_only=True):
    """Where and on what machines run, and where they get the trainer."""

    api_url: str = API_URL
    instance_type: str = "gpu_1x_a10"
    """For runs without a chosen offer."""
    regions: tuple[str, ...] = ()
    """Where those may be put, the best first; empty = anywhere."""
    ssh_key_name: str = ""
    """Lambda wants one for each machine; empty = the account's first."""
    image_family: str = ""
    """Of the machine's disk; empty = Lambda's default, which has drivers and Docker."""
    calls_per_s: float = 1.0
    launches_per_minute: float = 5.0
    longest_launch_wait_s: float = 30.0
    """For a launch's turn; whoever would wait longer goes back to the scheduler's queue."""


class LambdaCloud:
    """The machines of one account."""

    def __init__(self, materials: Materials) -> None:
        self._settings: LambdaSettings = materials.settings
        self._installation = materials.installation
        self._clock = materials.clock
        pace = RateLimit(calls=1, per_s=1 / self._settings.calls_per_s)
        launch_pace = RateLimit(calls=1, per_s=60 / self._settings.launches_per_minute)
        headers = {"Authorization": f"Bearer {materials.credentials['api_key'].reveal()}"}
        url = f"{self._settings.api_url}/api/v1"
        self._api = Egress(url, materials.network, self._clock, headers=headers, limits=(pace,))
        self._launch_turns = limiter_of(self._api.account, launch_pace)
        # Lists leave every other call to launches and ends.
        self._roll = Roll(self._installation, self._listed, self._show, 2 / self._settings.calls_per_s)
        self._fences = Fences()

    @property
    def name(self) -> str:
        """`lambda`."""
        return NAME

    @property
    def capabilities(self) -> Capabilities:
        """Any length of run; no logs, no outcome, no bill."""
        return CAPABILITIES

    async def quote(self) -> list[Offer]:
        """One offer for each type and region that has it; types that nobody has now are shown as such."""
        return offers(NAME, (await self._types()).data.values())

    async def submit(self, order: StartOrder) -> str:
        """Launches a machine under the tag's name, unless there is one."""
        self._fences.check(order.tag)
        check_reach(order.spec.gateway_url, self._settings.api_url)
        script = user_data(order, self._settings)
        there = await self._roll.under(order.tag)
        if there is not None:
            return there.ref
        kind, region = await self._place(order.offer)
        key = self._settings.ssh_key_name or await self._first_key()
        await self._launch_turn()
        label = order.tag.label(self._installation)
        tags = {LABEL_TAG: label, STARTED_TAG: str(int(self._clock().timestamp() * 1000))}
        body: dict[str, Any] = {
            "region_name": region,
            "instance_type_name": kind,
            "ssh_key_names": [key],
            "name": label,
            "user_data": script,
            "tags": [{"key": name, "value": value} for name, value in tags.items()],
        }
        if self._settings.image_family:
            body["image"] = {"family": self._settings.image_family}
        try:
            answer = await self._api.start(
                "/instance-operations/launch", json=body, check=lambda: self._fences.check(order.tag)
            )
        except (VendorRefused, Forbidden) as refusal:
            raise refusal_of(refusal, order.token) from refusal
        ids = answer.read(LaunchedShown).data.instance_ids
        if not ids:
            raise Unavailable("Lambda answered a launch without a machine")
        return ids[0]

    async def find(self, tag: Tag) -> RunView | None:
        """The attempt's newest machine."""
        self._fences.check(tag)
        return await self._roll.newest(tag.attempt_id)

    async def fetch(self, ref: str) -> RunView | None:
        """The machine; None once Lambda has forgotten it."""
        return await self._roll.view(ref)

    async def logs(self, ref: str, after: str | None) -> LogPage:  # noqa: ARG002 - the port's signature
        """Lambda has none; the trainer's own log comes with its reports."""
        return LogPage(lines=[], cursor=after)

    async def cancel(self, tag: Tag, ref: str, grace_s: float) -> None:  # noqa: ARG002 - there is nothing between running and terminated
        """Terminates the machine at once. A trainer is asked to save by its gateway, long before."""
        self._fences.check(tag)
        machine = await self._roll.one(ref)
        if machine is None or machine.is_over or machine.word == _ON_ITS_WAY_OUT:
            return
        try:
            await self._call("POST", "/instance-operations/terminate", {"instance_ids": [ref]}, repeats=True)
        except StartRefused as refusal:
            if isinstance(refusal, CredentialRefused | NoFunds):
                raise
            if not await self._roll.is_gone(ref):
                raise Unavailable(f"Lambda does not terminate the machine: {refusal.message}") from refusal

    async def confirm_gone(self, ref: str) -> bool:
        """Whether the machine is terminated: an unhealthy or a preempted one is not, as far as anybody can tell."""
        return await self._roll.is_gone(ref)

    async def list_ours(self) -> list[OurRun]:
        """Every machine of ours that is not terminated."""
        return await self._roll.alive()

    def verify_webhook(self, headers: Mapping[str, str], query: Mapping[str, str], body: bytes) -> WebhookNote:  # noqa: ARG002 - the port's signature
        """Lambda sends none."""
        raise WebhookRefused("unreadable", "Lambda sends no webhooks")

    async def validate_credentials(self) -> Account:
        """That the key is accepted; whose it is Lambda does not tell."""
        keys = (await self._read("/ssh-keys")).read(KeysShown).data
        names = ", ".join(key.name for key in keys) or "none, and a launch needs one"
        return Account(username="Lambda account", detail=f"SSH keys: {names}")

    async def balance(self) -> Balance:
        """Lambda sends invoices and tells nothing here."""
        return Balance(micro_usd=None, note="Lambda sends invoices: see Billing in its console.")

    async def close(self) -> None:
        """Gives back connections."""
        await self._api.close()

    async def _types(self) -> TypesShown:
        return (await self._read("/instance-types")).read(TypesShown)

    async def _place(self, offer: Offer | None) -> tuple[str, str]:
        """Type and region. Raises NoCapacity when Lambda already says that no region will do."""
        if offer is not None and offer.region is not None:
            return offer.hardware, offer.region
        kind = offer.hardware if offer is not None else self._settings.instance_type
        shown = (await self._types()).data.get(kind)
        if shown is None:
            raise StartRefused(
                f"Lambda has no machines of the type {kind}.", "Choose one that `GET /api/cloud/providers` offers."
            )
        there = [region.name for region in shown.regions_with_capacity_available]
        wanted = self._settings.regions or tuple(there)
        region = next((name for name in wanted if name in there), None)
        if region is None:
            raise NoCapacity(f"Lambda has no {kind} now in {', '.join(self._settings.regions) or 'any region'}.")
        return kind, region

    async def _launch_turn(self) -> None:
        try:
            async with asyncio.timeout(self._settings.longest_launch_wait_s):
                await self._launch_turns.acquire()
        except TimeoutError:
            raise NoCapacity(
                f"Lambda takes {self._settings.launches_per_minute:g} launches a minute, and others wait before this."
            ) from None

    async def _first_key(self) -> str:
        keys = (await self._read("/ssh-keys")).read(KeysShown).data
        if not keys:
            raise StartRefused("The Lambda account has no SSH key, and a launch needs one.", "Add one in its console.")
        return keys[0].name

    async def _listed(self) -> list[Machine]:
        answer = await self._read("/instances")
        return [self._machine(shown) for shown in answer.read(InstancesShown).data]

    async def _show(self, ref: str) -> Machine | None:
        try:
            answer = await self._api.get(f"/instances/{ref}")
        except VendorRefused as refusal:
            if refusal.status == http.HTTPStatus.NOT_FOUND:
                return None
            raise Unavailable(f"Lambda does not show the machine: {refusal}") from refusal
        return self._machine(answer.read(OneShown).data)

    def _machine(self, shown: InstanceShown) -> Machine:
        tags = {tag.key: tag.value for tag in shown.tags or []}
        started = tags.get(STARTED_TAG, "")
        return Machine(
            ref=shown.id,
            label=tags.get(LABEL_TAG) or shown.name or "",
            word=shown.status,
            started_at=datetime.fromtimestamp(int(started) / 1000, UTC) if started.isdecimal() else None,
            price_micro_usd_per_hour=round(shown.price_cents * 10_000),
            is_over=shown.status == "terminated",
        )

    async def _read(self, path: str) -> Answer:
        try:
            return await self._call("GET", path)
        except StartRefused as refusal:
            if isinstance(refusal, CredentialRefused | NoFunds):
                raise
            raise Unavailable(f"Lambda does not answer {path}: {refusal.message}") from refusal

    async def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        repeats: bool | None = None,
    ) -> Answer:
        try:
            return await self._api.call(method, path, json=body, repeats=repeats)
        except (VendorRefused, Forbidden) as refusal:
            raise refusal_of(refusal) from refusal


KIND = ProviderKind(
    name=NAME,
    title="Lambda Cloud",
    description="A virtual machine with GPUs, for runs of any length.",
    credentials=(CredentialField(name="api_key", variable="LAMBDA_API_KEY"),),
    settings=LambdaSettings,
    capabilities=CAPABILITIES,
    build=LambdaCloud,
)
