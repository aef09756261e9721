"""Kaggle kernels: a private script whose slug is the run's label. They cannot be cancelled, and cost quota, not money.

The bodies are written by Kaggle's own package and sent by our own way out; docs/decisions/0025 says why.
"""

import base64
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import msgspec

from services.provider_bridge.domain.provider_status import RunStatus, read_word
from services.provider_bridge.outbound.egress import Answer, Egress, Forbidden, VendorRefused
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
    WebhookRefused,
)
from services.provider_bridge.outbound.vendors.kaggle_answers import (
    error_in,
    hours_left,
    lines_of,
    log_event,
    log_events,
    moment,
    refusal_of,
)
from services.provider_bridge.outbound.vendors.reach import check_reach
from services.provider_bridge.outbound.vendors.server_events import data_behind
from shared.contracts.kaggle import LONGEST_RUN_S, MARGIN_S, SESSION_S, KernelJob, exit_code_in, kernel_script
from shared.contracts.offers import Availability, Offer
from shared.problems import Unavailable
from shared.settings import Secret

if TYPE_CHECKING:
    from services.provider_bridge.outbound.vendors.kaggle_requests import KaggleRequests

_KERNELS = "kernels.KernelsApiService"
_OAUTH = "security.OAuthService"
_NOT_FOUND = 404
_T4 = "NvidiaTeslaT4"
_RECENT = timedelta(hours=24)
"""A kernel that last ran longer ago is not running: a session ends after half of that."""
_PROBED_EPOCHS = 2
"""Lists may lag behind: the newest epochs are also asked for by name."""
_LAST_LINES = 20
_END_OF_LOG = "END_OF_LOG"
_BEARER = "KGAT_"


class KaggleSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where Kaggle is, and where a kernel gets the trainer from: a git repository or a dataset."""

    api_url: str = "https://api.kaggle.com"
    source_git: str = ""
    """`https://…` of a repository with Tunewright's source that needs no login."""
    source_revision: str = "main"
    """A branch or tag of it."""
    source_dataset: str = ""
    """`USER/SLUG` of a dataset with Tunewright's source, in place of git."""
    packages: str = "locks"
    """`locks` builds the locked environment; else a Python of the session that has the trainer's packages."""


