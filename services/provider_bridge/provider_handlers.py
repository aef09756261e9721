"""The commands about providers: what there is, how it is set up, and whose keys it has."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from services.provider_bridge.domain.provider import Configure, ProviderState, RemoveCredential, StoreCredential
from services.provider_bridge.domain.provider_settings import (
    ProviderSettings,
    acknowledgement_problem,
    changed,
    read_settings,
)
from services.provider_bridge.live_runs import LiveRuns
from services.provider_bridge.outbound.credentials import Credentials, StoredCredential
from services.provider_bridge.outbound.directory import ConfiguredProviders, Standing, field_named
from services.provider_bridge.outbound.egress import NetworkSettings
from services.provider_bridge.outbound.kinds import CredentialField, ProviderKind
from services.provider_bridge.outbound.network import bundle_problem
from services.provider_bridge.outbound.ports import HasVersions, Provider, StartRefused
from services.provider_bridge.provider_stream import ProviderStreams
from shared.clock import Clock
from shared.contracts.envelope import CommandEnvelope, CommandReply
from shared.contracts.offers import Offer
from shared.contracts.provider import (
    AccountView,
    ConfigureProvider,
    CredentialFieldView,
    CredentialView,
    NetworkView,
    ProviderView,
    ReadProviderAccount,
    ReadProviderBalance,
    ReadProviderCredentials,
    ReadProviders,
    ReadProviderVersions,
    RemoveProviderCredential,
    RotatedView,
    RotateProviderCredentials,
    StoreProviderCredential,
)
from shared.contracts.training.problems import FieldProblem
from shared.decider import metadata
from shared.problems import Rejected, Unavailable
from shared.settings import Secret

MAX_SECRET_CHARS = 16_384
MAX_TOLD = 20
"""So many jobs are named in a refusal."""


class ProviderHandlers:
    """Answers about providers; every change is in force here when it is answered, elsewhere a moment later."""

    def __init__(
        self,
        streams: ProviderStreams,
        providers: ConfiguredProviders,
        credentials: Credentials,
        clock: Clock,
        kinds: Sequence[ProviderKind],
        *,
        quote: Callable[[str], Awaitable[None]],
        live: LiveRuns,
    ) -> None:
        """`quote(name)` learns what the provider offers now: a job may come right after a change."""
        self._quote = quote
        self._live = live
        self._streams = streams
        self._providers = providers
        self._credentials = credentials
        self._clock = clock
        self._kinds = {kind.name: kind for kind in kinds}

    async def read(self, command: ReadProviders, _envelope: CommandEnvelope) -> CommandReply:
        """Built-in providers first, then the others in the order of the catalogue."""
        built_in = [one for one in self._providers.known() if one.name not in self._kinds]
        views = [await self._built_in_view(one) for one in built_in if command.provider in {None, one.name}]
        wanted = [kind for kind in self._kinds.values() if command.provider in {None, kind.name}]
        views += [await self._view(kind, command.user_id) for kind in wanted]
        if command.provider is not None and command.only_configured and views and not views[0].configured:
            self._set_up(command.provider, command.user_id)
        if command.provider is not None and not views:
            raise _not_found(command.provider, [*(one.name for one in built_in), *self._kinds])
        return CommandReply(data={"providers": msgspec.to_builtins(views)})

    async def configure(self, command: ConfigureProvider, envelope: CommandEnvelope) -> CommandReply:
        """Records the settings; refuses with every fault of what was asked at once."""
        kind = self._kind(command.provider)
        state = await self._streams.load(kind.name)
        settings = changed(state.settings, command.changes)
        if problems := self._faults(kind, settings, command.changes):
            raise _invalid(problems)
        configure = Configure(provider=kind.name, settings=settings, at=self._clock())
        done = await self._streams.execute(kind.name, configure, meta=metadata(envelope))
        if done.events:
            await self._take_effect(kind)
        view = await self._view(kind, None)
        return CommandReply(position=done.position, data=msgspec.to_builtins(view))

    @staticmethod
    def _faults(kind: ProviderKind, settings: dict[str, Any], changes: dict[str, Any]) -> list[FieldProblem]:
        """Faults of what is asked for now; what was stored wrongly in earlier times can be mended one by one."""
        read, problems = read_settings(kind.settings, settings, {})
        bundle = read.common.ssl_ca_bundle
        if bundle is not None and (message := bundle_problem(bundle)) is not None:
            advice = "Give the path of a file on the bridge's machine."
            problems.append(FieldProblem(field="ssl_ca_bundle", code="out_of_range", message=message, advice=advice))
        if (unsafe := acknowledgement_problem(read.common)) is not None:
            problems.append(unsafe)
        names = {*changes, *(("ssl_ca_bundle",) if "ca_bundle_path" in changes else ())}
        return [problem for problem in problems if problem.field in names]

    async def store(self, command: StoreProviderCredential, envelope: CommandEnvelope) -> CommandReply:
        """Encrypts and keeps the secret, then says so in the log."""
        kind = self._kind(command.provider)
        field = _field(kind, command.credential)
        value = Secret(command.value.strip())
        if not value or len(value) > MAX_SECRET_CHARS or not value.isascii() or not value.isprintable():
            raise Rejected("validation_error", "the value is no credential: it is empty, too long, or not printable")
        now = self._clock()
        # The row first: a secret that the log speaks of is there. Both may be repeated.
        await self._credentials.save(
            kind.name, command.user_id, field.name, value, description=command.description, at=now
        )
        stored = StoreCredential(
            provider=kind.name,
            credential=field.name,
            user_id=command.user_id,
            fingerprint=self._credentials.fingerprint(value),
            at=now,
        )
        done = await self._streams.execute(kind.name, stored, meta=metadata(envelope))
        await self._take_effect(kind)
        found = [one for one in await self._credentials.all() if _key(one) == (kind.name, command.user_id, field.name)]
        return CommandReply(position=done.position, data=msgspec.to_builtins(_credential_view(found[0])))

    async def remove(self, command: RemoveProviderCredential, envelope: CommandEnvelope) -> CommandReply:
        """Forgets the secret, then says so in the log; refuses while runs need it, unless forced."""
        kind = self._kind(command.provider)
        fields = kind.credentials if command.credential is None else (_field(kind, command.credential),)
        if not command.force and any(field.required for field in fields):
            await self._refuse_in_use(kind.name, command.user_id)
        gone, position = 0, 0
        for field in fields:
            gone += await self._credentials.drop(kind.name, command.user_id, field.name)
            removed = RemoveCredential(
                provider=kind.name, credential=field.name, user_id=command.user_id, at=self._clock()
            )
            done = await self._streams.execute(kind.name, removed, meta=metadata(envelope))
            position = max(position, done.position)
        if not gone:
            raise Rejected("not_found", f"no credential of {kind.name} was stored here", provider=kind.name)
        await self._take_effect(kind)
        return CommandReply(position=position, data={"removed": gone})

    async def _refuse_in_use(self, name: str, user_id: str | None) -> None:
        """Another key, even one from another source, may be another account's: it finds none of these machines."""
        provider = self._providers.of(name, user_id)
        stored = any(one.provider == name and one.user_id == user_id for one in await self._credentials.all())
        if provider is None or not stored or (user_id is not None and provider is self._providers.of(name)):
            return
        jobs = [
            str(run.job_id) for run in await self._live.of(name) if self._providers.of(name, run.user_id) is provider
        ]
        if jobs:
            raise Rejected(
                "credential_in_use",
                f"{len(jobs)} runs on {name} need this key: without it nobody looks after their machines. Cancel them "
                "or wait for their end; with force=true it is forgotten all the same",
                provider=name,
                job_ids=jobs[:MAX_TOLD],
            )

    async def credentials(self, command: ReadProviderCredentials, _envelope: CommandEnvelope) -> CommandReply:
        """What is known of stored secrets, without them."""
        stored = [
            _credential_view(one)
            for one in await self._credentials.all()
            if (command.of_all or one.user_id == command.user_id) and command.provider in {None, one.provider}
        ]
        return CommandReply(data={"credentials": msgspec.to_builtins(stored)})

    async def rotate(self, command: RotateProviderCredentials, _envelope: CommandEnvelope) -> CommandReply:
        """Each one by itself; what cannot be read stays as it is."""
        told: list[RotatedView] = []
        for one in await self._credentials.all():
            if one.user_id != command.user_id or command.provider not in {None, one.provider}:
                continue
            done = await self._credentials.reseal(one)
            error = None if done else one.problem or "it was replaced meanwhile"
            status = "rotated" if done else "failed"
            told.append(RotatedView(provider=one.provider, credential_name=one.name, status=status, error=error))
        return CommandReply(data={"credentials": msgspec.to_builtins(told)})

    async def account(self, command: ReadProviderAccount, _envelope: CommandEnvelope) -> CommandReply:
        """Asks the provider; what it says, a refusal too, is the answer."""
        source = self._source(command.provider, command.user_id)
        try:
            provider = self._set_up(command.provider, command.user_id)
            account = await provider.validate_credentials()
        except StartRefused as refusal:
            view = AccountView(valid=False, error=refusal.message, source=source)
        except (Rejected, Unavailable) as error:
            if isinstance(error, Rejected) and error.code != "provider_not_configured":
                raise
            view = AccountView(valid=False, error=error.detail, source=source)
        else:
            view = AccountView(valid=True, username=account.username, detail=account.detail, source=source)
        return CommandReply(data=msgspec.to_builtins(view))

    async def balance(self, command: ReadProviderBalance, _envelope: CommandEnvelope) -> CommandReply:
        """What is left, as the provider says."""
        try:
            left = await self._set_up(command.provider, command.user_id).balance()
        except StartRefused as refusal:
            raise Rejected("provider_refused", refusal.message, provider=command.provider) from refusal
        return CommandReply(data={"balance_micro_usd": left.micro_usd, "note": left.note})

    async def versions(self, command: ReadProviderVersions, _envelope: CommandEnvelope) -> CommandReply:
        """The versions of the model that trains there; none where nothing has versions."""
        self._set_up(command.provider, command.user_id)
        adapter = self._providers.adapter(command.provider, command.user_id)
        if not isinstance(adapter, HasVersions):
            return CommandReply(data={"versions": [], "current": None})
        try:
            found = await adapter.versions(command.model_id)
        except StartRefused as refusal:
            raise Rejected("provider_refused", refusal.message, provider=command.provider) from refusal
        return CommandReply(data={"versions": msgspec.to_builtins(found), "current": adapter.version})

    async def _take_effect(self, kind: ProviderKind) -> None:
        await self._providers.refresh()
        await self._quote(kind.name)

    def _set_up(self, name: str, user_id: str | None) -> Provider:
        provider = self._providers.of(name, user_id)
        if provider is None:
            kind = self._kind(name)
            standing = self._providers.standing(name)
            raise not_configured(kind, standing.problems if standing is not None else ())
        return provider

    def _source(self, name: str, user_id: str | None) -> str | None:
        standing = self._providers.standing(name)
        own = user_id is not None and self._providers.of(name, user_id) is not self._providers.of(name)
        return "your own, stored by API" if own else next(iter(standing.sources.values()), None) if standing else None

    def _kind(self, name: str) -> ProviderKind:
        if (kind := self._kinds.get(name)) is None:
            if self._providers.of(name) is not None:
                raise Rejected("validation_error", f"{name} is built in: it has no settings and no keys of its own")
            raise _not_found(name, list(self._kinds))
        return kind

    async def _view(self, kind: ProviderKind, user_id: str | None) -> ProviderView:
        state = await self._streams.load(kind.name)
        standing = self._providers.standing(kind.name)
        provider = self._providers.of(kind.name, user_id)
        capabilities = provider.capabilities if provider is not None else kind.capabilities
        return ProviderView(
            name=kind.name,
            title=kind.title,
            description=kind.description,
            configured=provider is not None,
            problems=[] if standing is None else list(standing.problems),
            credentials=[_field_view(field, standing) for field in kind.credentials],
            settings={} if standing is None else _in_force(standing.settings),
            stored=dict(state.settings),
            default_hardware=capabilities.default_hardware,
            offers=_offers(kind, state, configured=provider is not None),
            breaker=state.breaker,
            suspended=state.suspended_at(self._clock()),
            capabilities=msgspec.to_builtins(capabilities),
            network=None if standing is None else _network(standing.network),
        )

    async def _built_in_view(self, provider: Provider) -> ProviderView:
        state = await self._streams.load(provider.name)
        title, description = BUILT_IN.get(provider.name, (provider.name, ""))
        return ProviderView(
            name=provider.name,
            title=title,
            description=description,
            configured=True,
            default_hardware=provider.capabilities.default_hardware,
            offers=list(state.offers or ()),
            breaker=state.breaker,
            suspended=state.suspended_at(self._clock()),
            capabilities=msgspec.to_builtins(provider.capabilities),
        )


