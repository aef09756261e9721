"""The `worker` provider: machines of our own users that pull their jobs. Its truth is in our database.

A run is given to a worker by one transaction that shuts out lower epochs, finds no run of the attempt, and appends to
the worker's stream at the version that was decided on. So no attempt has two workers and no worker two runs, however
many bridges want the same one (docs/decisions/0026).
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from services.provider_bridge.domain.worker import Worker
from services.provider_bridge.domain.worker_acts import AskCancel, Assign, Release
from services.provider_bridge.domain.worker_matching import ANY, PROVIDER, best_first, offer_of, suits
from services.provider_bridge.outbound.ports import (
    Account,
    Balance,
    Capabilities,
    LogPage,
    NoCapacity,
    OurRun,
    RunView,
    StaleEpoch,
    StartOrder,
    Tag,
    WebhookNote,
    WebhookRefused,
)
from services.provider_bridge.outbound.worker_store import RowMoved, WorkerStore
from services.provider_bridge.queries import WORKER_QUERIES as SQL
from services.provider_bridge.worker_stream import WORKER
from shared.contracts.job import Event
from shared.contracts.offers import Offer
from shared.contracts.worker import OFFLINE_S
from shared.eventstore.api import VersionConflict
from shared.eventstore.group_commit import Connection
from shared.problems import Rejected, Unavailable

_TRIES = 20
"""How many free workers may be lost to others before the order is put off."""


class _Gift(msgspec.Struct, frozen=True, kw_only=True):
    """A run decided upon: whose it is to be, and the version of the worker's stream that this was decided on."""

    worker_id: UUID
    version: int
    events: list[Event]
    price: int


CAPABILITIES = Capabilities(
    can_cancel=True,
    live_logs=False,
    cost=False,
    spot=False,
    max_run_time_s=None,
    upload_limit_bytes=None,
    site=None,
    fences_epochs=True,
    default_hardware=ANY,
    tested_against="itself",
)


