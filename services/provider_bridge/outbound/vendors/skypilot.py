"""SkyPilot: managed jobs on Kubernetes and some twenty clouds, by the API server of whoever runs one."""

import base64
import re
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from services.provider_bridge.domain.provider_status import RunStatus, read_word
from services.provider_bridge.outbound.egress import Answer, Egress
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
from services.provider_bridge.outbound.vendors.reach import check_reach
from services.provider_bridge.outbound.vendors.shapes import Object, a_list, a_number, a_text, an_object
from services.provider_bridge.outbound.vendors.skypilot_api import SkyApi, SkyError
from shared.contracts.offers import Offer
from shared.problems import Unavailable
from shared.settings import Secret

_GPU = "A10G:1"
_MARGIN_S = 900
_LAST_LINES = 20
_ELSEWHERE = ""
"""The API server may well be on this machine; the machines that it rents never are."""
_EXIT_CODE = re.compile(r"trainer\.entry\.container: exit ([0-9]+) \(")
_NO_CAPACITY = frozenset({"ResourcesUnavailableError", "ManagedJobReachedMaxRetriesError", "ExecutionPoolFullError"})
_UNSETTLED = frozenset(
    {"RequestInterruptedError", "ConnectionError", "NetworkError", "ServerTemporarilyUnavailableError"}
)
_FORBIDDEN = frozenset({"PermissionDeniedError", "NoWorkspaceAccessError", "ApiServerAuthenticationError"})


class SkyPilotSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the API server is, and what its machines run."""

    api_url: str = "http://127.0.0.1:46580"
    image: str = ""
    """deploy/docker/trainer.Dockerfile in a registry that the machines can reach."""
    folder: str = "/opt/tunewright"
    """Where the trainer lies in the image."""
    infra: str = ""
    """SkyPilot's own words, such as `aws/us-east-1` or `k8s`; empty = wherever it is cheapest."""
    gpu: str = _GPU
    """What a job runs on when nobody chose, in SkyPilot's words."""
    max_run_s: int = 24 * 3600
    """When the job sets no limit of its own."""