BUILT_IN = {
    "local": ("This machine", "Runs on the machine of the bridge."),
    "worker": ("Own workers", "Machines of yours that register and pull jobs."),
}
"""Title and description of providers that need neither settings nor keys."""


def not_configured(kind: ProviderKind, problems: Sequence[str]) -> Rejected:
    """That nobody can use the provider yet, and what to do."""
    variables = [field.variable for field in kind.credentials if field.required]
    why = "; ".join(problems) or "its keys are not there"
    return Rejected(
        "provider_not_configured",
        f"{kind.name} is not set up: {why}. Set {' and '.join(variables)} where the bridge runs, or "
        f"PUT /api/cloud/providers/{kind.name}/token",
        provider=kind.name,
        variables=variables,
        endpoint=f"/api/cloud/providers/{kind.name}/token",
    )


def _offers(kind: ProviderKind, state: ProviderState, *, configured: bool) -> list[Offer]:
    return list(state.offers if configured and state.offers is not None else kind.listed)


def _in_force(settings: ProviderSettings) -> dict[str, Any]:
    return {**msgspec.to_builtins(settings.common), **msgspec.to_builtins(settings.applied)}


def _network(network: NetworkSettings) -> NetworkView:
    return NetworkView(
        ssl_verify=network.ssl_verify,
        ssl_ca_bundle=network.ca_bundle,
        proxy_url=None if network.proxy_url is None else _without_login(network.proxy_url),
        http_timeout=network.timeout_s,
    )


