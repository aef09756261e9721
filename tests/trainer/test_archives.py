# pyright: basic
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.archives import ArchiveLimits, is_archive, unpack_safely
from trainer.failures import AttemptFailed

Entries = list[tuple[str, bytes]]


def zipped(entries: Entries, change: Callable[[zipfile.ZipInfo], None] = lambda _info: None) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            change(info)
            archive.writestr(info, content)
    return packed.getvalue()


def tarred(entries: Entries, mode: Any = "w:gz") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def as_symlink(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def refusal(tmp_path: Path, content: bytes, limits: ArchiveLimits | None = None) -> str:
    """Why the archive is refused, having written nothing."""
    archive = tmp_path / "archive"
    archive.write_bytes(content)
    with pytest.raises(AttemptFailed) as failed:
        unpack_safely(archive, tmp_path / "in" / "here", limits)
    assert failed.value.kind == "bad_data"
    assert not (tmp_path / "in").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]
    return failed.value.message


@pytest.mark.parametrize(
    "content",
    [zipped([("a/1.png", b"one"), ("2.txt", b"two")]), *(tarred([("a/1.png", b"one"), ("2.txt", b"two")], mode)
     for mode in ("w", "w:gz", "w:bz2", "w:xz"))],
    ids=["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"],
)  # fmt: skip
def test_every_kind_unpacks_by_its_content_whatever_its_name(tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "without-a-suffix"
    archive.write_bytes(content)
    assert is_archive(archive)
    assert unpack_safely(archive, tmp_path / "out") == []
    assert (tmp_path / "out" / "a" / "1.png").read_bytes() == b"one"
    assert (tmp_path / "out" / "2.txt").read_bytes() == b"two"


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/x.png", "..\\x.png", "a/" * 2 + "y" * 300])
def test_a_zip_that_reaches_outside_writes_nothing(tmp_path: Path, name: str) -> None:
    assert "outside" in (told := refusal(tmp_path, zipped([("good.png", b"x"), (name, b"y")]))) or "too long" in told


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    assert "something other than a file" in refusal(tmp_path, zipped([("link", b"/etc/passwd")], as_symlink))


def test_an_encrypted_zip_is_refused_by_name(tmp_path: Path) -> None:
    content = bytearray(zipped([("secret.png", b"x")]))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    assert "encrypted: 'secret.png'" in refusal(tmp_path, bytes(content))


@pytest.mark.parametrize("packed", [zipped, tarred], ids=["zip", "tar.gz"])
def test_a_bomb_is_refused_by_its_listing(tmp_path: Path, packed: Callable[[Entries], bytes]) -> None:
    content = packed([("zeros.png", bytes(8_000_000))])
    assert len(content) < 80_000
    limits = ArchiveLimits(ratio_floor_bytes=1_000_000)
    assert "claims more bytes" in refusal(tmp_path, content, limits)


def test_many_small_entries_are_counted_together(tmp_path: Path) -> None:
    content = zipped([(f"{number}.txt", b"") for number in range(20)])
    assert "more than 10 entries" in refusal(tmp_path, content, ArchiveLimits(max_members=10))


def test_a_zip_entry_that_holds_more_than_it_says_is_refused(tmp_path: Path) -> None:
    content = bytearray(zipped([("1.png", bytes(5000))]))
    for magic, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = content.index(magic) + offset
        content[place : place + 4] = (10).to_bytes(4, "little")
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(AttemptFailed, match="cannot be read"):
        unpack_safely(tmp_path / "archive", tmp_path / "out")
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()) <= 10


@pytest.mark.parametrize("entries", [[("a", b"1"), ("a", b"2")], [("a", b"1"), ("a/b", b"2")]], ids=["twice", "both"])
def test_a_name_that_means_two_things_is_refused(tmp_path: Path, entries: Entries) -> None:
    assert "a" in refusal(tmp_path, tarred(entries, "w"))


@pytest.mark.parametrize(
    "content",
    [
        zipped([("1.png", b"one")])[:-10],
        tarred([("1.png", bytes(2000))])[:40],
        b"PK\x03\x04" + bytes(50),
        b"plain text",
    ],
    ids=["cut-zip", "cut-gzip", "no-zip", "text"],
)
def test_a_damaged_archive_is_bad_data(tmp_path: Path, content: bytes) -> None:
    assert "cannot be read" in refusal(tmp_path, content)


def test_other_kinds_of_files_are_left_out_and_named(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(zipped([("1.PNG", b"x"), ("run.sh", b"x"), ("__MACOSX/._1.png", b"x"), ("a/.DS_Store", b"x")]))
    assert unpack_safely(archive, tmp_path / "out", wanted_suffixes=frozenset({".png"})) == ["run.sh"]
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["1.PNG"]