class WorkersProvider:
    """Gives each attempt to one idle worker, at most once."""

    def __init__(self, store: WorkerStore) -> None:
        self._store = store

    @property
    def name(self) -> str:
        """`worker`."""
        return PROVIDER

    @property
    def capabilities(self) -> Capabilities:
        """Cancels through the worker, costs what an administrator said, no limits."""
        return CAPABILITIES

    async def quote(self) -> list[Offer]:
        """Each worker that has registered, under its id; to be had now are those that are idle and were heard of."""
        now = self._store.clock()
        offers: list[Offer] = []
        for presence in await self._store.present():
            state = await self._store.load(presence.worker_id)
            if not isinstance(state, Worker) or state.registered is None or state.is_spent:
                continue
            is_heard = presence.heard_at is not None and now - presence.heard_at < timedelta(seconds=OFFLINE_S)
            offers.append(offer_of(presence.worker_id, state, is_free=state.takes_runs and is_heard))
        return best_first(offers)

    async def submit(self, order: StartOrder) -> str:
        """Gives the run to the first idle worker that suits, or finds the one that has it."""
        for _ in range(_TRIES):
            gift = await self._choose(order)  # outside of the transaction, which has a connection of its own
            try:
                async with self._store.transaction() as connection:
                    row = await _fenced(connection, order.tag)
                    if row["worker_id"] is not None:
                        return str(order.tag.attempt_id)
                    if gift is None:
                        raise NoCapacity(
                            "No worker that suits is idle now.",
                            "`GET /api/admin/workers` says what each does; start another one, or wait.",
                        )
                    await self._give(connection, order, gift)
            except (VersionConflict, asyncpg.UniqueViolationError):
                continue  # another bridge was faster
            self._store.changed()
            return str(order.tag.attempt_id)
        raise Unavailable("every worker that suits was taken by others; it is tried again")

    async def _choose(self, order: StartOrder) -> _Gift | None:
        tag = order.tag
        assign = Assign(
            attempt_id=tag.attempt_id, job_id=UUID(order.spec.job_id), epoch=tag.epoch, at=self._store.clock()
        )
        for offer in await self.quote():
            if offer.availability == "high" and suits(offer, order.offer):
                worker_id = UUID(offer.hardware)
                version, state = await self._store.version(worker_id)
                try:
                    events = list(WORKER.decide(state, assign))
                except Rejected:  # it is not idle any more
                    continue
                return _Gift(worker_id=worker_id, version=version, events=events, price=offer.price_micro_usd_per_hour)
        return None

    async def _give(self, connection: Connection, order: StartOrder, gift: _Gift) -> None:
        tag, job_id = order.tag, UUID(order.spec.job_id)
        spec, token = msgspec.json.encode(order.spec), self._store.sealed(order.token, tag.attempt_id)
        run = (gift.worker_id, job_id, tag.epoch, spec, token, order.max_run_s, gift.price)
        await connection.execute(SQL.assign_run, tag.attempt_id, *run)
        await self._store.append(connection, gift.worker_id, gift.version, gift.events)

    async def find(self, tag: Tag) -> RunView | None:
        """The run, with every lower epoch shut out for good."""
        async with self._store.transaction() as connection:
            return _view(await _fenced(connection, tag))

    async def fetch(self, ref: str) -> RunView | None:
        """The run as its worker tells it."""
        row = await self._row(ref)
        return None if row is None else _view(row)

    async def cancel(self, tag: Tag, ref: str, grace_s: float) -> None:  # noqa: ARG002 - a run's ref is its attempt
        """Tells the worker; a run that it was never told of is over at once."""
        async with self._store.transaction() as connection:
            row = await _fenced(connection, tag)
        if row["worker_id"] is None or row["word"] not in {"assigned", "running"}:
            return
        worker_id, now = UUID(int=row["worker_id"].int), self._store.clock()
        if row["taken_at"] is None:
            never = Release(attempt_id=tag.attempt_id, outcome="never_begun", ended_at=now, at=now)
            try:
                await self._store.commit(worker_id, never, only_if_untold=True)
            except RowMoved:  # it was told a moment ago
                pass
            else:
                return
        await self._store.commit(worker_id, AskCancel(attempt_id=tag.attempt_id, grace_s=grace_s, at=now))

    async def confirm_gone(self, ref: str) -> bool:
        """Whether the run is over, or nobody's; of a lost worker's machine nobody knows more than that."""
        row = await self._row(ref)
        return row is None or row["word"] not in {"assigned", "running"}

    async def logs(self, ref: str, after: str | None) -> LogPage:
        """The trainer's last words, once the worker has told them: its log goes straight to the gateway."""
        row = await self._row(ref) if after is None else None
        words: str = row["last_words"] if row is not None else ""
        return LogPage(lines=words.splitlines(), cursor="end" if words else after)

    async def list_ours(self) -> list[OurRun]:
        """Every run that is some worker's."""
        return [
            OurRun(
                tag=Tag(attempt_id=UUID(int=row["attempt_id"].int), epoch=row["epoch"]),
                ref=str(row["attempt_id"]),
                started_at=row["started_at"],
                price_micro_usd_per_hour=row["price_micro_usd_per_hour"],
            )
            for row in await self._store.rows(SQL.living_runs)
        ]

    def verify_webhook(self, headers: Mapping[str, str], query: Mapping[str, str], body: bytes) -> WebhookNote:  # noqa: ARG002 - the port's signature
        """Nobody sends any."""
        raise WebhookRefused("unreadable", "workers send no webhooks")

    async def validate_credentials(self) -> Account:
        """Workers have tokens of their own; the account is this installation's."""
        return Account(username="own workers")

    async def balance(self) -> Balance:
        """Nothing is paid to anybody."""
        return Balance(micro_usd=None, note="Own workers are paid to nobody.")

    async def close(self) -> None:
        """Nothing is held open."""

    async def _row(self, ref: str) -> Any:
        try:
            attempt_id = UUID(ref)
        except ValueError:
            return None
        return await self._store.row(SQL.read_run, attempt_id)


async def _fenced(connection: Connection, tag: Tag) -> Any:
    row = await connection.fetchrow(SQL.raise_run_fence, tag.attempt_id, tag.epoch)
    if row is None:
        raise StaleEpoch
    return row


def _view(row: Any) -> RunView | None:
    if row["worker_id"] is None:
        return None
    return RunView(
        ref=str(row["attempt_id"]),
        word=row["word"],
        exit_code=row["exit_code"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        last_words=row["last_words"],
    )