def _without_login(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _field_view(field: CredentialField, standing: Standing | None) -> CredentialFieldView:
    source = None if standing is None else standing.sources.get(field.name)
    return CredentialFieldView(name=field.name, variable=field.variable, required=field.required, source=source)


def _field(kind: ProviderKind, name: str | None) -> CredentialField:
    """The credential of that name; without a name, the only one that is required."""
    if name is not None:
        if (found := field_named(kind, name)) is not None:
            return found
    elif len(required := [field for field in kind.credentials if field.required]) == 1:
        return required[0]
    known = ", ".join(field.name for field in kind.credentials)
    told = "which one?" if name is None else f"there is none called {name[:64]!r}"
    advice = f"Send credential_name: one of {known}."
    error = {"field": "credential_name", "message": told, "advice": advice}
    raise Rejected("validation_error", f"{kind.name} wants {known}; {told}", errors=[error])


def _key(stored: StoredCredential) -> tuple[str, str | None, str]:
    return stored.provider, stored.user_id, stored.name


def _credential_view(stored: StoredCredential) -> CredentialView:
    return CredentialView(
        id=stored.id,
        provider=stored.provider,
        credential_name=stored.name,
        user_id=stored.user_id,
        description=stored.description,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
        problem=stored.problem,
    )


def _not_found(name: str, known: Sequence[str]) -> Rejected:
    detail = f"there is no provider {name[:64]!r}; known: {', '.join(known)}"
    return Rejected("provider_not_found", detail, known_providers=list(known))


def _invalid(problems: Sequence[FieldProblem]) -> Rejected:
    detail = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
    return Rejected("validation_error", detail, errors=msgspec.to_builtins(problems))
