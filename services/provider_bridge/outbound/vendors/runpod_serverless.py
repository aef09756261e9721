"""RunPod serverless: one run is one job of an endpoint whose workers run deploy/runpod.

RunPod deletes a job when its `ttl` is over, running or not, and lets none run longer than seven days: longer trainings
belong on a pod. What can and cannot be known of a job whose start was lost: docs/decisions/0023.
"""

from collections.abc import Mapping
from contextlib import suppress

import msgspec

from services.provider_bridge.outbound.egress import Egress, VendorRefused
from services.provider_bridge.outbound.fences import Fences
from services.provider_bridge.outbound.kinds import CredentialField, Materials, ProviderKind
from services.provider_bridge.outbound.ports import (
    Account,
    Balance,
    Capabilities,
    CredentialRefused,
    LogPage,
    OurRun,
    RunView,
    StartOrder,
    StartRefused,
    Tag,
    WebhookNote,
)
from services.provider_bridge.outbound.vendors.reach import check_reach, webhook_for
from services.provider_bridge.outbound.vendors.runpod_serverless_client import RunPodEndpoints
from services.provider_bridge.outbound.vendors.runpod_serverless_jobs import (
    JOB_LIMITS,
    LIST_LIMITS,
    NAME,
    RunPodJobs,
    is_over,
)
from services.provider_bridge.outbound.vendors.runpod_serverless_prices import HOUR_S, Pool, pool_in_catalogue
from services.provider_bridge.outbound.vendors.runpod_serverless_webhooks import verify, with_secret
from services.provider_bridge.outbound.vendors.shapes import Object, a_list, a_number, a_text, an_object
from shared.contracts.offers import Offer
from shared.problems import Unavailable
from shared.settings import Secret

LONGEST_S = 7 * 24 * 3600
"""Of execution, and of a job's whole life."""
DELIVERY_S = 900
"""From the moment a trainer is told to save and end to the moment RunPod ends its job."""
MAX_RUN_S = LONGEST_S - DELIVERY_S
_MICRO = 1_000_000

CAPABILITIES = Capabilities(
    can_cancel=True,
    live_logs=False,
    cost=True,
    spot=False,
    max_run_time_s=MAX_RUN_S,
    upload_limit_bytes=None,
    site=None,
    metering="machine",
    webhooks=True,
    tested_against="vendor program",
)


class RunPodServerlessSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which endpoint (deploy/runpod/README.md) and its limits. Times in seconds."""

    api_url: str = "https://api.runpod.ai/v2"
    """Of the job API."""
    control_url: str = "https://api.runpod.io/v2"
    """Of RunPod's REST API, which knows pools and prices."""
    endpoint_id: str = ""
    gpu_pool: str = ""
    """The pool of the endpoint's workers, such as ADA_80_PRO; empty = RunPod is asked."""
    gpu_count: int = 1
    """GPUs of each worker; not used when RunPod is asked for the pool."""
    price_usd_per_s: float | None = None
    """Of a worker; None = by RunPod's catalogue."""
    max_run_s: int = 6 * 24 * 3600
    """Of a job that says nothing itself: every job is sent with a limit."""
    queue_s: int = 24 * 3600
    """How long a job may wait for a worker, where the seven days of its whole life leave room for it."""


