"""The settings and secrets of every container in compose.yaml, made once and kept in files of mode 0600.

`python -m deploy.docker.environment [DIR]` writes `DIR/<service>.env` and `DIR/nats.conf`; what is there is kept.
"""

import json
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.embedded.nats import NatsLayout, NatsUser, render_nats_config
from shared.contracts.subjects import SERVICES, all_permissions

RUN_DIR = Path(__file__).parent / "run"
ROLES = ("relay", *SERVICES, "inspector")
_DATABASE = "tunewright"


def new_secrets() -> dict[str, str]:
    """One random password per Postgres role and NATS user, and the token between gateway and storage."""
    names = ["postgres", "storage_http", *(f"db_{role}" for role in ROLES)]
    names += [f"nats_{user}" for user in ("relay", *SERVICES)]
    return {name: secrets.token_urlsafe(32) for name in names}


def _core(service: str, kept: Mapping[str, str]) -> dict[str, str]:
    return {
        "DATABASE_URL": f"postgresql://{service}:{kept[f'db_{service}']}@postgres:5432/{_DATABASE}",
        "NATS_URL": "nats://nats:4222",
        "NATS_USER": service,
        "NATS_PASSWORD": kept[f"nats_{service}"],
    }


def service_environment(service: str, kept: Mapping[str, str]) -> dict[str, str]:
    """The environment of one service's container."""
    special: dict[str, dict[str, str]] = {
        "gateway": {
            "GATEWAY_HOST": "0.0.0.0",  # noqa: S104 - inside its container; compose publishes it on loopback only
            "GATEWAY_PORT": "8001",
            "GATEWAY_ALLOWED_HOSTS": "gateway",
            "GATEWAY_STORAGE_URL": "http://storage:8002",
            "GATEWAY_STORAGE_TOKEN": kept["storage_http"],
            "GATEWAY_CONFIG_DIR": "/configs",
        },
        "storage": {
            "STORAGE_ROOT": "/var/lib/tunewright/objects",
            "STORAGE_DATASET_ROOTS": "/data",
            "STORAGE_HTTP_HOST": "0.0.0.0",  # noqa: S104 - reachable on the compose network only
            "STORAGE_HTTP_PORT": "8002",
            "STORAGE_HTTP_TOKEN": kept["storage_http"],
        },
        "provider_bridge": {
            "BRIDGE_GATEWAY_URL": "http://gateway:8001",
            "BRIDGE_STATE_DIR": "/var/lib/tunewright/bridge",
            "BRIDGE_TRAINER_PYTHON": "/opt/tunewright/.venv-trainer/bin/python",
            "BRIDGE_TRAINER_DIR": "/opt/tunewright",
        },
    }
    return {**_core(service, kept), **special.get(service, {})}


def migrate_environment(kept: Mapping[str, str]) -> dict[str, str]:
    """The one-shot container that makes roles, schemas and tables."""
    passwords = {f"{role.upper()}_PASSWORD": kept[f"db_{role}"] for role in ROLES}
    superuser = f"postgresql://postgres:{kept['postgres']}@postgres:5432/postgres"
    return {"DATABASE_SUPERUSER_URL": superuser, "DATABASE_NAME": _DATABASE, **passwords}


def nats_config(kept: Mapping[str, str]) -> str:
    """The nats-server configuration: one user per service, limited to its subjects."""
    users = [
        NatsUser(
            name=allowed.user,
            password=kept[f"nats_{allowed.user}"],
            publish_allow=allowed.publish,
            subscribe_allow=allowed.subscribe,
            allow_responses=allowed.allow_responses,
        )
        for allowed in all_permissions()
    ]
    return render_nats_config(users, NatsLayout(store_dir="/data", listen="0.0.0.0:4222", monitor="0.0.0.0:8222"))


def _write(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")


def write_all(folder: Path) -> None:
    """Writes every file compose.yaml names; secrets that exist are kept, so volumes stay readable."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = folder / "secrets.json"
    kept = new_secrets()
    if store.exists():
        kept |= json.loads(store.read_text(encoding="utf-8"))
    _write(store, json.dumps(kept, indent=2))
    environments = {service: service_environment(service, kept) for service in SERVICES}
    environments |= {"relay": _core("relay", kept), "migrate": migrate_environment(kept)}
    environments["postgres"] = {"POSTGRES_PASSWORD": kept["postgres"]}
    for name, variables in environments.items():
        _write(folder / f"{name}.env", "".join(f"{key}={value}\n" for key, value in sorted(variables.items())))
    _write(folder / "nats.conf", nats_config(kept))


if __name__ == "__main__":
    write_all(Path(sys.argv[1]) if len(sys.argv) > 1 else RUN_DIR)
