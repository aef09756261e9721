"""The processes `tunewright up` keeps running, and the environment that is all they are told."""

import http.client
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.embedded.postgres_binaries import ROOT_HOME
from deploy.embedded.process import LOOPBACK, spawn
from deploy.embedded.supervisor import Program

REPOSITORY = Path(__file__).parents[2]
READY_PATH = "/api/cloud/health/ready"
_PROBE_S = 2.0
_WILDCARDS = {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}  # noqa: S104  # addresses to listen on, not to call
RELAY_STAGE, SERVICE_STAGE, GATEWAY_STAGE = 2, 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the children need to know about this start."""

    data_dir: Path
    host: str
    port: int
    config_dir: Path
    storage_port: int
    storage_token: str
    nats_url: str
    log_format: str
    environ: Mapping[str, str]
    database_url: Callable[[str], str]
    nats_login: Callable[[str], tuple[str, str]]
    dataset_roots: Sequence[Path] = ()

    @property
    def gateway_url(self) -> str:
        """Where this machine reaches the gateway."""
        return reachable_url(self.host, self.port)

    @property
    def storage_url(self) -> str:
        """Where the gateway reaches the bytes of objects."""
        return f"http://{LOOPBACK}:{self.storage_port}"


BACKGROUND = 5


def reachable_url(host: str, port: int) -> str:
    """Where this machine reaches a server that listens on this address."""
    host = _WILDCARDS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _nothing(_site: Site) -> dict[str, str]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One process; its name is also its Postgres role and its NATS user."""

    name: str
    arguments: tuple[str, ...]
    stage: int = SERVICE_STAGE
    settings: Callable[[Site], dict[str, str]] = _nothing
    answers_http: bool = False
    niceness: int = 0
    """Of work that nobody waits for: under load, those whom people ask are served first."""

    def environment(self, site: Site) -> dict[str, str]:
        """Everything this process is told: what we were started with but for our secrets, and what it needs."""
        user, password = site.nats_login(self.name)
        return {
            **{name: value for name, value in site.environ.items() if name not in SUPERVISOR_SECRETS},
            "DATABASE_URL": site.database_url(self.name),
            "NATS_URL": site.nats_url,
            "NATS_USER": user,
            "NATS_PASSWORD": password,
            "TUNEWRIGHT_DATA_DIR": str(site.data_dir),
            "LOG_FORMAT": site.log_format,
            "PYTHONUNBUFFERED": "1",
            **self.settings(site),
        }

    def program(self, site: Site) -> Program:
        """This process as the supervisor runs it."""

        def start(output: int) -> subprocess.Popen[bytes]:
            return spawn(
                [sys.executable, *self.arguments],
                env=self.environment(site),
                output=output,
                death_signal=signal.SIGTERM,
                cwd=REPOSITORY,
                niceness=self.niceness,
            )

        def ready() -> bool:
            return not self.answers_http or _is_ready(site)

        return Program(name=self.name, stage=self.stage, spawn=start, is_ready=ready)


def _is_ready(site: Site) -> bool:
    probe = http.client.HTTPConnection(_WILDCARDS.get(site.host, site.host), site.port, timeout=_PROBE_S)
    try:
        probe.request("GET", READY_PATH)
        return probe.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        probe.close()


def _storage(site: Site) -> dict[str, str]:
    roots = {"STORAGE_DATASET_ROOTS": ":".join(map(str, site.dataset_roots))} if site.dataset_roots else {}
    return {
        **roots,
        "STORAGE_PRIVATE_DIRS": str(ROOT_HOME),
        "STORAGE_ROOT": str(site.data_dir / "objects"),
        "STORAGE_HTTP_PORT": str(site.storage_port),
        "STORAGE_HTTP_TOKEN": site.storage_token,
    }


def trainer_python(environ: Mapping[str, str]) -> str:
    """The Python that has the trainer's packages: BRIDGE_TRAINER_PYTHON, or the one that `just setup-trainer` makes."""
    return environ.get("BRIDGE_TRAINER_PYTHON", str(REPOSITORY / ".venv-trainer" / "bin" / "python"))


def _provider_bridge(site: Site) -> dict[str, str]:
    return {
        "BRIDGE_GATEWAY_URL": site.gateway_url,
        "BRIDGE_STATE_DIR": str(site.data_dir / "bridge"),
        "BRIDGE_TRAINER_PYTHON": trainer_python(site.environ),
        "BRIDGE_TRAINER_DIR": str(REPOSITORY),
    }


def _gateway(site: Site) -> dict[str, str]:
    return {
        "GATEWAY_HOST": site.host,
        "GATEWAY_PORT": str(site.port),
        "GATEWAY_CONFIG_DIR": str(site.config_dir),
        "GATEWAY_STORAGE_URL": site.storage_url,
        "GATEWAY_STORAGE_TOKEN": site.storage_token,
    }


CHILDREN = (
    Child(name="relay", arguments=("-m", "shared.eventstore.relay"), stage=RELAY_STAGE, niceness=BACKGROUND),
    Child(name="storage", arguments=("-m", "services.storage"), settings=_storage, niceness=BACKGROUND),
    Child(name="billing", arguments=("-m", "services.billing"), niceness=BACKGROUND),
    Child(name="provider_bridge", arguments=("-m", "services.provider_bridge"), settings=_provider_bridge),
    Child(name="scheduler", arguments=("-m", "services.scheduler")),
    Child(
        name="gateway",
        arguments=("-m", "services.gateway"),
        stage=GATEWAY_STAGE,
        settings=_gateway,
        answers_http=True,
    ),
)
INSPECTOR = "inspector"
"""The Postgres role that may only read; `verify` uses it."""

SUPERVISOR_SECRETS = frozenset(
    [
        "TUNEWRIGHT_DATABASE_URL",
        "TUNEWRIGHT_NATS_URL",
        "TUNEWRIGHT_API_KEY",
        "DATABASE_SUPERUSER_URL",
        "PGPASSWORD",
        "POSTGRES_PASSWORD",
        *(f"{name.upper()}_PASSWORD" for name in (INSPECTOR, *(child.name for child in CHILDREN))),
    ]
)
"""What the supervisor may have been started with and no child may know: other logins than its own."""
