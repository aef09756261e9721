"""Batches made ahead are the ones that are asked for."""

import threading

import pytest

from trainer.data.ahead import Ahead


class Maker:
    """Counts what it makes, and in which thread."""

    def __init__(self) -> None:
        self.threads: dict[int, list[str]] = {}
        self.made = threading.Condition()

    def __call__(self, key: int) -> str:
        if key < 0:
            raise ValueError(f"no {key}")
        with self.made:
            self.threads.setdefault(key, []).append(threading.current_thread().name)
            self.made.notify_all()
        return f"batch {key}"

    def wait_for(self, *keys: int) -> None:
        with self.made:
            assert self.made.wait_for(lambda: self.threads.keys() >= set(keys), timeout=20)


def test_what_was_announced_is_made_by_the_thread_before_it_is_asked_for() -> None:
    maker = Maker()
    ahead = Ahead(maker, depth=2)
    assert ahead.take(1, [2, 3, 4]) == "batch 1"
    maker.wait_for(2, 3)
    assert ahead.take(2, []) == "batch 2"
    assert threading.current_thread().name in maker.threads[1]
    assert all(name.startswith("ahead") for name in maker.threads[2] + maker.threads[3])
    assert 4 not in maker.threads, "the depth is the limit"


def test_a_jump_to_another_place_gives_its_batches_and_forgets_the_others() -> None:
    maker = Maker()
    ahead = Ahead(maker, depth=2)
    ahead.take(1, [2, 3])
    maker.wait_for(2, 3)
    assert ahead.take(7, [8]) == "batch 7"
    assert ahead.take(2, []) == "batch 2"
    assert len(maker.threads[2]) == 2, "made anew: what nobody announces any more is not kept"


def test_the_same_batch_twice_in_a_row_is_given_twice() -> None:
    ahead = Ahead(Maker(), depth=3)
    assert [ahead.take(1, [1, 1]), ahead.take(1, [1]), ahead.take(1, [])] == ["batch 1"] * 3


def test_without_a_depth_everything_is_made_by_the_one_who_asks() -> None:
    maker = Maker()
    ahead = Ahead(maker, depth=0)
    assert [ahead.take(key, [key + 1]) for key in range(3)] == ["batch 0", "batch 1", "batch 2"]
    assert {name for names in maker.threads.values() for name in names} == {threading.current_thread().name}


def test_a_failure_in_the_thread_reaches_the_one_who_asks() -> None:
    ahead = Ahead(Maker(), depth=1)
    ahead.take(1, [-1])
    with pytest.raises(ValueError, match="no -1"):
        ahead.take(-1, [])
