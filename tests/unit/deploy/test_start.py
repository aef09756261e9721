"""What embedded mode refuses before it starts anything, and what its children are told."""

import fcntl
import os
from pathlib import Path

import pytest

from deploy.embedded.children import CHILDREN, Child, Site
from deploy.embedded.options import UpOptions, options_from
from deploy.embedded.process import EmbeddedError
from deploy.embedded.start_checks import check_dataset_roots, check_survivors, remember_gateway

SECRET = "postgresql://postgres:of-the-superuser@db"
OLD, NEW = "http://127.0.0.1:8001", "http://127.0.0.1:9001"


def a_site(data_dir: Path, *dataset_roots: Path, **environ: str) -> Site:
    return Site(
        data_dir=data_dir,
        host="127.0.0.1",
        port=8001,
        config_dir=data_dir / "configs",
        storage_port=8002,
        storage_token="token",
        nats_url="nats://127.0.0.1:4222",
        log_format="json",
        environ=environ,
        database_url=lambda role: f"postgresql://{role}@db",
        nats_login=lambda name: (name, f"password of {name}"),
        dataset_roots=dataset_roots,
    )


@pytest.mark.parametrize("child", CHILDREN, ids=lambda child: child.name)
def test_a_child_is_told_no_login_but_its_own(tmp_path: Path, child: Child) -> None:
    site = a_site(
        tmp_path,
        TUNEWRIGHT_DATABASE_URL=SECRET,
        TUNEWRIGHT_NATS_URL=SECRET,
        DATABASE_SUPERUSER_URL=SECRET,
        DATABASE_URL=SECRET,
        BILLING_PASSWORD=SECRET,
        POSTGRES_PASSWORD=SECRET,
        NATS_PASSWORD=SECRET,
        HF_TOKEN="the operator's",
    )
    told = child.environment(site)
    assert [name for name, value in told.items() if value == SECRET] == []
    assert (told["NATS_PASSWORD"], told["HF_TOKEN"]) == (f"password of {child.name}", "the operator's")


def test_dataset_roots_reach_storage(tmp_path: Path) -> None:
    options = options_from(["--data-dir", "x", "--dataset-root", "/a", "--dataset-root", "/b"])
    (storage,) = [child for child in CHILDREN if child.name == "storage"]
    assert storage.environment(a_site(tmp_path, *options.dataset_roots))["STORAGE_DATASET_ROOTS"] == "/a:/b"


@pytest.mark.parametrize("host", ["::", "", "192.0.2.1", "example.org"])
def test_beyond_loopback_dataset_roots_must_be_named(tmp_path: Path, host: str) -> None:
    with pytest.raises(EmbeddedError, match="--dataset-root"):
        check_dataset_roots(UpOptions(data_dir=tmp_path, host=host), {})
    check_dataset_roots(UpOptions(data_dir=tmp_path, host=host, dataset_roots=[tmp_path]), {})
    check_dataset_roots(UpOptions(data_dir=tmp_path, host=host), {"STORAGE_DATASET_ROOTS": "/data"})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_on_loopback_dataset_roots_need_not_be_named(tmp_path: Path, host: str) -> None:
    check_dataset_roots(UpOptions(data_dir=tmp_path, host=host), {})


def test_another_port_is_refused_only_while_a_trainer_of_the_last_start_lives(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    attempt = tmp_path / "bridge" / "attempts" / "0198"
    attempt.mkdir(parents=True)
    runner = os.open(attempt / "runner.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(runner, fcntl.LOCK_EX)
    check_survivors(tmp_path, NEW)
    remember_gateway(tmp_path, OLD)
    check_survivors(tmp_path, OLD)
    with pytest.raises(EmbeddedError, match="--port 8001"):
        check_survivors(tmp_path, NEW)
    os.close(runner)
    check_survivors(tmp_path, NEW)
