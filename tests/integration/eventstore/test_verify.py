"""Somebody with every right damages a real log; verify, with the right to read, names what they did."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import pytest

from shared.eventstore.auditor import Fault
from shared.eventstore.seals import seal_next
from shared.eventstore.verify import verify
from tests.support.log import LogDatabase, StoreFor, a_fact, a_job_stream, an_append

STREAMS, VERSIONS = 10, 3


@dataclass(frozen=True, slots=True)
class Tampered:
    """A log of STREAMS x VERSIONS events, of which the first 20 are sealed, and a superuser at it."""

    log: LogDatabase
    superuser: asyncpg.Connection

    async def do(self, *statements: str) -> None:
        """Does it with the triggers off, then switches them on again, as a careful intruder would."""
        async with self.superuser.transaction():
            await self.superuser.execute("alter table log.events disable trigger append_only")
            await self.superuser.execute("alter table log.seals disable trigger append_only")
            for statement in statements:
                await self.superuser.execute(statement)
            await self.superuser.execute("alter table log.events enable always trigger append_only")
            await self.superuser.execute("alter table log.seals enable always trigger append_only")

    async def faults(self) -> list[Fault]:
        """What the inspector finds."""
        return (await verify(self.log.dsn("inspector"))).faults


@pytest.fixture
async def tampered(log_database: LogDatabase, store_for: StoreFor) -> AsyncIterator[Tampered]:
    store = await store_for("scheduler")
    relay = await asyncpg.connect(log_database.dsn("relay"))
    streams = [a_job_stream() for _ in range(STREAMS)]
    for version in range(VERSIONS):
        appends = [an_append(s, a_fact(f"{version}"), expected_version=version) for s in streams]
        await asyncio.gather(*(store.append(append) for append in appends))
        if version == 1:
            assert await seal_next(relay, at_least=1) == 20
    await relay.execute("insert into log.relay_checkpoint (position) values (28)")
    await relay.close()
    superuser = await asyncpg.connect(log_database.superuser_dsn)
    yield Tampered(log_database, superuser)
    await superuser.close()


async def test_intact_log_verifies_with_the_right_to_read_alone(tampered: Tampered) -> None:
    seen: list[tuple[int, int]] = []
    report = await verify(tampered.log.dsn("inspector"), lambda checked, head: seen.append((checked, head)))
    assert report.is_intact
    assert (report.events, report.streams, report.seals, report.head, report.sealed_to) == (30, 10, 1, 30, 20)
    assert seen == [(30, 30)]
    async with asyncpg.create_pool(tampered.log.dsn("inspector"), min_size=1, max_size=1) as pool:
        assert (await verify(pool)).is_intact


async def test_empty_log_is_intact(log_database: LogDatabase) -> None:
    report = await verify(log_database.dsn("inspector"))
    assert report.is_intact
    assert report.events == 0


async def test_one_changed_byte_is_named(tampered: Tampered) -> None:
    await tampered.do("update log.events set data = set_byte(data, 9, 88) where global_position = 13")
    (fault,) = await tampered.faults()
    assert (fault.kind, fault.position) == ("changed", 13)
    stored = await tampered.superuser.fetchrow(
        "select stream, stream_version from log.events where global_position = 13"
    )
    assert stored is not None
    assert (fault.stream, fault.stream_version) == (stored["stream"], stored["stream_version"])


@pytest.mark.parametrize(
    "change",
    [
        "meta = '{}'",
        "type = 'job.queued.v1'",
        "event_id = gen_random_uuid()",
        "correlation_id = gen_random_uuid()",
        "recorded_at = recorded_at + interval '1 microsecond'",
    ],
)
async def test_change_of_any_other_field_is_named(tampered: Tampered, change: str) -> None:
    await tampered.do(f"update log.events set {change} where global_position = 4")  # noqa: S608
    assert [(fault.kind, fault.position) for fault in await tampered.faults()] == [("changed", 4)]


async def test_dropped_event_is_named_by_position_stream_and_version(tampered: Tampered) -> None:
    lost = await tampered.superuser.fetchrow("select stream, stream_version from log.events where global_position = 12")
    assert lost is not None
    await tampered.do("delete from log.events where global_position = 12")
    seal, dropped = await tampered.faults()
    assert (seal.kind, seal.position) == ("seal_broken", 1)
    assert (dropped.kind, dropped.position) == ("dropped", 12)
    assert (dropped.stream, dropped.stream_version) == (lost["stream"], lost["stream_version"])


async def test_two_events_in_each_others_place_are_named(tampered: Tampered) -> None:
    await tampered.do(
        "update log.events set global_position = 99 where global_position = 3",
        "update log.events set global_position = 3 where global_position = 8",
        "update log.events set global_position = 8 where global_position = 99",
    )
    faults = await tampered.faults()
    assert {fault.position for fault in faults if fault.kind == "swapped"} == {3, 8}
    assert [fault.position for fault in faults if fault.kind == "seal_broken"] == [1]


async def test_event_inserted_by_hand_is_named(tampered: Tampered) -> None:
    await tampered.do(
        "insert into log.events (global_position, event_id, stream, stream_version, type, data, meta, correlation_id,"
        " recorded_at, hash) values (31, gen_random_uuid(), 'job-forged', 1, 'job.queued.v1', '{}', '{}',"
        " gen_random_uuid(), now(), sha256('forged'))"
    )
    assert [(f.kind, f.position, f.stream) for f in await tampered.faults()] == [("inserted", 31, "job-forged")]


async def test_tail_cut_below_what_the_relay_has_seen_is_named(tampered: Tampered) -> None:
    await tampered.do("delete from log.events where global_position > 25")
    (fault,) = await tampered.faults()
    assert (fault.kind, fault.position) == ("cut", 26)


async def test_tail_cut_below_a_seal_is_named(tampered: Tampered) -> None:
    await tampered.do("delete from log.events where global_position > 15", "delete from log.relay_checkpoint")
    assert {(fault.kind, fault.position) for fault in await tampered.faults()} == {("cut", 16), ("seal_broken", 1)}


async def test_event_rewritten_with_a_fitting_hash_breaks_its_seal(tampered: Tampered) -> None:
    await tampered.do("update log.events set hash = sha256(hash) where global_position = 20")
    kinds = {(fault.kind, fault.position) for fault in await tampered.faults()}
    assert ("seal_broken", 1) in kinds
    assert any(position == 20 for _, position in kinds)
