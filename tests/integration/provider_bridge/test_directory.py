"""Adapters follow settings and keys, wherever these are kept; whose key it is, and what hinders, is told."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, cast

import asyncpg
import msgspec
import pytest

from services.provider_bridge.domain.provider import Configure
from services.provider_bridge.domain.provider_settings import COMMON_NAMES
from services.provider_bridge.outbound.credential_key import CredentialKey
from services.provider_bridge.outbound.credentials import Credentials
from services.provider_bridge.outbound.directory import LINGER, ConfiguredProviders, Surroundings, read_variables
from services.provider_bridge.outbound.kinds import CredentialField, Materials, ProviderKind
from services.provider_bridge.outbound.network import NetworkEnvironment
from services.provider_bridge.outbound.ports import Capabilities, Provider
from services.provider_bridge.outbound.secrets import EnvironmentSecrets, SecretChain, SecretFile
from services.provider_bridge.provider_stream import ProviderStreams
from shared.clock import utc_now
from shared.eventstore.memory import MemoryEventStore
from shared.settings import Secret
from tests.support.log import LogDatabase

CAN = Capabilities(
    can_cancel=True,
    live_logs=True,
    cost=True,
    spot=False,
    max_run_time_s=None,
    upload_limit_bytes=None,
    site=None,
)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What one sets of it."""

    api_url: str = "https://api.example.com"
    image: str = ""


class Adapter:
    """What was built, and from what."""

    name = "acme"
    capabilities = CAN

    def __init__(self, materials: Materials) -> None:
        self.materials = materials
        self.closed = False

    @property
    def key(self) -> str:
        return self.materials.credentials["api_key"].reveal()

    async def close(self) -> None:
        self.closed = True


def build(materials: Materials) -> Provider:
    return cast("Provider", Adapter(materials))


KIND = ProviderKind(
    name="acme",
    title="Acme",
    description="Rents machines.",
    credentials=(CredentialField(name="api_key", variable="ACME_API_KEY"),),
    settings=Options,
    capabilities=CAN,
    build=build,
)


@dataclass
class Bench:
    folder: Path
    credentials: Credentials
    streams: ProviderStreams
    environ: dict[str, str] = field(default_factory=dict[str, str])
    now: datetime = field(default_factory=utc_now)

    def __post_init__(self) -> None:
        sources = [EnvironmentSecrets(self.environ), SecretFile([self.file], required=False)]
        chain = SecretChain(sources, now=count(step=1000).__next__)  # nothing is remembered
        around = Surroundings(
            network=NetworkEnvironment(), variables={}, installation="0a1b2c3d", clock=lambda: self.now
        )
        self.providers = ConfiguredProviders(
            [], [KIND], streams=self.streams, credentials=self.credentials, chain=chain, surroundings=around
        )

    @property
    def file(self) -> Path:
        return self.folder / "secrets.json"

    def keep(self, key: str, mode: int = 0o600) -> None:
        self.file.write_text(f'{{"acme-api-key": "{key}"}}', encoding="utf-8")
        self.file.chmod(mode)

    async def adapter(self, user_id: str | None = None) -> Adapter | None:
        await self.providers.refresh()
        return cast("Adapter | None", self.providers.of("acme", user_id))

    async def problems(self) -> tuple[str, ...]:
        await self.providers.refresh()
        standing = self.providers.standing("acme")
        assert standing is not None
        return standing.problems

    async def configure(self, **settings: Any) -> None:
        await self.streams.execute("acme", Configure(provider="acme", settings=settings, at=self.now))


@pytest.fixture
async def bench(log_database: LogDatabase, tmp_path: Path) -> AsyncIterator[Bench]:
    async with asyncpg.create_pool(log_database.dsn("provider_bridge"), min_size=1, max_size=2) as pool:
        yield Bench(tmp_path, Credentials(pool, CredentialKey("k" * 40)), ProviderStreams(MemoryEventStore()))


