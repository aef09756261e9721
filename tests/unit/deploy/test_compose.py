"""compose.yaml says what the services' own settings say."""

import importlib
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from deploy.docker.environment import new_secrets, service_environment, write_all
from shared.contracts.subjects import SERVICES, all_permissions
from shared.eventstore.migrate import LOGIN_ROLES
from shared.settings import load

ROOT = Path(__file__).resolve().parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("service", SERVICES)
def test_environment_of_each_container_is_what_its_settings_ask_for(service: str) -> None:
    settings_type = importlib.import_module(f"services.{service}.settings").Settings
    environment = service_environment(service, new_secrets())
    loaded = load(settings_type, environment)
    known = {field.name.upper() for field in msgspec.structs.fields(settings_type)}
    assert loaded.nats_user == service
    assert set(environment) <= known


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_has_a_container_that_runs_it(service: str) -> None:
    container = COMPOSE["services"][service.replace("_", "-")]
    assert container["command"] == [f"services.{service}"]
    assert container["env_file"] == f"deploy/docker/run/{service}.env"
    assert container["healthcheck"]
    assert container["cap_drop"] == ["ALL"]
    assert container["read_only"] is True


def test_only_the_gateway_is_published_and_on_loopback() -> None:
    published = {name: spec["ports"] for name, spec in COMPOSE["services"].items() if "ports" in spec}
    assert list(published) == ["gateway"]
    assert all(port.startswith("127.0.0.1:") for port in published["gateway"])


def test_the_bridge_has_an_init_that_reaps_what_its_runners_leave() -> None:
    assert COMPOSE["services"]["provider-bridge"]["init"] is True


def test_every_env_file_named_is_written_and_private(tmp_path: Path) -> None:
    write_all(tmp_path)
    named = {spec["env_file"] for spec in COMPOSE["services"].values() if "env_file" in spec}
    assert {Path(name).name for name in named} == {path.name for path in tmp_path.glob("*.env")}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_secrets_survive_a_second_run(tmp_path: Path) -> None:
    write_all(tmp_path)
    before = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    write_all(tmp_path)
    assert before == {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}


def test_nats_config_has_one_limited_user_per_service(tmp_path: Path) -> None:
    write_all(tmp_path)
    text = (tmp_path / "nats.conf").read_text(encoding="utf-8")
    users = re.findall(r'user: "(\w+)"', text)
    assert sorted(users) == sorted(allowed.user for allowed in all_permissions())
    assert text.count("permissions:") == len(users)


def test_migrations_are_given_a_password_for_every_role(tmp_path: Path) -> None:
    write_all(tmp_path)
    text = (tmp_path / "migrate.env").read_text(encoding="utf-8")
    assert {f"{role.upper()}_PASSWORD" for role in LOGIN_ROLES} <= set(re.findall(r"^(\w+)=", text, flags=re.MULTILINE))
