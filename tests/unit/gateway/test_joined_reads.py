"""Many who ask for the same: one read after the other, and none that is older than its question."""

import asyncio
from collections.abc import Callable

from services.gateway.joined_reads import JoinedReads
from shared.problems import Unavailable


class Source:
    """A read that takes until it is told to end; it answers with its number."""

    def __init__(self) -> None:
        self.begun = 0
        self._changed = asyncio.Condition()
        self._ended = 0
        self.error: Exception | None = None

    async def read(self) -> int:
        async with self._changed:
            self.begun += 1
            number = self.begun
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._ended >= number)
        if self.error is not None:
            raise self.error
        return number

    async def is_begun(self, number: int) -> None:
        """Returns when this read is under way."""
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(lambda: self.begun >= number)

    async def end(self, number: int) -> None:
        """Waits until this read is under way, and lets it end."""
        await self.is_begun(number)
        async with self._changed:
            self._ended = number
            self._changed.notify_all()

    async def end_all(self) -> None:
        """Every read ends at once from now on."""
        async with self._changed:
            self._ended = 1_000
            self._changed.notify_all()


async def started(make: Callable[[], asyncio.Task[int]], count: int = 1) -> list[asyncio.Task[int]]:
    """Tasks that have got as far as they can alone."""
    tasks = [make() for _ in range(count)]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def answers(asked: list[asyncio.Task[int]]) -> list[int]:
    """What they are told, or TimeoutError if that takes for ever."""
    async with asyncio.timeout(60):
        return await asyncio.gather(*asked)


async def test_who_asks_during_a_read_is_answered_by_the_next_one_and_shares_it() -> None:
    source, reads = Source(), JoinedReads[int]()
    async with asyncio.TaskGroup() as tasks:

        def ask() -> asyncio.Task[int]:
            return tasks.create_task(reads.of("key", source.read))

        first = await started(ask)
        others = await started(ask, 10)
        assert source.begun == 1
        await source.end(1)
        await source.end(2)
    assert [one.result() for one in first] == [1]
    assert [one.result() for one in others] == [2] * 10
    assert source.begun == 2


async def test_questions_that_differ_do_not_wait_for_each_other() -> None:
    source, reads = Source(), JoinedReads[int]()
    async with asyncio.TaskGroup() as tasks:
        for key in ("a", "b"):
            tasks.create_task(reads.of(key, source.read))
        await source.end(2)
    assert source.begun == 2


async def test_read_that_fails_fails_for_all_who_shared_it_and_for_nobody_after() -> None:
    source, reads = Source(), JoinedReads[int]()
    blocker = asyncio.create_task(reads.of("key", source.read))
    sharing = await started(lambda: asyncio.create_task(reads.of("key", source.read)), 3)
    await source.end(1)
    assert await blocker == 1
    source.error = Unavailable("away")
    await source.end(2)
    told = await asyncio.gather(*sharing, return_exceptions=True)
    assert [type(one) for one in told] == [Unavailable] * 3
    source.error = None
    (later,) = await started(lambda: asyncio.create_task(reads.of("key", source.read)))
    await source.end(3)
    assert await later == 3


async def test_who_goes_away_before_his_read_takes_no_answer_from_those_who_share_it() -> None:
    source, reads = Source(), JoinedReads[int]()
    (blocker,) = await started(lambda: asyncio.create_task(reads.of("key", source.read)))
    leader, *others = await started(lambda: asyncio.create_task(reads.of("key", source.read)), 4)
    leader.cancel()
    await source.end_all()
    assert await blocker == 1
    assert all(answer > 1 for answer in await answers(others))
    assert leader.cancelled()


async def test_who_goes_away_during_his_read_leaves_the_others_to_read_again() -> None:
    source, reads = Source(), JoinedReads[int]()
    (blocker,) = await started(lambda: asyncio.create_task(reads.of("key", source.read)))
    leader, *others = await started(lambda: asyncio.create_task(reads.of("key", source.read)), 4)
    await source.end(1)
    assert await blocker == 1
    await source.is_begun(2)
    leader.cancel()
    await source.end_all()
    assert all(answer > 2 for answer in await answers(others))
    assert leader.cancelled()