class SkyPilotProvider:
    """The managed jobs of one API server."""

    def __init__(self, materials: Materials) -> None:
        self.name: str = KIND.name
        self._settings: SkyPilotSettings = materials.settings
        self.capabilities: Capabilities = msgspec.structs.replace(
            KIND.capabilities, default_hardware=self._settings.gpu
        )
        self._installation = materials.installation
        self._clock = materials.clock
        self._fences = Fences()
        token = materials.credentials["token"]
        authorization = Secret(f"Bearer {token.reveal()}")
        egress = Egress(
            self._settings.api_url, materials.network, materials.clock, headers={"Authorization": authorization}
        )
        self._api = SkyApi(egress, materials.installation)

    async def quote(self) -> list[Offer]:
        """The cheapest machine for each GPU and number of them, in the clouds that SkyPilot has."""
        body: Object = {"gpus_only": True, "require_price": True, "all_regions": False, "case_sensitive": False}
        if self._settings.infra:
            body["clouds"] = [self._settings.infra.partition("/")[0]]
        try:
            told, _ = await self._api.ask("/list_accelerators", body)
        except SkyError as error:
            raise Unavailable(f"SkyPilot does not tell its prices: {error}") from error
        cheapest: dict[str, Offer] = {}
        for machines in an_object(told).values():
            for machine in a_list(machines):
                offer = _offer(a_list(machine))
                if offer is not None:
                    known = cheapest.setdefault(offer.hardware, offer)
                    if offer.price_micro_usd_per_hour < known.price_micro_usd_per_hour:
                        cheapest[offer.hardware] = offer
        return list(cheapest.values())

    async def submit(self, order: StartOrder) -> str:
        """Sends the job, once. The ref is its name, the label."""
        self._fences.check(order.tag)
        check_reach(order.spec.gateway_url, _ELSEWHERE)
        task = self._task(order)
        label = order.tag.label(self._installation)
        if await self.fetch(label) is not None:
            return label
        try:
            request_id = await self._api.launch(label, task, check=lambda: self._fences.check(order.tag))
            await self._settled(request_id)
        except SkyError as error:
            raise _refusal(error) from error
        return label

    async def find(self, tag: Tag) -> RunView | None:
        """By name, among the jobs and among those that are on their way there."""
        self._fences.check(tag)
        views = [
            view
            for view in await self._views(f"tw-{self._installation}-{tag.attempt_id.hex}-", skip_finished=False)
            if view.epoch is not None
        ]
        return max(views, key=lambda view: (view.epoch or 0, self._is_alive(view.word)), default=None)

    async def fetch(self, ref: str) -> RunView | None:
        """The job of that name; None if there is none."""
        views = [view for view in await self._views(ref, skip_finished=False) if view.ref == ref]
        newest = max(views, key=lambda view: self._is_alive(view.word), default=None)
        if newest is None or newest.word != "FAILED":
            return newest
        lines = (await self.logs(ref, None)).lines
        codes = [int(code) for line in lines for code in _EXIT_CODE.findall(line)]
        words = "\n".join([newest.last_words, *lines[-_LAST_LINES:]]).strip()
        return msgspec.structs.replace(newest, exit_code=codes[-1] if codes else None, last_words=words)

    async def logs(self, ref: str, after: str | None) -> LogPage:
        """The log is told from its beginning; the cursor counts lines."""
        seen = int(after or 0)
        jobs, _ = await self._api.jobs(ref, skip_finished=False)
        ids = [job_id for job in jobs if (job_id := job.get("job_id")) is not None and job.get("job_name") == ref]
        lines = (await self._api.log(max(ids))).splitlines() if ids else []
        return LogPage(lines=lines[seen:], cursor=str(max(seen, len(lines))))

    async def cancel(self, tag: Tag, ref: str, grace_s: float) -> None:  # noqa: ARG002 - SkyPilot's own grace it is
        """Asks SkyPilot, which ends the job and gives its machine back."""
        self._fences.check(tag)
        try:
            if (request_id := (await self._api.launching()).get(ref)) is not None:
                await self._api.forget(request_id)
            jobs, _ = await self._api.jobs(ref, skip_finished=True)
            ids = [job["job_id"] for job in jobs if job.get("job_name") == ref and self._is_alive(_word(job))]
            if ids:
                await self._api.cancel(ids)
        except SkyError as error:
            if not await self.confirm_gone(ref):
                raise Unavailable(f"SkyPilot does not cancel {ref}: {error}") from error

    async def confirm_gone(self, ref: str) -> bool:
        """Whether no job of that name is alive or on its way."""
        views = await self._views(ref, skip_finished=False)
        return not any(view.ref == ref and self._is_alive(view.word) for view in views)

    async def list_ours(self) -> list[OurRun]:
        """Jobs of this installation that have not ended."""
        return [
            OurRun(tag=tag, ref=view.ref, started_at=view.started_at)
            for view in await self._views(f"tw-{self._installation}-", skip_finished=True)
            if (tag := Tag.parse(view.ref, self._installation)) is not None and self._is_alive(view.word)
        ]

    def verify_webhook(self, headers: Mapping[str, str], query: Mapping[str, str], body: bytes) -> WebhookNote:  # noqa: ARG002 - the port's signature
        """SkyPilot sends none."""
        raise WebhookRefused("unreadable", "SkyPilot sends no webhooks")

    async def validate_credentials(self) -> Account:
        """As whom the API server takes us."""
        health = an_object((await self._api.egress.get("/api/health")).json())
        if health.get("status") != "healthy":
            raise CredentialRefused(
                f"SkyPilot's API server is {health.get('status')!r}.",
                "Check the address and the service account's token.",
            )
        user = an_object(health.get("user"))
        return Account(username=a_text(user.get("name")) or "tunewright", detail=f"SkyPilot {health.get('version')}")

    async def balance(self) -> Balance:
        """Each cloud sends a bill of its own."""
        return Balance(micro_usd=None, note="SkyPilot rents in your clouds' accounts; each shows its own bill.")

    async def close(self) -> None:
        """Gives back connections."""
        await self._api.egress.close()

    def _task(self, order: StartOrder) -> Object:
        settings = self._settings
        if not settings.image:
            raise StartRefused(
                "A SkyPilot job has no container to run.",
                "Build deploy/docker/trainer.Dockerfile, push it to a registry the machines can reach, and set image.",
            )
        run_s = order.max_run_s or settings.max_run_s
        return {
            "name": order.tag.label(self._installation),
            "resources": {
                "accelerators": order.offer.hardware if order.offer else settings.gpu,
                "image_id": f"docker:{settings.image}",
                **({"infra": settings.infra} if settings.infra else {}),
            },
            "envs": {"TUNEWRIGHT_MAX_RUN_S": str(run_s)},
            "secrets": {
                "TUNEWRIGHT_RUN_SPEC_BASE64": base64.b64encode(msgspec.json.encode(order.spec)).decode(),
                "TUNEWRIGHT_ATTEMPT_TOKEN": order.token,
            },
            # SkyPilot has no limit of its own.
            "run": f"cd {shlex.quote(settings.folder)} && exec timeout --kill-after=60 {run_s + _MARGIN_S} "
            ".venv-trainer/bin/python -m trainer.entry.container",
        }

    async def _settled(self, request_id: str) -> None:
        """Waits for a launch as long as one call may take; the first one boots a controller and takes minutes."""
        try:
            await self._api.outcome(request_id)
        except Unavailable:
            return  # it was accepted; the list of requests shows it until the list of jobs does

    async def _views(self, name_match: str, *, skip_finished: bool) -> list[RunView]:
        """First what is on its way, then the jobs: one that goes over in between is in both, and never in neither."""
        launching = [name for name in await self._api.launching() if name_match in name]
        jobs, answer = await self._api.jobs(name_match, skip_finished=skip_finished)
        views = [self._view(job, answer) for job in jobs]
        known = {view.ref for view in views}
        coming = [RunView(ref=name, word="PENDING", epoch=self._epoch(name)) for name in launching if name not in known]
        return [*views, *coming]

    def _view(self, job: Object, answer: Answer | None) -> RunView:
        ref, word = a_text(job.get("job_name")), _word(job)
        is_over = not self._is_alive(word)
        ended_at = _moment(job.get("end_at"), answer)
        return RunView(
            ref=ref,
            word=word,
            exit_code=0 if word == "SUCCEEDED" else None,
            started_at=_moment(job.get("start_at"), answer),
            ended_at=(ended_at or self._clock()) if is_over else None,
            last_words=a_text(job.get("failure_reason")) or a_text(job.get("details")),
            epoch=self._epoch(ref),
        )

    def _epoch(self, name: str) -> int | None:
        tag = Tag.parse(name, self._installation)
        return tag.epoch if tag is not None else None

    def _is_alive(self, word: str) -> bool:
        """A status that nobody knows may well be a job that runs."""
        return read_word(self.name, word) not in {RunStatus.ENDED, RunStatus.GONE}