class RunPodServerlessProvider:
    """The runs of one endpoint."""

    def __init__(self, materials: Materials) -> None:
        settings: RunPodServerlessSettings = materials.settings
        self._settings = settings
        self._installation = materials.installation
        self._key = materials.credentials["api_key"]
        headers = {"Authorization": Secret(f"Bearer {self._key.reveal()}")}
        network, clock = materials.network, materials.clock
        self._egresses = (
            Egress(settings.api_url, network, clock, headers=headers, limits=JOB_LIMITS),
            Egress(settings.api_url, network, clock, headers=headers, limits=LIST_LIMITS),
            Egress(settings.control_url, network, clock, headers=headers),
        )
        jobs, lists, self._control = self._egresses
        self._jobs = RunPodJobs(jobs, lists, settings.endpoint_id, clock)
        self._endpoints = RunPodEndpoints(settings.api_url, self._key, network)
        self._fences = Fences()

    @property
    def name(self) -> str:
        """`runpod_serverless`."""
        return NAME

    @property
    def capabilities(self) -> Capabilities:
        """Cancels, tells seconds and outcome; nothing runs longer than a week."""
        return msgspec.structs.replace(CAPABILITIES, default_hardware=self._settings.gpu_pool)

    async def quote(self) -> list[Offer]:
        """The endpoint's pool, at the catalogue's price; none without an endpoint."""
        settings = self._settings
        if not settings.endpoint_id:
            return []
        pool_id, count = await self._pool()
        pool = await self._priced(pool_id)
        usd_per_s = pool.usd_per_gpu_s * count if settings.price_usd_per_s is None else settings.price_usd_per_s
        return [
            Offer(
                provider=NAME,
                hardware=pool.id,
                gpu=pool.gpu,
                gpu_count=count,
                vram_gb=pool.vram_gb,
                price_micro_usd_per_hour=round(usd_per_s * HOUR_S * _MICRO),
                availability=pool.availability,
                max_run_s=MAX_RUN_S,
            )
        ]

    async def submit(self, order: StartOrder) -> str:
        """Queues a job with both of its limits, unless one with this very tag is there."""
        self._fences.check(order.tag)
        settings = self._settings
        check_reach(order.spec.gateway_url, settings.api_url)
        self._check_endpoint()
        run_s = settings.max_run_s if order.max_run_s is None else order.max_run_s
        if run_s > MAX_RUN_S:
            raise StartRefused(
                f"RunPod serverless lets no job run for {run_s} s: at most {MAX_RUN_S} s, and {DELIVERY_S} s to save.",
                "Lower max_run_s, or use RunPod pods (provider `runpod`), which have no such limit.",
            )
        label = order.tag.label(self._installation)
        found = await self._known(order.tag)
        if found is not None and found[0] == order.tag.epoch:
            return found[1]
        body: Object = {
            "input": {
                "run_spec": msgspec.to_builtins(order.spec),
                "token": order.token,
                "label": label,
                "max_run_s": run_s,
            },
            "policy": {
                "executionTimeout": (run_s + DELIVERY_S) * 1000,
                "ttl": min(run_s + DELIVERY_S + settings.queue_s, LONGEST_S) * 1000,
            },
        }
        url = webhook_for(order.webhook_url, settings.api_url)
        if url is not None:
            body["webhook"] = with_secret(url, self._key, label)
        return await self._jobs.run(body, lambda: self._fences.check(order.tag))

    async def find(self, tag: Tag) -> RunView | None:
        """The attempt's job of the highest epoch among those that RunPod lists and whose label it shows."""
        self._fences.check(tag)
        found = await self._known(tag)
        if found is None:
            return None
        epoch, ref = found
        view = await self._jobs.fetch(ref)
        return None if view is None else msgspec.structs.replace(view, epoch=epoch)

    async def fetch(self, ref: str) -> RunView | None:
        """The job as `/status` shows it; RunPod forgets it half an hour after its end, and at the end of its ttl."""
        return await self._jobs.fetch(ref)

    async def logs(self, ref: str, after: str | None) -> LogPage:  # noqa: ARG002 - the port's signature
        """Nothing: a worker's log is not a job's. The trainer reports its own to the gateway."""
        return LogPage(lines=[], cursor=after)

    async def cancel(self, tag: Tag, ref: str, grace_s: float) -> None:  # noqa: ARG002 - the handler has its own grace
        """Asks RunPod to cancel; the handler's task is cancelled, and it ends its trainer in good order."""
        self._fences.check(tag)
        view = await self._jobs.fetch(ref)
        if view is None or is_over(view.word):
            return
        with suppress(LookupError):  # it ended meanwhile
            await self._endpoints.cancel(ref)

    async def confirm_gone(self, ref: str) -> bool:
        """Whether RunPod says that it has ended; what it does not know is gone."""
        view = await self._jobs.fetch(ref)
        return view is None or is_over(view.word)

    async def list_ours(self) -> list[OurRun]:
        """Listed jobs that live and whose label is of this installation."""
        return [
            OurRun(tag=tag, ref=ref)
            async for label, ref, word in self._jobs.labelled()
            if not is_over(word) and (tag := Tag.parse(label, self._installation)) is not None
        ]

    def verify_webhook(self, headers: Mapping[str, str], query: Mapping[str, str], body: bytes) -> WebhookNote:  # noqa: ARG002 - RunPod signs nothing
        """Checks the secret in the address."""
        endpoint_id = self._settings.endpoint_id
        return verify(query, body, key=self._key, installation=self._installation, endpoint_id=endpoint_id)

    async def validate_credentials(self) -> Account:
        """The endpoint's health, which tells whether key and endpoint belong together."""
        if not self._settings.endpoint_id:
            listed = an_object((await self._control.get("/serverless")).json())
            return Account(username="RunPod", detail=f"{len(a_list(listed.get('serverless')))} endpoints, none chosen")
        try:
            health = await self._endpoints.health(self._settings.endpoint_id)
        except LookupError as error:
            raise CredentialRefused(
                f"RunPod has no endpoint {self._settings.endpoint_id} for this key.", "Check endpoint_id and the key."
            ) from error
        workers = an_object(health.get("workers"))
        states = ", ".join(f"{count} {state}" for state, count in sorted(workers.items()))
        return Account(username=f"endpoint {self._settings.endpoint_id}", detail=f"workers: {states}")

    async def balance(self) -> Balance:
        """RunPod's REST API does not tell."""
        return Balance(micro_usd=None, note="RunPod's API tells no balance; see console.runpod.io/user/billing.")

    async def close(self) -> None:
        """Gives back connections."""
        await self._endpoints.close()
        for egress in self._egresses:
            await egress.close()

    def _check_endpoint(self) -> None:
        if not self._settings.endpoint_id:
            raise StartRefused(
                "It is not said which RunPod endpoint runs trainings.",
                "Make one of deploy/runpod and set `endpoint_id`.",
            )

    async def _known(self, tag: Tag) -> tuple[int, str] | None:
        """Epoch and ref of the attempt's listed job with the highest epoch; of two, the one that lives."""
        found: list[tuple[int, bool, str]] = []
        async for label, ref, word in self._jobs.labelled():
            known = Tag.parse(label, self._installation)
            if known is not None and known.attempt_id == tag.attempt_id:
                found.append((known.epoch, not is_over(word), ref))
        if not found:
            return None
        epoch, _, ref = max(found, key=lambda each: each[:2])
        return epoch, ref

    async def _pool(self) -> tuple[str, int]:
        settings = self._settings
        if settings.gpu_pool:
            return settings.gpu_pool, settings.gpu_count
        try:
            answer = await self._control.get(f"/serverless/{settings.endpoint_id}")
        except VendorRefused as refusal:
            raise Unavailable(f"RunPod does not show the endpoint {settings.endpoint_id}: {refusal}") from refusal
        gpu = an_object(an_object(answer.json()).get("gpu"))
        pools = a_list(gpu.get("pools"))
        return a_text(pools[0]) if pools else "", int(a_number(gpu.get("count")) or 1)

    async def _priced(self, pool_id: str) -> Pool:
        try:
            query = {"include": "AVAILABILITY", "product": "SERVERLESS"}
            answer = await self._control.get("/catalog/gpus", params=query)
        except (VendorRefused, CredentialRefused):  # a key for one endpoint may not read it
            return pool_in_catalogue(pool_id, [])
        content = an_object(answer.json())
        return pool_in_catalogue(pool_id, [an_object(each) for each in a_list(content.get("gpus"))])


KIND = ProviderKind(
    name=NAME,
    title="RunPod serverless",
    description="Jobs of an endpoint of yours on RunPod, charged by the second of a worker.",
    credentials=(CredentialField(name="api_key", variable="RUNPOD_API_KEY"),),
    settings=RunPodServerlessSettings,
    capabilities=CAPABILITIES,
    build=RunPodServerlessProvider,
)
