"""Secrets that other servers keep, read from real ones: moto's AWS Secrets Manager, and OpenBao in Vault's place."""

import contextlib
import json
import shutil
import socket
from collections.abc import Generator
from typing import Any, cast

import boto3  # pyright: ignore[reportMissingTypeStubs] - it has none
import hvac
import pytest

from deploy.embedded.process import free_port
from services.provider_bridge.outbound.egress import NetworkSettings
from services.provider_bridge.outbound.secrets import EnvironmentSecrets, SecretChain, SourceBroken
from services.provider_bridge.outbound.secrets_elsewhere import AwsOptions, AwsSecrets, VaultOptions, VaultSecrets
from shared.settings import Secret
from tests.vendors.programs import VENDORS, running

NETWORK = NetworkSettings()
TOKEN = "r8_kept_elsewhere"
ROOT_TOKEN = "root-of-the-test"


def program(name: str) -> str:
    """A server's program, from the vendors' environment or PATH."""
    own = VENDORS / "bin" / name
    found = str(own) if own.exists() else shutil.which(name)
    assert found is not None, f"{name} is missing: run `just setup-vendors`"
    return found


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture(scope="module")
def aws_url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    port = free_port()
    command = [program("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with running(command, {"PATH": "/usr/bin:/bin"}, tmp_path_factory.mktemp("aws"), lambda: listens(port)):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def vault_url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    port, folder = free_port(), tmp_path_factory.mktemp("vault")
    address = f"127.0.0.1:{port}"
    command = [program("bao"), "server", "-dev", f"-dev-root-token-id={ROOT_TOKEN}", f"-dev-listen-address={address}"]
    with running(command, {"PATH": "/usr/bin:/bin", "HOME": str(folder)}, folder, lambda: listens(port)):
        yield f"http://{address}"


@pytest.fixture
def aws_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """What AWS's own client looks for."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")


def vault(origin: str, **more: Any) -> VaultSecrets:
    options: dict[str, Any] = {
        "url": origin,
        "token": Secret(ROOT_TOKEN),
        "path": "simpletuner",
        "mount": "secret",
        "network": NETWORK,
    }
    return VaultSecrets(VaultOptions(**{**options, **more}))


def aws(url: str, name: str = "simpletuner/production") -> AwsSecrets:
    return AwsSecrets(AwsOptions(secret_name=name, region="us-west-2", endpoint_url=url, network=NETWORK))


@pytest.mark.usefixtures("aws_keys")
async def test_a_secret_of_aws_is_read_by_its_names(aws_url: str) -> None:
    client: Any = cast("Any", boto3).client("secretsmanager", endpoint_url=aws_url, region_name="us-west-2")
    content = json.dumps({"replicate-api-token": TOKEN, "HF_TOKEN": "hf_x"})
    client.create_secret(Name="simpletuner/production", SecretString=content)
    client.create_secret(Name="no/object", SecretString=TOKEN)
    found = await SecretChain([EnvironmentSecrets({}), aws(aws_url)]).find("REPLICATE_API_TOKEN")
    assert found is not None
    assert (found.value.reveal(), found.source) == (TOKEN, "AWS Secrets Manager")
    with pytest.raises(SourceBroken, match="ResourceNotFoundException for the secret missing"):
        await aws(aws_url, "missing").read()
    with pytest.raises(SourceBroken, match="no JSON object") as refused:
        await aws(aws_url, "no/object").read()
    assert TOKEN not in str(refused.value)


@pytest.mark.usefixtures("aws_keys")
async def test_an_aws_that_is_away_is_named() -> None:
    with pytest.raises(SourceBroken, match="AWS Secrets Manager: it cannot be asked"):
        await SecretChain([aws(f"http://127.0.0.1:{free_port()}")]).find("HF_TOKEN")


async def test_a_path_of_vault_is_read_in_both_versions_of_its_store(vault_url: str) -> None:
    client: Any = hvac.Client(url=vault_url, token=ROOT_TOKEN)
    client.secrets.kv.v2.create_or_update_secret(path="simpletuner", secret={"REPLICATE_API_TOKEN": TOKEN})
    client.sys.enable_secrets_engine("kv", path="old", options={"version": "1"})
    client.secrets.kv.v1.create_or_update_secret(path="simpletuner", secret={"hf.token": "hf_old"}, mount_point="old")
    found = await SecretChain([EnvironmentSecrets({}), vault(vault_url)]).find("replicate-api-token")
    assert found is not None
    assert (found.value.reveal(), found.source) == (TOKEN, "Vault")
    assert (await vault(vault_url, mount="old").read())["HF_TOKEN"].reveal() == "hf_old"


async def test_a_vault_that_refuses_is_named_with_what_to_do(vault_url: str) -> None:
    for more, told in (
        ({"path": "nothing"}, "there is nothing at secret/nothing"),
        ({"token": Secret("wrong-token")}, "our token may not read secret/simpletuner"),
        ({"url": f"http://127.0.0.1:{free_port()}"}, "it cannot be asked"),
    ):
        with pytest.raises(SourceBroken, match=told) as refused:
            await vault(vault_url, **more).read()
        assert refused.value.advice
        assert ROOT_TOKEN not in str(refused.value)
        assert "wrong-token" not in str(refused.value)


async def test_the_environment_goes_before_a_vault_that_is_broken(vault_url: str) -> None:
    broken = vault(vault_url, token=Secret("wrong-token"))
    chain = SecretChain([EnvironmentSecrets({"REPLICATE_API_TOKEN": "r8_here"}), broken])
    found = await chain.find("REPLICATE_API_TOKEN")
    assert found is not None
    assert found.value.reveal() == "r8_here"
    with pytest.raises(SourceBroken, match="Vault"):
        await chain.find("RUNPOD_API_KEY")
