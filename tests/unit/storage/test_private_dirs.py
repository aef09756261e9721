"""Which directories storage keeps from being packed."""

from pathlib import Path

from services.storage.app import pack_limits
from services.storage.settings import Settings
from shared.settings import load


def test_the_object_store_and_tunewrights_own_directories_are_private(tmp_path: Path) -> None:
    environ = {
        "DATABASE_URL": "postgresql://storage@127.0.0.1/tunewright",
        "NATS_URL": "nats://127.0.0.1:4222",
        "NATS_USER": "storage",
        "NATS_PASSWORD": "password",
        "STORAGE_HTTP_TOKEN": "token",
        "STORAGE_ROOT": str(tmp_path / "objects"),
        "TUNEWRIGHT_DATA_DIR": str(tmp_path / "data"),
        "STORAGE_PRIVATE_DIRS": f"{tmp_path / 'a'}:{tmp_path / 'b'}",
    }
    private = pack_limits(load(Settings, environ)).private
    assert set(private) == {tmp_path.resolve() / name for name in ("objects", "data", "a", "b")}