async def test_a_users_key_goes_before_everybodys_and_that_before_the_operators(bench: Bench) -> None:
    assert await bench.adapter() is None
    assert "ACME_API_KEY is not set" in (await bench.problems())[0]
    bench.keep("of-the-file")
    found = await bench.adapter()
    assert found is not None
    assert found.key == "of-the-file"
    await bench.credentials.save("acme", None, "api_key", Secret("of-everybody"), description=None, at=utc_now())
    await bench.credentials.save("acme", "ann", "api_key", Secret("of-ann"), description=None, at=utc_now())
    keys = {user: one.key for user in (None, "ann", "bob") if (one := await bench.adapter(user)) is not None}
    assert keys == {None: "of-everybody", "ann": "of-ann", "bob": "of-everybody"}
    assert len(bench.providers.known()) == 2
    await bench.credentials.drop("acme", "ann", "api_key")
    again = await bench.adapter("ann")
    assert again is not None
    assert again.key == "of-everybody"


async def test_a_source_that_breaks_is_named_and_leaves_runs_their_adapter(bench: Bench) -> None:
    bench.keep("of-the-file")
    before = await bench.adapter()
    bench.keep("of-the-file", mode=0o644)
    assert await bench.adapter() is before
    (problem,) = await bench.problems()
    assert "chmod 600" in problem
    assert "of-the-file" not in problem
    bench.file.unlink()
    assert await bench.adapter() is None, "it is known to be gone"


async def test_the_same_settings_keep_the_adapter_and_others_replace_it(bench: Bench) -> None:
    bench.keep("a-key")
    first = await bench.adapter()
    await bench.configure(cost_limit_amount=5.0, webhook_allowed_ips=["10.0.0.0/8"])
    assert await bench.adapter() is first
    await bench.configure(image="trainer:2", proxy_url="http://proxy:8080", http_timeout=9)
    second = await bench.adapter()
    assert first is not None
    assert second is not None
    assert second is not first
    assert second.materials.settings == Options(image="trainer:2")
    assert (second.materials.network.proxy_url, second.materials.network.timeout_s) == ("http://proxy:8080", 9)
    assert not first.closed, "it may be in the middle of a call"
    bench.now += LINGER + timedelta(seconds=1)
    await bench.providers.refresh()
    assert first.closed
    assert not second.closed


async def test_the_longest_run_is_told_in_seconds_as_it_was_set(bench: Bench) -> None:
    await bench.providers.refresh()
    assert bench.providers.run_limit_s("acme") is None
    await bench.configure(max_runtime_minutes=90)
    await bench.providers.refresh()
    assert bench.providers.run_limit_s("acme") == 5400
    assert bench.providers.run_limit_s("nobody") is None


async def test_checks_of_certificates_that_went_off_by_themselves_stop_the_provider(bench: Bench) -> None:
    """As a log written by hand would have it: by API it is refused."""
    bench.keep("a-key")
    await bench.configure(ssl_verify=False)
    assert await bench.adapter() is None
    assert "ssl_verify" in (await bench.problems())[0]
    await bench.configure(ssl_verify=False, ssl_verify_acknowledged=True)
    found = await bench.adapter()
    assert found is not None
    assert found.materials.network.ssl_verify is False


def test_variables_name_settings_of_the_longest_name_and_others_are_reported() -> None:
    longer = msgspec.structs.replace(KIND, name="acme_cloud")
    environ = {
        "TUNEWRIGHT_PROVIDER_ACME_IMAGE": "one",
        "TUNEWRIGHT_PROVIDER_ACME_CLOUD_IMAGE": "two",
        "TUNEWRIGHT_PROVIDER_ACME_PROXY_URL": "http://proxy:1",
        "TUNEWRIGHT_PROVIDER_ACME_IMGAE": "x",
    }
    found, unknown = read_variables([KIND, longer], COMMON_NAMES, environ)
    assert found == {"acme": {"image": "one", "proxy_url": "http://proxy:1"}, "acme_cloud": {"image": "two"}}
    assert unknown == ["TUNEWRIGHT_PROVIDER_ACME_IMGAE"]
