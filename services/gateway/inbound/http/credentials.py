"""`/api/users/.../credentials`: keys of providers that belong to one user, and go before everybody's."""

from collections import Counter
from typing import Annotated

import msgspec
from litestar import Router, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from services.gateway.domain.provider_body import CredentialResponse, credential_body, stale
from services.gateway.inbound.http.parts import Caller, Parts
from services.gateway.inbound.http.principal import require_json
from services.gateway.inbound.http.problems import OK
from shared.contracts.provider import RotatedView

ME = "me"
EVERYBODY = "everybody"
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


class RotateCredentialsRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which provider's keys; None: all. `reason` is accepted for existing clients."""

    provider: str | None = None
    reason: str | None = None


class RotateCredentialsResponse(msgspec.Struct, frozen=True, kw_only=True):
    """What became of each."""

    success: bool
    rotated_count: int
    credentials: list[RotatedView]
    message: str


class StaleSums(msgspec.Struct, frozen=True, kw_only=True):
    """How many keys are due, and whose; `everybody` for those that belong to no user."""

    threshold_days: int
    total_stale: int
    users_with_stale: dict[str, int]


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
    *,
    force: FromQuery[bool] = False,
) -> CredentialRemoved:
    """Forget a user's key; with `force` even while runs need it, which nobody can end then."""
    whose = _user(user_id, principal)
    await parts.providers.remove(provider, principal, credential=credential_name, user_id=whose, force=force)
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


@post("/{user_id:str}/credentials/rotate", status_code=OK, guards=[require_json])
async def rotate_credentials(
    user_id: FromPath[str], data: JSONBody[RotateCredentialsRequest], parts: Parts, principal: Caller
) -> RotateCredentialsResponse:
    """Encrypt a user's keys anew under the present TUNEWRIGHT_CREDENTIAL_KEY. The keys themselves stay the same."""
    told = await parts.providers.rotate(principal, user_id=_user(user_id, principal), provider=data.provider)
    rotated = sum(one.status == "rotated" for one in told)
    return RotateCredentialsResponse(
        success=rotated == len(told),
        rotated_count=rotated,
        credentials=told,
        message=f"{rotated} of {len(told)} keys were encrypted anew",
    )


@post("/credentials/check-stale", status_code=OK)
async def check_stale(parts: Parts, principal: Caller, days: Days = 90) -> StaleSums:
    """How many stored keys are due to be given anew."""
    old = stale(await parts.providers.credentials(principal, of_all=True), parts.reads.now(), days)
    whose = Counter(view.user_id or EVERYBODY for view in old)
    return StaleSums(threshold_days=days, total_stale=len(old), users_with_stale=dict(whose))


def _user(given: str, principal: Caller) -> str:
    return principal.user_id if given == ME else given


ROUTER = Router(
    "/api/users",
    route_handlers=[
        list_credentials,
        set_credential,
        delete_credential,
        validate_credential,
        stale_credentials,
        rotate_credentials,
        check_stale,
    ],
    tags=["Credentials"],
)
