"""Hugging Face Spaces: a private Docker Space named by the run's label, which pauses itself when its run has ended.

A Space comes into being in two steps: the repository with its secrets and hardware, which costs nothing, and the commit
with its files, which starts it. One without files is no run; whoever comes with a newer epoch deletes it, so that a
late commit of the older one finds nothing to start.
"""

import base64
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from services.provider_bridge.domain.provider_status import RunStatus, read_word
from services.provider_bridge.outbound.egress import VendorRefused
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
from services.provider_bridge.outbound.vendors.shapes import Object, a_list, a_moment, a_text, an_object
from shared.contracts.offers import Offer
from shared.problems import Unavailable

_FLAVOR = "a10g-small"
_CONFLICT = 409
_PROBED_EPOCHS = 2
_KEPT_MOMENTS = 10_000
_HAS_HARDWARE = frozenset({"APP_STARTING", "RUNNING", "RUNNING_BUILDING", "RUNNING_APP_STARTING", "RUNTIME_ERROR"})
"""Stages in which it costs money; the build is free."""
_IS_FREE = frozenset({"NO_APP_FILE", "BUILDING", "CONFIG_ERROR", "BUILD_ERROR"})
"""Lists may lag behind: the newest epochs are also asked for by name."""
_FILES = Path(__file__).with_name("space")
_APP_FILE = "Dockerfile"
_BASE_LINE = "ARG TRAINER_IMAGE=tunewright-trainer:latest"
_IMAGE = re.compile(r"[\w./:@-]+")


class SpacesSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the Hub is, who pays, and the image that the Space is built on."""

    api_url: str = API_URL
    namespace: str = ""
    """A user or organisation; empty = whose key it is."""
    image: str = ""
    """deploy/docker/trainer.Dockerfile in a registry that the Hub can reach."""
    flavor: str = _FLAVOR
    """What a Space runs on when nobody chose."""
    max_run_s: int = 24 * 3600
    """When the job sets no limit of its own."""


class SpacesProvider:
    """The Spaces of one namespace that are runs of ours."""

    def __init__(self, materials: Materials) -> None:
        self.name: str = KIND.name
        self._since: dict[str, datetime | None] = {}
        """Ref -> since when it has hardware; None: it was seen, and had none."""
        self._clock = materials.clock
        self._settings: SpacesSettings = materials.settings
        self.capabilities: Capabilities = msgspec.structs.replace(
            KIND.capabilities, default_hardware=self._settings.flavor
        )
        self._installation = materials.installation
        self._fences = Fences()
        self._hub = Hub(materials, self._settings.namespace)
        self._prices: dict[str, int] = {}

    async def quote(self) -> list[Offer]:
        """Every hardware, at today's price."""
        offers = await self._hub.offers("/api/spaces/hardware", self.name)
        self._prices = {offer.hardware: offer.price_micro_usd_per_hour for offer in offers}
        return offers

    async def submit(self, order: StartOrder) -> str:
        """Creates the repository and commits its files, each once. The ref is `namespace/label`."""
        self._fences.check(order.tag)
        check_reach(order.spec.gateway_url, self._settings.api_url)
        files = self._files()
        ref = await self._ref(order.tag)
        for tag, space in await self._spaces_of(order.tag):
            if tag == order.tag and _has_files(space):
                return ref
            if tag.epoch <= order.tag.epoch and not _has_files(space):
                await self._delete(a_text(space.get("id")))
        namespace = await self._hub.namespace()
        try:
            await self._hub.egress.start(
                "/api/repos/create",
                json=self._repository(order, namespace),
                check=lambda: self._fences.check(order.tag),
            )
        except VendorRefused as refused:
            if refused.status == _CONFLICT:
                raise Unavailable(f"the Hub is still busy with {ref}: {refused}") from refused
            raise StartRefused(
                f"The Hub does not create the Space: {refused.excerpt}",
                "Check namespace and hardware; Spaces on GPUs need a plan that includes them, and Jobs need none.",
            ) from refused
        self._fences.check(order.tag)
        try:
            committed = await self._hub.egress.call(
                "POST",
                f"/api/spaces/{ref}/commit/main",
                content=_commit(files),
                headers={"Content-Type": "application/x-ndjson"},
            )
        except VendorRefused as refused:
            await self._delete(ref)
            raise StartRefused(f"The Hub does not take the Space's files: {refused.excerpt}") from refused
        if not an_object(committed.json()).get("commitOid"):  # a page of something in between is no commit
            raise Unavailable(f"the Hub does not say that {ref} has its files")
        self._since.setdefault(ref, None)
        return ref

    async def find(self, tag: Tag) -> RunView | None:
        """Among the namespace's Spaces, and by the names of the newest epochs."""
        self._fences.check(tag)
        found = [(one.epoch, space) for one, space in await self._spaces_of(tag) if _has_files(space)]
        newest = max(found, key=lambda one: one[0], default=None)
        return self._view(newest[1]) if newest is not None else None

    async def fetch(self, ref: str) -> RunView | None:
        """The Space; None once it is deleted."""
        space = await self._space(ref)
        return self._view(space) if space is not None else None

    async def logs(self, ref: str, after: str | None) -> LogPage:
        """What the container writes; the log begins anew with each call."""
        return await self._hub.log_page(f"/api/spaces/{ref}/logs/run", after)

    async def cancel(self, tag: Tag, ref: str, grace_s: float) -> None:  # noqa: ARG002 - the Hub's own grace it is
        """Pauses the Space, which ends its container and its costs."""
        self._fences.check(tag)
        if self._tag(ref) is None:  # nothing of ours
            return
        space = await self._space(ref)
        if space is None or not self._is_alive(space):
            return
        try:
            await self._hub.egress.call("POST", f"/api/spaces/{ref}/pause", repeats=True)
        except VendorRefused as refused:
            if not await self.confirm_gone(ref):
                raise Unavailable(f"the Hub does not pause {ref}: {refused}") from refused

    async def confirm_gone(self, ref: str) -> bool:
        """Whether its hardware is given back. What is left then, secrets and all, is deleted if it is ours."""
        space = await self._space(ref)
        if space is None:
            return True
        if self._is_alive(space):
            return False
        if self._tag(ref) is None:
            return True
        await self._delete(ref)
        return await self._space(ref) is None  # a page of something in between deletes nothing

    async def list_ours(self) -> list[OurRun]:
        """Spaces of this installation that are built, start or run."""
        found: list[OurRun] = []
        for tag, ref in await self._listed():
            space = await self._space(ref)
            if space is not None and self._is_alive(space):
                hardware = a_text(an_object(an_object(space.get("runtime")).get("hardware")).get("requested"))
                if hardware not in self._prices:
                    await self.quote()
                found.append(
                    OurRun(
                        tag=tag,
                        ref=ref,
                        started_at=a_moment(space.get("createdAt")),
                        price_micro_usd_per_hour=self._prices.get(hardware, 0),
                    )
                )
        return found

    def verify_webhook(self, headers: Mapping[str, str], query: Mapping[str, str], body: bytes) -> WebhookNote:  # noqa: ARG002 - the port's signature
        """The Hub's webhooks are about repositories, not about what runs in them."""
        raise WebhookRefused("unreadable", "Hugging Face sends no webhooks about what a Space does")

    async def validate_credentials(self) -> Account:
        """Whose key it is."""
        return await self._hub.account()

    async def balance(self) -> Balance:
        """Not told by any call."""
        return self._hub.balance()

    async def close(self) -> None:
        """Gives back connections."""
        await self._hub.egress.close()

    def _files(self) -> dict[str, str]:
        """The Space's files on our image."""
        image = self._settings.image
        if not _IMAGE.fullmatch(image):
            raise StartRefused(
                f"A Space has no image to be built on (image is {image!r}).",
                "Build deploy/docker/trainer.Dockerfile, push it to a registry that the Hub can reach, and set image.",
            )
        files = {path.name: path.read_text(encoding="utf-8") for path in sorted(_FILES.iterdir())}
        if _BASE_LINE not in files[_APP_FILE]:
            raise ValueError(f"{_FILES / _APP_FILE} has no line {_BASE_LINE}")
        return {**files, _APP_FILE: files[_APP_FILE].replace(_BASE_LINE, f"ARG TRAINER_IMAGE={image}")}

    def _repository(self, order: StartOrder, namespace: str) -> dict[str, Any]:
        secrets = {
            "TUNEWRIGHT_RUN_SPEC_BASE64": base64.b64encode(msgspec.json.encode(order.spec)).decode(),
            "TUNEWRIGHT_ATTEMPT_TOKEN": order.token,
            "HF_TOKEN": self._hub.token.reveal(),  # with it the Space pauses itself
        }
        return {
            "name": order.tag.label(self._installation),
            "organization": namespace,
            "type": "space",
            "sdk": "docker",
            "visibility": "private",
            "hardware": order.offer.hardware if order.offer else self._settings.flavor,
            "secrets": [{"key": key, "value": value} for key, value in secrets.items()],
            "variables": [{"key": "TUNEWRIGHT_MAX_RUN_S", "value": str(order.max_run_s or self._settings.max_run_s)}],
        }

    async def _ref(self, tag: Tag) -> str:
        return f"{await self._hub.namespace()}/{tag.label(self._installation)}"

    def _tag(self, ref: str) -> Tag | None:
        return Tag.parse(ref.rpartition("/")[2], self._installation)

    async def _listed(self) -> list[tuple[Tag, str]]:
        found: list[tuple[Tag, str]] = []
        async for item, _ in self._hub.listed("/api/spaces", {"author": await self._hub.namespace()}):
            ref = a_text(item.get("id"))
            if (tag := self._tag(ref)) is not None:
                found.append((tag, ref))
        return found

    async def _spaces_of(self, tag: Tag) -> list[tuple[Tag, Object]]:
        """Every Space of the attempt, of whatever epoch."""
        refs = {one: ref for one, ref in await self._listed() if one.attempt_id == tag.attempt_id}
        for epoch in range(tag.epoch, max(0, tag.epoch - _PROBED_EPOCHS), -1):
            probed = Tag(attempt_id=tag.attempt_id, epoch=epoch)
            refs.setdefault(probed, await self._ref(probed))
        found = [(one, await self._space(ref)) for one, ref in refs.items()]
        return [(one, space) for one, space in found if space is not None]

    async def _space(self, ref: str) -> Object | None:
        if ref.count("/") != 1:
            return None
        try:
            answer = await self._hub.egress.get(f"/api/spaces/{ref}")
        except VendorRefused as refused:
            if refused.status == NOT_FOUND:
                return None
            raise Unavailable(f"the Hub answers {refused}") from refused
        created_at = a_moment(an_object(answer.json()).get("createdAt"))
        ours = answer.ours(created_at).isoformat() if created_at is not None else None
        space = {**an_object(answer.json()), "createdAt": ours}
        if not space.get("id"):
            raise Unavailable(f"the Hub shows nothing of {ref}")
        return space

    async def _delete(self, ref: str) -> None:
        namespace, _, name = ref.partition("/")
        body = {"name": name, "organization": namespace, "type": "space"}
        try:
            await self._hub.egress.call("DELETE", "/api/repos/delete", json=body)
        except VendorRefused as refused:
            if refused.status != NOT_FOUND:
                raise Unavailable(f"the Hub does not delete {ref}: {refused}") from refused

    def _view(self, space: Object) -> RunView:
        ref = a_text(space.get("id"))
        tag = self._tag(ref)
        return RunView(
            ref=ref,
            word=_stage(space),
            started_at=self._hardware_since(ref, _stage(space)),
            billed_s=0.0 if self._is_free(ref) else None,
            last_words=a_text(an_object(space.get("runtime")).get("errorMessage")),
            epoch=tag.epoch if tag is not None else None,
        )

    def _hardware_since(self, ref: str, stage: str) -> datetime | None:
        """Since when we have seen it have hardware: the Hub does not say it, and the build before it is free."""
        known = self._since.setdefault(ref, None) if stage in _IS_FREE else self._since.get(ref)
        if stage in _HAS_HARDWARE and known is None:
            known = self._since[ref] = self._clock()
        if len(self._since) > _KEPT_MOMENTS:
            self._since.pop(next(iter(self._since)))
        return known

    def _is_free(self, ref: str) -> bool:
        """Whether we have looked since its beginning and never saw it have hardware."""
        return ref in self._since and self._since[ref] is None

    def _is_alive(self, space: Object) -> bool:
        """A stage that nobody knows may well be a Space that runs."""
        return _has_files(space) and read_word(self.name, _stage(space)) is not RunStatus.GONE


