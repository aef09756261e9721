"""`/api/users/.../credentials`: keys of providers that belong to one user, and go before everybody's."""

from typing import Annotated

import msgspec
from litestar import Router, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from services.gateway.domain.provider_body import CredentialResponse, credential_body, stale
from services.gateway.inbound.http.parts import Caller, Parts
from services.gateway.inbound.http.principal import require_json
from services.gateway.inbound.http.problems import OK

ME = "me"
Days = Annotated[int, QueryParameter(ge=1, le=365)]


class SetCredentialRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The key, under its name (`api_token`) or its variable's (`REPLICATE_API_TOKEN`)."""

    provider: str
    credential_name: str
    value: str
    description: str | None = None

    def __repr__(self) -> str:
        return f"SetCredentialRequest({self.provider}, {self.credential_name})"


class CredentialStored(msgspec.Struct, frozen=True, kw_only=True):
    """It is kept, encrypted."""

    success: bool = True
    id: int


class CredentialRemoved(msgspec.Struct, frozen=True, kw_only=True):
    """It is forgotten."""

    success: bool = True


class ValidateCredentialRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which provider is asked; all of the caller's keys for it are used."""

    provider: str
    credential_name: str = ""


class CredentialValidity(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the provider takes the key, and where that key is from."""

    valid: bool
    username: str | None
    token_source: str | None
    error: str | None


class StaleCredentials(msgspec.Struct, frozen=True, kw_only=True):
    """Keys that have not been given anew for so many days."""

    user_id: str
    threshold_days: int
    stale_count: int
    credentials: list[CredentialResponse]


@get("/{user_id:str}/credentials")
async def list_credentials(
    user_id: FromPath[str], parts: Parts, principal: Caller, provider: FromQuery[str | None] = None
) -> list[CredentialResponse]:
    """A user's stored keys, without the keys; `me` is the caller."""
    found = await parts.providers.credentials(principal, user_id=_user(user_id, principal), provider=provider)
    return [credential_body(view) for view in found]


@post("/{user_id:str}/credentials", status_code=OK, guards=[require_json])
async def set_credential(
    user_id: FromPath[str], data: JSONBody[SetCredentialRequest], parts: Parts, principal: Caller
) -> CredentialStored:
    """Store a key for one user, in place of an older one of that name."""
    stored = await parts.providers.store(
        data.provider,
        data.value,
        principal,
        credential=data.credential_name,
        user_id=_user(user_id, principal),
        description=data.description,
    )
    return CredentialStored(id=stored.id)


@delete("/{user_id:str}/credentials/{provider:str}/{credential_name:str}", status_code=OK)
async def delete_credential(
    user_id: FromPath[str],
    provider: FromPath[str],
    credential_name: FromPath[str],
    parts: Parts,
    principal: Caller,
) -> CredentialRemoved:
    """Forget a user's key."""
    await parts.providers.remove(provider, principal, credential=credential_name, user_id=_user(user_id, principal))
    return CredentialRemoved()


@post("/me/credentials/validate", status_code=OK, guards=[require_json])
async def validate_credential(
    data: JSONBody[ValidateCredentialRequest], parts: Parts, principal: Caller
) -> CredentialValidity:
    """Ask the provider whether it takes the key that a job of the caller's would use."""
    account = await parts.providers.account(data.provider, principal)
    return CredentialValidity(
        valid=account.valid, username=account.username, token_source=account.source, error=account.error
    )


@get("/{user_id:str}/credentials/stale")
async def stale_credentials(
    user_id: FromPath[str], parts: Parts, principal: Caller, days: Days = 90
) -> StaleCredentials:
    """A user's keys that are due to be given anew."""
    whose = _user(user_id, principal)
    old = stale(await parts.providers.credentials(principal, user_id=whose), parts.reads.now(), days)
    return StaleCredentials(
        user_id=whose, threshold_days=days, stale_count=len(old), credentials=[credential_body(view) for view in old]
    )


def _user(given: str, principal: Caller) -> str:
    return principal.user_id if given == ME else given


ROUTER = Router(
    "/api/users",
    route_handlers=[list_credentials, set_credential, delete_credential, validate_credential, stale_credentials],
    tags=["Credentials"],
)