class KaggleProvider:
    """One Kaggle account."""

    def __init__(self, materials: Materials, requests: "KaggleRequests") -> None:
        self.name: str = KIND.name
        self.capabilities: Capabilities = KIND.capabilities
        self._settings: KaggleSettings = materials.settings
        self._installation = materials.installation
        self._clock = materials.clock
        self._username = materials.credentials["username"].reveal()
        self._key = materials.credentials["key"]
        self._requests = requests
        self._fences = Fences()
        headers = {"Authorization": _authorization(self._username, self._key.reveal())}
        self._egress = Egress(self._settings.api_url, materials.network, materials.clock, headers=headers)

    async def quote(self) -> list[Offer]:
        """The one kind of machine that the trainer can use there, while there are hours left."""
        left = hours_left((await self._ask("GetAcceleratorQuotaStatistics", self._requests.quota()))[0])
        return [_offer("none" if left is not None and left[0] <= 0 else "unknown")]

    async def submit(self, order: StartOrder) -> str:
        """Pushes the script, once. The ref is `user/slug`."""
        self._fences.check(order.tag)
        check_reach(order.spec.gateway_url, self._settings.api_url)
        shape = _shape(order.offer)
        source, datasets = self._source()
        label = order.tag.label(self._installation)
        if await self.fetch(f"{self._username}/{label}") is not None:
            return f"{self._username}/{label}"
        run_s = min(order.max_run_s or LONGEST_RUN_S, LONGEST_RUN_S)
        script = kernel_script(
            KernelJob(
                input={"run_spec": msgspec.to_builtins(order.spec), "token": order.token},
                source=source,
                packages=self._settings.packages,
                max_run_s=run_s,
            )
        )
        body = self._requests.save_kernel(
            f"{self._username}/{label}",
            label,
            script,
            shape=shape,
            datasets=datasets,
            session_s=min(run_s + MARGIN_S, SESSION_S),
        )
        try:
            answer = await self._egress.start(
                f"/v1/{_KERNELS}/SaveKernel", json=body, check=lambda: self._fences.check(order.tag)
            )
            saved = _content(answer)
        except VendorRefused as refused:
            raise refusal_of(refused.excerpt) from refused
        if error := saved.get("error"):
            raise refusal_of(str(error))
        # The slug is what we asked for as long as the title makes it; Kaggle's word counts all the same.
        named = str(saved.get("ref") or "").removeprefix("/code/")
        return named if _split(named) else f"{self._username}/{label}"

    async def find(self, tag: Tag) -> RunView | None:
        """Among the kernels that ran last, and by the names of the newest epochs."""
        self._fences.check(tag)
        return await self._find(tag)

    async def fetch(self, ref: str) -> RunView | None:
        """How its newest session is; once that has ended, what its log tells."""
        if (named := _split(ref)) is None:
            return None
        status = await self._of_kernel("GetKernelSessionStatus", self._requests.session_status(*named), named)
        if status is None:
            return None
        word = str(status[0].get("status") or "QUEUED")  # Kaggle leaves out the first word of the list
        if read_word(self.name, word) is not RunStatus.ENDED:
            return RunView(ref=ref, word=word, last_words=str(status[0].get("failureMessage") or ""))
        return await self._ended(ref, word, named, str(status[0].get("failureMessage") or ""))

    async def logs(self, ref: str, after: str | None) -> LogPage:
        """The live log, or the stored one. Both begin anew each time; the cursor counts events."""
        seen = int(after or 0)
        named = _split(ref)
        if named is None:
            return LogPage(lines=[], cursor=after)
        try:
            async with self._egress.stream(f"/v1/kernels/logs/stream/{named[0]}/{named[1]}") as response:
                kind = response.headers.get("content-type", "")
                if kind.startswith("text/html"):
                    raise Unavailable("Kaggle answers with a page where a log was due")
                if kind.startswith("text/event-stream"):
                    events = [log_event(data) for data in await data_behind(response, seen, last=_END_OF_LOG)]
                else:
                    events = log_events((await response.aread()).decode("utf-8", "replace"))[seen:]
        except (VendorRefused, Forbidden):  # none is kept
            events = []
        return LogPage(lines=lines_of(events), cursor=str(seen + len(events)))

    async def cancel(self, tag: Tag, ref: str, grace_s: float) -> None:  # noqa: ARG002 - the port's signature
        """Kaggle has no way to end a session: the trainer stops when the gateway answers a report of its so."""
        self._fences.check(tag)

    async def confirm_gone(self, ref: str) -> bool:
        """Whether no session of the kernel is alive."""
        named = _split(ref)
        if named is None:
            return True
        status = await self._of_kernel("GetKernelSessionStatus", self._requests.session_status(*named), named)
        return status is None or not self._is_alive(str(status[0].get("status") or "QUEUED"))

    async def list_ours(self) -> list[OurRun]:
        """Of the kernels that ran in the last day, those of this installation that still do."""
        found: list[OurRun] = []
        for tag, ref, started_at in await self._recent():
            if not await self.confirm_gone(ref):
                found.append(OurRun(tag=tag, ref=ref, started_at=started_at))
        return found

    def verify_webhook(self, headers: Mapping[str, str], query: Mapping[str, str], body: bytes) -> WebhookNote:  # noqa: ARG002 - the port's signature
        """Kaggle sends none."""
        raise WebhookRefused("unreadable", "Kaggle sends no webhooks")

    async def validate_credentials(self) -> Account:
        """Whose key it is, with the hours that are left."""
        username = await self._username_of_token() if self._key.reveal().startswith(_BEARER) else self._username
        return Account(username=username, detail=(await self.balance()).note)

    async def balance(self) -> Balance:
        """Hours, not money."""
        content, _ = await self._ask("GetAcceleratorQuotaStatistics", self._requests.quota())
        left = hours_left(content)
        if left is None:
            return Balance(micro_usd=None, note="Kaggle does not say how many GPU hours are left.")
        until = moment(content.get("quotaRefreshTime"))
        again = f", until {until:%Y-%m-%d %H:%M} UTC" if until is not None else ""
        return Balance(micro_usd=None, note=f"{left[0]:.1f} of {left[1]:.1f} GPU hours left this week{again}")

    async def close(self) -> None:
        """Gives back connections."""
        await self._egress.close()

    async def _username_of_token(self) -> str:
        told, _ = await self._ask("IntrospectToken", self._requests.introspection(self._key.reveal()), service=_OAUTH)
        if not told.get("active"):
            raise CredentialRefused("Kaggle says that the token is not active.", "Create a new one.")
        if told.get("username") != self._username:
            raise CredentialRefused(
                f"The token belongs to {told.get('username')!r}, not to {self._username!r}.", "Correct KAGGLE_USERNAME."
            )
        return self._username

    def _source(self) -> tuple[dict[str, str], list[str]]:
        """Where the kernel gets the trainer from, and the datasets that are to lie beside it."""
        if self._settings.source_dataset:
            return {"folder": "/kaggle/input"}, [self._settings.source_dataset]
        if self._settings.source_git.startswith("https://"):
            return {"git": self._settings.source_git, "revision": self._settings.source_revision}, []
        raise StartRefused(
            "A Kaggle kernel has no way to get the trainer.",
            "Set source_git of the provider to an https:// address that can be cloned without a login, or "
            "source_dataset to a Kaggle dataset with Tunewright's source.",
        )

    async def _find(self, tag: Tag) -> RunView | None:
        """The run of the highest epoch that is alive, else of the highest of all."""
        listed = {found.epoch: ref for found, ref, _ in await self._recent() if found.attempt_id == tag.attempt_id}
        for epoch in range(tag.epoch, max(0, tag.epoch - _PROBED_EPOCHS), -1):
            label = Tag(attempt_id=tag.attempt_id, epoch=epoch).label(self._installation)
            listed.setdefault(epoch, f"{self._username}/{label}")
        newest: RunView | None = None
        for epoch in sorted(listed, reverse=True):
            view = await self.fetch(listed[epoch])
            if view is None:
                continue
            view = msgspec.structs.replace(view, epoch=epoch)
            if self._is_alive(view.word):
                return view
            newest = newest or view
        return newest

    async def _recent(self) -> list[tuple[Tag, str, datetime | None]]:
        """Our kernels that ran in the last day. The list is by the last run, so it is read as far as that."""
        found: list[tuple[Tag, str, datetime | None]] = []
        token = ""
        while True:
            content, answer = await self._ask("ListKernels", self._requests.own_kernels(token))
            kernels = cast("list[dict[str, Any]]", content.get("kernels") or [])
            ran = [answer.ours(at) if (at := moment(kernel.get("lastRunTime"))) else None for kernel in kernels]
            oldest = self._clock() - _RECENT
            for kernel, at in zip(kernels, ran, strict=True):
                ref = str(kernel.get("ref") or "").removeprefix("/code/")
                named = _split(ref)
                tag = Tag.parse(named[1], self._installation) if named else None
                if tag is not None and (at is None or at > oldest):
                    found.append((tag, ref, at))
            token = str(content.get("nextPageToken") or "")
            if not token or not kernels or (ran[-1] is not None and ran[-1] <= oldest):
                return found

    async def _ended(self, ref: str, word: str, named: tuple[str, str], failure: str) -> RunView:
        output = await self._of_kernel("ListKernelSessionOutput", self._requests.session_output(*named), named)
        known = await self._of_kernel("GetKernel", self._requests.kernel(*named), named)
        events = log_events(str(output[0].get("log") or "")) if output else []
        lines = lines_of(events)
        metadata = cast("dict[str, Any]", (known[0].get("metadata") if known else None) or {})
        started_at = moment(metadata.get("lastRunTime"))
        if known is not None and started_at is not None:
            started_at = known[1].ours(started_at)
        ran_s = max((float(at) for event in events if isinstance(at := event.get("time"), int | float)), default=None)
        ended_at = started_at + timedelta(seconds=ran_s) if started_at and ran_s is not None else self._clock()
        return RunView(
            ref=ref,
            word=word,
            exit_code=0 if word == "COMPLETE" else exit_code_in([*lines, failure]),
            started_at=started_at,
            ended_at=ended_at,
            last_words="\n".join([*lines[-_LAST_LINES:], *([failure] if failure else [])]),
        )

    async def _of_kernel(
        self, method: str, body: dict[str, Any], named: tuple[str, str]
    ) -> tuple[dict[str, Any], Answer] | None:
        """A read of one kernel; None if it is not there."""
        try:
            return await self._ask(method, body)
        except VendorRefused as refused:
            if refused.status == _NOT_FOUND:
                return None
            raise Unavailable(f"Kaggle answers {refused}") from refused
        except Forbidden:
            # Kaggle says so of a private kernel that does not exist. A key that may do nothing fails here, too.
            if any(ref == f"{named[0]}/{named[1]}" for _, ref, _ in await self._recent()):
                raise
            return None

    async def _ask(
        self, method: str, body: dict[str, Any], *, service: str = _KERNELS
    ) -> tuple[dict[str, Any], Answer]:
        """A read, repeated on outages."""
        answer = await self._egress.call("POST", f"/v1/{service}/{method}", json=body, repeats=True)
        return _content(answer), answer

    def _is_alive(self, word: str) -> bool:
        """A word that nobody knows may well be a session that runs."""
        return read_word(self.name, word) not in {RunStatus.ENDED, RunStatus.GONE}


