"""The `local` provider: the machine that the bridge runs on."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from uuid import UUID

import msgspec

from services.provider_bridge.outbound import local_hardware
from services.provider_bridge.outbound.ports import (
    Account,
    Balance,
    Capabilities,
    LogPage,
    OurRun,
    RunView,
    StaleEpoch,
    StartOrder,
    StartRefused,
    Tag,
    WebhookNote,
    WebhookRefused,
)
from shared.contracts.offers import Offer
from shared.runs.machine import CannotStart, LocalOptions, Machine, OlderEpoch, Run, site_of

NAME = "local"
HARDWARE = "this machine"


CAPABILITIES = Capabilities(
    can_cancel=True,
    live_logs=True,
    cost=False,
    spot=False,
    max_run_time_s=None,
    upload_limit_bytes=None,
    site=None,
    fences_epochs=True,
    default_hardware=HARDWARE,
    tested_against="itself",
)
"""Beside the site, which is the state folder's."""


class LocalProvider:
    """Runs each attempt as one process tree of this machine, at most once."""

    def __init__(self, options: LocalOptions) -> None:
        self._machine = Machine(options)
        self.site = site_of(options.state_dir)
        """The identity of this state folder."""

    @property
    def name(self) -> str:
        """`local`."""
        return NAME

    @property
    def capabilities(self) -> Capabilities:
        """Cancels at once, costs nothing, no limits; reachable only where its state folder is."""
        return msgspec.structs.replace(CAPABILITIES, site=self.site)

    async def quote(self) -> list[Offer]:
        """This machine with its GPUs. It costs what billing says, which to the provider is nothing."""
        return [await local_hardware.offer(NAME, HARDWARE)]

    async def submit(self, order: StartOrder) -> str:
        """Starts the run, or finds the one that is there."""
        tag = order.tag
        with _in_the_ports_words():
            await self._machine.start(
                tag.attempt_id, tag.epoch, msgspec.json.encode(order.spec), order.token, order.max_run_s
            )
        return str(tag.attempt_id)

    async def find(self, tag: Tag) -> RunView | None:
        """The run, with every lower epoch shut out for good."""
        with _in_the_ports_words():
            return _view(str(tag.attempt_id), await self._machine.find(tag.attempt_id, tag.epoch))

    async def fetch(self, ref: str) -> RunView | None:
        """The run as its files show it."""
        return _view(ref, await self._machine.look(UUID(ref)))

    async def cancel(self, tag: Tag, ref: str, grace_s: float) -> None:
        """Its runner ends it."""
        with _in_the_ports_words():
            await self._machine.end(UUID(ref), tag.epoch, grace_s)

    async def confirm_gone(self, ref: str) -> bool:
        """Whether neither runner nor trainer lives."""
        return await self._machine.is_over(UUID(ref))

    async def logs(self, ref: str, after: str | None) -> LogPage:
        """The trainer's output as its runner keeps it; the cursor is a byte offset."""
        lines, cursor = await self._machine.log(UUID(ref), after)
        return LogPage(lines=lines, cursor=cursor)

    def verify_webhook(self, headers: Mapping[str, str], query: Mapping[str, str], body: bytes) -> WebhookNote:  # noqa: ARG002 - the port's signature
        """Nobody sends any."""
        raise WebhookRefused("unreadable", "this machine sends no webhooks")

    async def validate_credentials(self) -> Account:
        """It has none; the account is the machine's."""
        return Account(username="this machine")

    async def balance(self) -> Balance:
        """Nothing is charged."""
        return Balance(micro_usd=None, note="This machine charges nothing.")

    async def close(self) -> None:
        """Nothing is held open."""

    async def list_ours(self) -> list[OurRun]:
        """Every attempt whose run is alive."""
        return [
            OurRun(tag=Tag(attempt_id=attempt_id, epoch=epoch), ref=str(attempt_id))
            for attempt_id, epoch in await self._machine.living()
        ]


def _view(ref: str, run: Run | None) -> RunView | None:
    if run is None:
        return None
    return RunView(ref=ref, word=run.word, exit_code=run.exit_code, ended_at=run.ended_at, last_words=run.last_words)


@contextmanager
def _in_the_ports_words() -> Generator[None]:
    try:
        yield
    except OlderEpoch:
        raise StaleEpoch from None
    except CannotStart as refusal:
        raise StartRefused(refusal.message, refusal.advice) from None
