"""Which object names are refused before anything touches a disk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.storage.domain.object_key import MAX_KEY_BYTES, check_object_key, check_sha256
from shared.problems import Rejected


@pytest.mark.parametrize(
    "key",
    ["model.safetensors", "0197-job/checkpoint-20/model.safetensors", "a b/ü/日本.png", "a..b", ".hidden", "x" * 1024],
)
def test_an_ordinary_key_passes(key: str) -> None:
    assert check_object_key(key) == key


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "..",
        "../x",
        "a/../b",
        "a/..",
        "a/./b",
        "a//b",
        "a/",
        "a\x00b",
        "a\nb",
        "a\x7fb",
        "a\x85b",
        "a\\..\\b",
        "a\udcff",
        "x" * (MAX_KEY_BYTES + 1),
        "ü" * 513,
    ],
)
def test_a_dangerous_key_is_refused(key: str) -> None:
    with pytest.raises(Rejected) as refusal:
        check_object_key(key)
    assert refusal.value.code == "invalid_object_key"


@given(st.text())
def test_whatever_passes_stays_inside_its_directory(key: str) -> None:
    try:
        check_object_key(key)
    except Rejected:
        return
    assert key
    assert not {"", ".", ".."} & set(key.split("/"))
    assert "\x00" not in key


def test_a_digest_is_read_in_either_case() -> None:
    assert check_sha256(" " + "AB" * 32) == "ab" * 32


@pytest.mark.parametrize("digest", ["", "ab", "g" * 64, "a" * 65, "../" + "a" * 61])
def test_what_is_no_digest_is_refused(digest: str) -> None:
    with pytest.raises(Rejected):
        check_sha256(digest)
