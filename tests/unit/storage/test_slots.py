"""Who shares a folder with whom."""

from pathlib import Path

from shared.slots import Slot


def test_living_processes_of_one_folder_have_different_numbers_and_a_free_one_is_given_again(tmp_path: Path) -> None:
    first, second = Slot.claim(tmp_path), Slot.claim(tmp_path)
    assert first.number != second.number
    assert Slot.take(tmp_path, first.number) is None
    first.release()
    third = Slot.claim(tmp_path)
    assert third.number == first.number
    second.release()
    third.release()
