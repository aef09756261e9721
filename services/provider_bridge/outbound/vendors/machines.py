"""Machines that run one job each and cannot tell how it ended: which of an account's machines are ours, and whose.

Their outcome comes with the trainer's report, and they cost money until they are ended (docs/decisions/0024).
"""

from collections.abc import Awaitable, Callable
from datetime import datetime
from uuid import UUID

import msgspec

from services.provider_bridge.outbound.ports import OurRun, RunView, Tag
from services.provider_bridge.outbound.vendors.gathering import Gathered

HIDDEN = "…"
"""Stands where a vendor repeats a run's token."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """One machine as its provider shows it, moments by our clock."""

    ref: str
    label: str
    word: str
    started_at: datetime | None
    """Since when it costs money."""
    price_micro_usd_per_hour: int
    is_over: bool
    """It is gone for good and costs nothing; one that has merely stopped is not."""
    stopped_at: datetime | None = None
    """Since when its GPUs are given back, as far as we have seen; what is left of it costs next to nothing."""

    def view(self, installation: str) -> RunView:
        """As the bridge sees it."""
        tag = Tag.parse(self.label, installation)
        return RunView(
            ref=self.ref,
            word=self.word,
            started_at=self.started_at,
            ended_at=self.stopped_at,
            epoch=tag.epoch if tag is not None else None,
        )


class Roll:
    """The machines of one account as they are now.

    One list serves every run that is asked about within `interval_s`. `show` tells of a machine that is in no list;
    None: nobody knows it.
    """

    def __init__(
        self,
        installation: str,
        listed: Callable[[], Awaitable[list[Machine]]],
        show: Callable[[str], Awaitable[Machine | None]],
        interval_s: float,
    ) -> None:
        self._installation = installation
        self._listed = Gathered(listed, interval_s)
        self._show = show

    async def under(self, tag: Tag) -> Machine | None:
        """The machine with exactly this tag."""
        return next((machine for known, machine in await self._ours() if known == tag), None)

    async def newest(self, attempt_id: UUID) -> RunView | None:
        """The attempt's machine of the highest epoch; of two, the one that is not over."""
        found = [(tag, machine) for tag, machine in await self._ours() if tag.attempt_id == attempt_id]
        newest = max(found, key=lambda pair: (pair[0].epoch, not pair[1].is_over), default=None)
        return newest[1].view(self._installation) if newest is not None else None

    async def one(self, ref: str) -> Machine | None:
        """By its ref. One that is not in the list is asked for by name before it is believed to be gone."""
        listed = next((machine for machine in await self._listed() if machine.ref == ref), None)
        return listed if listed is not None else await self._show(ref)

    async def view(self, ref: str) -> RunView | None:
        """The same as a view."""
        found = await self.one(ref)
        return found.view(self._installation) if found is not None else None

    async def is_gone(self, ref: str) -> bool:
        """Whether it costs nothing any more."""
        found = await self.one(ref)
        return found is None or found.is_over

    async def alive(self) -> list[OurRun]:
        """All of this installation that cost money, or may."""
        return [
            OurRun(
                tag=tag,
                ref=machine.ref,
                started_at=machine.started_at,
                price_micro_usd_per_hour=machine.price_micro_usd_per_hour,
            )
            for tag, machine in await self._ours()
            if not machine.is_over
        ]

    async def _ours(self) -> list[tuple[Tag, Machine]]:
        return [
            (tag, machine)
            for machine in await self._listed()
            if (tag := Tag.parse(machine.label, self._installation)) is not None
        ]
