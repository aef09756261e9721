"""The real SkyPilot API server on loopback, without a cloud: requests, outcomes, and its words for why not."""

import contextlib
import os
import signal
import socket
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest

from services.provider_bridge.outbound.ports import CredentialRefused, StartOrder, StartRefused, Tag
from services.provider_bridge.outbound.vendors.skypilot import SkyPilotSettings
from shared.ids import new_id
from shared.problems import Unavailable
from tests.contract.providers.skypilot import a_provider
from tests.integration.provider_bridge.stand_in_trainer import a_spec
from tests.vendors.programs import ROOT, running

PYTHON = Path(os.environ.get("SKYPILOT_PYTHON") or ROOT / ".venv-skypilot" / "bin" / "python")
GPUS = 'AcceleratorName,Clouds\nA10G,"[""AWS""]"\n'

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs an environment by requirements/skypilot.in"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """Its list of GPUs is there, so that it does not go and fetch it."""
    home = tmp_path_factory.mktemp("sky")
    catalogue = home / ".sky" / "catalogs" / "v8" / "common" / "accelerators.csv"
    catalogue.parent.mkdir(parents=True)
    catalogue.write_text(GPUS, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    command = [str(PYTHON), "-m", "sky.server.server", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        try:
            return httpx.get(f"{url}/api/health", timeout=2).is_success
        except httpx.TransportError:
            return False

    # In a session of its own: its queue (always on port 50011) is a child that outlives it.
    with running(["setsid", *command], env, home, healthy, limit_s=180) as process:
        yield url
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def test_the_real_server_is_asked_and_refuses_for_want_of_a_cloud(server: str) -> None:
    settings = SkyPilotSettings(api_url=server, image="registry.example.org/tunewright-trainer:1")
    provider = a_provider(server, settings=settings, key="any", timeout_s=60)
    tag = Tag(attempt_id=new_id(), epoch=1)
    label = tag.label("0a1b2c3d")
    try:
        assert (await provider.validate_credentials()).detail.startswith("SkyPilot 0.14")
        assert await provider.list_ours() == []
        assert await provider.find(tag) is None
        assert await provider.fetch(label) is None
        with pytest.raises(StartRefused, match=r"NoCloudAccessError: Cloud access is not set up. Run: sky check"):
            await provider.submit(StartOrder(tag=tag, spec=a_spec(tag.attempt_id), token="t-1"))
        assert await provider.find(tag) is None
        await provider.cancel(tag, label, 1)
        assert await provider.confirm_gone(label)
        with pytest.raises(Unavailable, match="does not tell its prices"):
            await provider.quote()
    finally:
        await provider.close()


async def test_the_real_server_refuses_a_token_that_it_did_not_give(server: str) -> None:
    provider = a_provider(server, key="sky_made-up", timeout_s=60)
    with pytest.raises(CredentialRefused):
        await provider.validate_credentials()
    await provider.close()
