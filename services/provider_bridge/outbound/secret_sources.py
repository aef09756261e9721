"""Which sources of secrets this installation has, as its environment says."""

from collections.abc import Mapping
from pathlib import Path

from services.provider_bridge.outbound.network import NetworkEnvironment
from services.provider_bridge.outbound.secrets import (
    FILE_NAMES,
    EnvironmentSecrets,
    SecretChain,
    SecretFile,
    SecretSource,
)
from services.provider_bridge.outbound.secrets_elsewhere import AwsOptions, AwsSecrets, VaultOptions, VaultSecrets
from shared.settings import Secret, SettingsError


def secret_chain(environ: Mapping[str, str], network: NetworkEnvironment) -> SecretChain:
    """Environment, file, AWS, Vault: those that are set up. Raises SettingsError for one that is set up by half."""
    sources: list[SecretSource] = [EnvironmentSecrets(environ), _file(environ)]
    if name := environ.get("SIMPLETUNER_AWS_SECRET_NAME"):
        sources.append(_aws(name, environ, network))
    if address := environ.get("VAULT_ADDR"):
        sources.append(_vault(address, environ, network))
    return SecretChain(sources)


def _file(environ: Mapping[str, str]) -> SecretFile:
    if path := environ.get("TUNEWRIGHT_SECRETS_FILE"):
        return SecretFile([Path(path).expanduser()], required=True)
    folder = Path(environ.get("SIMPLETUNER_STATE_DIR") or Path(environ.get("HOME") or "/") / ".simpletuner")
    return SecretFile([folder.expanduser() / name for name in FILE_NAMES], required=False)


def _aws(name: str, environ: Mapping[str, str], network: NetworkEnvironment) -> AwsSecrets:
    region = environ.get("AWS_DEFAULT_REGION") or environ.get("AWS_REGION") or None
    endpoint = environ.get("AWS_ENDPOINT_URL_SECRETS_MANAGER") or environ.get("AWS_ENDPOINT_URL") or None
    origin = endpoint or f"https://secretsmanager.{region}.amazonaws.com"
    settings = network.settings_for(origin)
    return AwsSecrets(AwsOptions(secret_name=name, region=region, endpoint_url=endpoint, network=settings))


def _vault(address: str, environ: Mapping[str, str], network: NetworkEnvironment) -> VaultSecrets:
    token = environ.get("VAULT_TOKEN", "").strip()
    if not token:
        raise SettingsError("VAULT_TOKEN: VAULT_ADDR is set, so a token is needed; remove VAULT_ADDR to use no Vault")
    options = VaultOptions(
        url=address,
        token=Secret(token),
        path=environ.get("SIMPLETUNER_VAULT_PATH") or "simpletuner",
        mount=environ.get("SIMPLETUNER_VAULT_MOUNT") or "secret",
        namespace=environ.get("VAULT_NAMESPACE") or None,
        network=network.settings_for(address),
    )
    return VaultSecrets(options)
