"""Secrets that another server keeps: AWS Secrets Manager and Vault, through their own clients, in threads."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from services.provider_bridge.outbound.egress import NetworkSettings
from services.provider_bridge.outbound.secrets import SourceBroken, by_name
from shared.settings import Secret

_CONNECT_S = 3
_ANSWER_S = 5
_TRIES = 2


class AwsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which secret, and where. The account's keys are found in the ways that AWS's own client knows."""

    secret_name: str
    region: str | None = None
    endpoint_url: str | None = None
    network: NetworkSettings


class AwsSecrets:
    """One secret of AWS Secrets Manager: a JSON object of names and values."""

    title = "AWS Secrets Manager"

    def __init__(self, options: AwsOptions) -> None:
        self._options = options

    async def read(self) -> Mapping[str, Secret]:
        """What the secret holds. Raises SourceBroken."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> Mapping[str, Secret]:
        # Imported here: it takes most of a second, and most installations have none.
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 # pyright: ignore[reportMissingTypeStubs] - it has none

        name = self._options.secret_name
        try:
            answer = self._client().get_secret_value(SecretId=name)
        except ClientError as error:
            code = str(cast("dict[str, Any]", error.response).get("Error", {}).get("Code", "an error"))
            advice = "Check SIMPLETUNER_AWS_SECRET_NAME, the region, and what our key may read."
            raise SourceBroken(self.title, f"it answers {code} for the secret {name}", advice) from None
        except (BotoCoreError, ValueError) as error:
            advice = "Check AWS_DEFAULT_REGION, the account's keys, and the way there."
            raise SourceBroken(self.title, f"it cannot be asked: {type(error).__name__}", advice) from None
        try:
            content = json.loads(answer.get("SecretString") or "")
        except ValueError:
            content = None
        if not isinstance(content, dict):
            advice = 'Store {"REPLICATE_API_TOKEN": "...", ...} in it.'
            raise SourceBroken(self.title, f"the secret {name} is no JSON object", advice)
        return by_name(self.title, cast("dict[str, Any]", content))

    def _client(self) -> Any:
        import boto3.session  # noqa: PLC0415 # pyright: ignore[reportMissingTypeStubs] - it has none
        from botocore.config import Config  # noqa: PLC0415 # pyright: ignore[reportMissingTypeStubs] - it has none

        network = self._options.network
        proxies = {"http": network.proxy_url, "https": network.proxy_url} if network.proxy_url else None
        config = Config(
            proxies=proxies,
            connect_timeout=_CONNECT_S,
            read_timeout=_ANSWER_S,
            retries={"total_max_attempts": _TRIES},
        )
        session: Any = boto3.session.Session(region_name=self._options.region)
        return session.client(
            "secretsmanager",
            endpoint_url=self._options.endpoint_url,
            verify=verification(network),
            config=config,
        )


class VaultOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which server and path; `namespace` for servers that have them."""

    url: str
    token: Secret
    path: str
    mount: str
    namespace: str | None = None
    network: NetworkSettings


class VaultSecrets:
    """One path of a Vault's key-value store, of version 2 or 1."""

    title = "Vault"

    def __init__(self, options: VaultOptions) -> None:
        self._options = options

    async def read(self) -> Mapping[str, Secret]:
        """What stands at the path. Raises SourceBroken."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> Mapping[str, Secret]:
        from hvac.exceptions import Forbidden, InvalidPath, Unauthorized, VaultError  # noqa: PLC0415 - as above

        where = f"{self._options.mount}/{self._options.path}"
        try:
            values = self._values()
        except InvalidPath:
            advice = f"Write it there: vault kv put {where} REPLICATE_API_TOKEN=..."
            raise SourceBroken(self.title, f"there is nothing at {where}", advice) from None
        except (Forbidden, Unauthorized):
            advice = "Check VAULT_TOKEN: its policy must allow reading, and it may have run out."
            raise SourceBroken(self.title, f"our token may not read {where}", advice) from None
        except (VaultError, OSError, ValueError) as error:  # its client's network errors are OSErrors
            advice = "Check VAULT_ADDR, and whether the server is sealed."
            raise SourceBroken(self.title, f"it cannot be asked: {type(error).__name__}", advice) from None
        return by_name(self.title, values)

    def _values(self) -> Mapping[str, Any]:
        import hvac  # noqa: PLC0415 - as above
        from hvac.exceptions import InvalidPath  # noqa: PLC0415

        options, network = self._options, self._options.network
        client: Any = hvac.Client(
            url=options.url,
            token=options.token.reveal(),
            timeout=_ANSWER_S,
            namespace=options.namespace,
            proxies={"http": network.proxy_url, "https": network.proxy_url} if network.proxy_url else None,
            verify=verification(network),
        )
        try:
            answer = client.secrets.kv.v2.read_secret_version(
                path=options.path, mount_point=options.mount, raise_on_deleted_version=True
            )
            return cast("dict[str, Any]", answer["data"]["data"])
        except InvalidPath:
            answer = client.secrets.kv.v1.read_secret(path=options.path, mount_point=options.mount)
            return cast("dict[str, Any]", answer["data"])


def verification(network: NetworkSettings) -> bool | str:
    """The same settings as clients built on requests or botocore take them: a bundle, yes, or no."""
    return (network.ca_bundle or True) if network.ssl_verify else False
