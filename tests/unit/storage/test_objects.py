"""What the object store says when what it stands on fails."""

import hashlib
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from obstore.store import S3Store

from deploy.embedded.process import free_port
from services.storage.outbound.objects import Objects, address
from shared.problems import Unavailable


async def blocks(content: bytes) -> AsyncGenerator[bytes]:
    yield content


async def test_size_in_a_store_that_does_not_answer_is_unavailable() -> None:
    nobody = S3Store(
        "bucket",
        endpoint=f"http://127.0.0.1:{free_port()}",
        access_key_id="id",
        secret_access_key="key",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    with pytest.raises(Unavailable):
        await Objects(nobody, local_root=None, min_free_bytes=0).size("outputs/sha256/00")


async def test_an_address_that_cannot_be_given_is_unavailable(tmp_path: Path) -> None:
    where = tmp_path / address("outputs", hashlib.sha256(b"bytes").hexdigest())
    (where / "in the way").mkdir(parents=True)
    objects = Objects.open(root=str(tmp_path), url="", min_free_bytes=0)
    with pytest.raises(Unavailable):
        await objects.put("outputs", blocks(b"bytes"))