def _content(answer: Answer) -> dict[str, Any]:
    """What an answer says; raises the error that it holds."""
    content: object = answer.json() or {}
    if not isinstance(content, dict):
        raise Unavailable("Kaggle answers with something that is no object")
    told = cast("dict[str, Any]", content)
    if (error := error_in(told)) is not None:
        raise error
    return told


def _split(ref: str) -> tuple[str, str] | None:
    owner, _, slug = ref.partition("/")
    return (owner, slug) if owner and slug and "/" not in slug else None


def _offer(availability: Availability) -> Offer:
    return Offer(
        provider="kaggle",
        hardware=_T4,
        gpu="T4 16GB",
        gpu_count=2,
        vram_gb=16,
        price_micro_usd_per_hour=0,
        availability=availability,
        max_run_s=LONGEST_RUN_S,
    )


def _shape(offer: Offer | None) -> str:
    if offer is None or offer.hardware == _T4:
        return _T4
    raise StartRefused(
        f"{offer.hardware} is not offered: the trainer uses GPUs, and {_T4} is the one that Kaggle still has.",
        "Kaggle replaces retired GPUs silently, and runs on a CPU what asks for an unknown one.",
    )


def _authorization(username: str, key: str) -> Secret:
    if key.startswith(_BEARER):
        return Secret(f"Bearer {key}")
    return Secret("Basic " + base64.b64encode(f"{username}:{key}".encode()).decode())


def _build(materials: Materials) -> KaggleProvider:
    # Imported here: see its module docstring.
    from services.provider_bridge.outbound.vendors.kaggle_requests import KaggleRequests  # noqa: PLC0415

    return KaggleProvider(materials, KaggleRequests())


KIND: ProviderKind = ProviderKind(
    name="kaggle",
    title="Kaggle",
    description="Notebook sessions with two T4, for about 30 hours a week, free. A session cannot be cancelled: a run "
    "stops when the trainer hears so from the gateway, within its next report, and ends itself after 8¾ hours.",
    credentials=(
        CredentialField(name="username", variable="KAGGLE_USERNAME"),
        CredentialField(name="key", variable="KAGGLE_KEY"),
    ),
    settings=KaggleSettings,
    capabilities=Capabilities(
        can_cancel=False,
        live_logs=True,
        cost=False,
        spot=False,
        max_run_time_s=LONGEST_RUN_S,
        upload_limit_bytes=None,
        site=None,
        default_hardware=_T4,
    ),
    build=_build,
    listed=(_offer("unknown"),),
)