def _stage(space: Object) -> str:
    return a_text(an_object(space.get("runtime")).get("stage"))


def _has_files(space: Object) -> bool:
    return any(an_object(one).get("rfilename") == _APP_FILE for one in a_list(space.get("siblings")))


def _commit(files: dict[str, str]) -> bytes:
    """The body of a commit: a line for its header, and one for each file."""
    lines: list[Object] = [{"key": "header", "value": {"summary": "One run of Tunewright", "description": ""}}]
    for path, text in files.items():
        content = base64.b64encode(text.encode()).decode()
        lines.append({"key": "file", "value": {"content": content, "path": path, "encoding": "base64"}})
    return b"\n".join(msgspec.json.encode(line) for line in lines)


KIND: ProviderKind = ProviderKind(
    name="hf_spaces",
    title="Hugging Face Spaces",
    description="A private Space for each run; it pauses itself at the end and is deleted then. It does not say how a "
    "run ended, and is built anew for each: prefer Jobs where the account may use them.",
    credentials=CREDENTIALS,
    settings=SpacesSettings,
    capabilities=Capabilities(
        can_cancel=True,
        live_logs=True,
        cost=False,
        spot=False,
        max_run_time_s=None,
        upload_limit_bytes=None,
        site=None,
        metering="machine",
        knows_outcome=False,
        default_hardware=_FLAVOR,
    ),
    build=SpacesProvider,
    listed=known_offers("hf_spaces"),
)