def _word(job: Object) -> str:
    return a_text(job.get("status"))


def _moment(seconds: object, answer: Answer | None) -> datetime | None:
    found = a_number(seconds)
    if found is None or answer is None:
        return None
    return answer.ours(datetime.fromtimestamp(found, UTC))


def _offer(machine: list[object]) -> Offer | None:
    """Of a row of SkyPilot's price list.

    Cloud, type, GPU, count, CPUs, GB of each GPU, GB, price, spot price, region.
    """
    row = [*machine, *[None] * 10][:10]
    name, count, vram_gb, price = a_text(row[2]), a_number(row[3]), a_number(row[5]) or 0.0, a_number(row[7])
    if not name or count is None or count < 1 or count != int(count) or price is None or price < 0:
        return None
    return Offer(
        provider="skypilot",
        hardware=f"{name}:{int(count)}",
        gpu=f"{name} {round(vram_gb)}GB" if vram_gb else name,
        gpu_count=int(count),
        vram_gb=round(vram_gb),
        price_micro_usd_per_hour=round(price * 1_000_000),
        region=f"{a_text(row[0])} {a_text(row[9])}".strip().lower() or None,
    )


def _refusal(error: SkyError) -> Exception:
    if error.kind in _NO_CAPACITY:
        return NoCapacity(f"SkyPilot finds no such machine: {error.message}")
    if error.kind in _UNSETTLED:
        return Unavailable(f"SkyPilot's launch was broken off: {error}")
    if error.kind in _FORBIDDEN:
        return CredentialRefused(f"SkyPilot does not allow it: {error.message}", "Check the service account's rights.")
    return StartRefused(
        f"SkyPilot does not take the job: {error}", "`sky check` on the API server shows which clouds it can use."
    )


KIND: ProviderKind = ProviderKind(
    name="skypilot",
    title="SkyPilot",
    description="Managed jobs on Kubernetes and some twenty clouds, by a SkyPilot API server of yours. "
    "A server without logins takes any token.",
    credentials=(CredentialField(name="token", variable="SKYPILOT_SERVICE_ACCOUNT_TOKEN"),),
    settings=SkyPilotSettings,
    capabilities=Capabilities(
        can_cancel=True,
        live_logs=True,
        cost=False,
        spot=False,
        max_run_time_s=None,
        upload_limit_bytes=None,
        site=None,
        metering="machine",
        default_hardware=_GPU,
    ),
    build=SkyPilotProvider,
)
