# pyright: basic
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from receiver import TOKEN, Receiver

from shared.contracts.run import DatasetRef
from trainer.archives import unpack_safely
from trainer.control import Control
from trainer.failures import AttemptFailed
from trainer.fetch import Fetcher
from trainer.report.gateway import Gateway, Token


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def entry(name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, content


def reference(content: bytes, url: str = "/files/set.tar") -> DatasetRef:
    return DatasetRef(id="set", sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content), url=url)


@pytest.mark.parametrize(
    "bad",
    [
        entry("../outside.txt"),
        entry("deep/../../outside.txt"),
        entry("/absolute.txt"),
        entry("link", b"", tarfile.SYMTYPE, "/etc/passwd"),
        entry("hard", b"", tarfile.LNKTYPE, "../outside"),
        entry("device", b"", tarfile.CHRTYPE),
        entry("pipe", b"", tarfile.FIFOTYPE),
        entry("back\\..\\slash"),
    ],
    ids=lambda bad: bad[0].name,
)
def test_an_archive_that_reaches_outside_writes_nothing(tmp_path: Path, bad: tuple[tarfile.TarInfo, bytes]) -> None:
    archive = tmp_path / "set.tar"
    archive.write_bytes(packed(entry("good.txt"), bad))
    with pytest.raises(AttemptFailed) as failed:
        unpack_safely(archive, tmp_path / "in" / "here")
    assert failed.value.kind == "bad_data"
    assert not (tmp_path / "in").exists()


def test_an_archive_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    huge = tarfile.TarInfo("huge.png")
    huge.size = 10**12
    archive = tmp_path / "set.tar"
    archive.write_bytes(huge.tobuf() + b"\0" * 1024)
    with pytest.raises(AttemptFailed) as failed:
        unpack_safely(archive, tmp_path / "here")
    assert failed.value.kind == "bad_data"


@pytest.fixture
def fetcher(receiver: Receiver) -> Iterator[Fetcher]:
    gateway = Gateway(receiver.url, Token(None, receiver.token))
    yield Fetcher(gateway, Control(), patience_s=3)
    gateway.close()


def test_a_dataset_is_fetched_checked_and_unpacked_once(receiver: Receiver, fetcher: Fetcher, tmp_path: Path) -> None:
    content = packed(entry("a/one.txt", b"1"), entry("two.txt", b"2"))
    receiver.files["/files/set.tar"] = content
    folder = fetcher.dataset(reference(content), tmp_path)
    assert sorted(path.name for path in folder.rglob("*.txt")) == ["one.txt", "two.txt"]
    receiver.files.clear()
    assert fetcher.dataset(reference(content), tmp_path) == folder


def test_bytes_that_differ_from_the_announced_hash_are_never_unpacked(
    receiver: Receiver, fetcher: Fetcher, tmp_path: Path
) -> None:
    content = packed(entry("two.txt", b"2"))
    receiver.files["/files/set.tar"] = content.replace(b"two.txt", b"tw0.txt")
    with pytest.raises(AttemptFailed) as failed:
        fetcher.dataset(reference(content), tmp_path)
    assert failed.value.kind == "unreachable"
    assert not list(tmp_path.rglob("*.txt"))


def test_a_gateway_that_is_away_at_first_is_waited_for(receiver: Receiver, tmp_path: Path) -> None:
    content = packed(entry("two.txt", b"2"))
    receiver.files["/files/set.tar"] = content
    receiver.token = "not yet"
    timer = threading.Timer(0.3, lambda: setattr(receiver, "token", TOKEN))
    timer.start()
    with closing(Gateway(receiver.url, Token(None, TOKEN))) as gateway:
        assert Fetcher(gateway, Control(), patience_s=60).dataset(reference(content), tmp_path).is_dir()
    timer.join()


def test_a_missing_file_ends_with_advice(fetcher: Fetcher, tmp_path: Path) -> None:
    with pytest.raises(AttemptFailed, match="HTTP 404") as failed:
        fetcher.dataset(reference(b"x"), tmp_path)
    assert failed.value.advice
