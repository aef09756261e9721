"""How a folder becomes a tar, and which folders are refused, with the path in the words."""

import io
import os
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from services.storage.outbound.dataset_files import Bounds, UnusableDataset, survey, tar_blocks

LIMIT_BYTES = 1024**2


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "root" / "pictures"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "2.txt").write_bytes(b"two")
    (folder / "a.png").write_bytes(bytes(1000))
    (folder / "b.txt").write_bytes(b"")
    return folder


def packed(folder: Path, roots: list[Path] | None = None) -> bytes:
    return b"".join(tar_blocks(survey(str(folder), Bounds(roots=roots or [Path("/")]), LIMIT_BYTES)))


def refusal(folder: Path | str, roots: list[Path] | None = None, private: list[Path] | None = None) -> UnusableDataset:
    with pytest.raises(UnusableDataset) as caught:
        survey(str(folder), Bounds(roots=roots or [Path("/")], private=private or []), LIMIT_BYTES)
    assert caught.value.advice
    return caught.value


def test_the_tar_holds_every_file_by_name(pictures: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(pictures))) as tar:
        assert tar.getnames() == ["a.png", "b.txt", "b/2.txt"]
        member = tar.extractfile("b/2.txt")
        assert member is not None
        assert member.read() == b"two"
        assert {(entry.mtime, entry.uid, entry.gid, entry.uname) for entry in tar} == {(0, 0, 0, "")}


def test_the_same_files_give_the_same_bytes_whatever_their_age_order_and_mode(pictures: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    (copy / "b").mkdir(parents=True)
    for name in ("b.txt", "b/2.txt", "a.png"):
        (copy / name).write_bytes((pictures / name).read_bytes())
        os.utime(copy / name, (1, 1))
        (copy / name).chmod(0o600)
    assert packed(copy) == packed(pictures)


def test_one_file_is_packed_alone(pictures: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(pictures / "a.png"))) as tar:
        assert tar.getnames() == ["a.png"]
    assert "is larger than" in refusal_of_size(pictures / "a.png", 999)


def refusal_of_size(path: Path, limit_bytes: int) -> str:
    with pytest.raises(UnusableDataset) as caught:
        survey(str(path), Bounds(roots=[Path("/")]), limit_bytes)
    return caught.value.message


def test_a_changed_byte_changes_the_tar(pictures: Path) -> None:
    before = packed(pictures)
    (pictures / "b" / "2.txt").write_bytes(b"twO")
    assert packed(pictures) != before


def test_a_long_and_a_foreign_name_survive(pictures: Path) -> None:
    name = "ü" * 120 + ".png"
    (pictures / name).write_bytes(b"x")
    with tarfile.open(fileobj=io.BytesIO(packed(pictures))) as tar:
        assert name in tar.getnames()


def test_a_link_inside_the_roots_is_packed_as_its_file(pictures: Path) -> None:
    (pictures / "link.txt").symlink_to(pictures / "b" / "2.txt")
    with tarfile.open(fileobj=io.BytesIO(packed(pictures, [pictures.parent]))) as tar:
        entry = tar.getmember("link.txt")
        assert entry.isfile()
        assert entry.size == 3


@pytest.mark.parametrize("target", ["/etc/passwd", "/etc"])
def test_a_link_out_of_the_roots_is_refused(pictures: Path, target: str) -> None:
    (pictures / "b" / "link").symlink_to(target)
    assert str(pictures / "b" / "link") in refusal(pictures, [pictures.parent]).message


def test_a_dataset_that_is_itself_a_link_out_of_the_roots_is_refused(pictures: Path) -> None:
    root = pictures.parent
    (root / "escape").symlink_to("/etc")
    assert "outside" in refusal(root / "escape", [root]).message


def test_dots_do_not_lead_out_of_the_roots(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_bytes(b"secret")
    assert "outside" in refusal(f"{pictures}/../../private", [pictures.parent]).message


def test_a_root_does_not_open_its_namesakes(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "root-2").mkdir()
    (tmp_path / "root-2" / "key").write_bytes(b"secret")
    assert "outside" in refusal(tmp_path / "root-2", [pictures.parent]).message


def test_a_private_directory_is_no_dataset_nor_is_what_holds_it_or_what_it_holds(tmp_path: Path) -> None:
    own = tmp_path / "tunewright"
    (own / "run").mkdir(parents=True)
    (own / "secrets.json").write_bytes(b"secret")
    for folder in (own, own / "run", tmp_path):
        assert "keeps for itself" in refusal(folder, private=[own]).message


def test_a_link_into_a_private_directory_is_refused(pictures: Path, tmp_path: Path) -> None:
    own = tmp_path / "tunewright"
    own.mkdir()
    (own / "secrets.json").write_bytes(b"secret")
    (pictures / "b" / "caption.txt").symlink_to(own / "secrets.json")
    assert "caption.txt" in refusal(pictures, private=[own]).message


def test_a_link_into_its_own_parents_is_refused(pictures: Path) -> None:
    (pictures / "b" / "up").symlink_to(pictures)
    assert str(pictures / "b" / "up") in refusal(pictures).message


def a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "special")


def a_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(folder / "special"))


def a_broken_link(folder: Path) -> None:
    (folder / "special").symlink_to(folder / "nowhere")


@pytest.mark.parametrize("make", [a_pipe, a_socket, a_broken_link])
def test_what_is_no_file_is_refused(pictures: Path, make: Callable[[Path], None]) -> None:
    make(pictures)
    assert str(pictures / "special") in refusal(pictures).message


def test_missing_empty_and_relative_paths_are_refused(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    for path in (tmp_path / "nowhere", tmp_path / "empty", "pictures", f"{pictures}\0"):
        assert str(path).rstrip("\0") in refusal(path).message


def test_a_dataset_over_the_limit_is_refused(pictures: Path) -> None:
    (pictures / "large").write_bytes(bytes(LIMIT_BYTES))
    assert str(LIMIT_BYTES) in refusal(pictures).message


@pytest.mark.parametrize("content", [b"", b"longer than it was", None])
def test_a_file_that_changes_under_the_packer_is_refused(pictures: Path, content: bytes | None) -> None:
    files = survey(str(pictures), Bounds(roots=[Path("/")]), LIMIT_BYTES)
    changed = pictures / "b" / "2.txt"
    changed.unlink()
    if content is not None:
        changed.write_bytes(content)
    with pytest.raises(UnusableDataset) as caught:
        b"".join(tar_blocks(files))
    assert str(changed) in caught.value.message


def test_a_link_put_in_a_surveyed_files_place_is_not_followed(pictures: Path) -> None:
    files = survey(str(pictures), Bounds(roots=[pictures]), LIMIT_BYTES)
    (pictures / "b" / "2.txt").unlink()
    (pictures / "b" / "2.txt").symlink_to("/etc/passwd")
    with pytest.raises(UnusableDataset):
        b"".join(tar_blocks(files))
