"""Which providers there are now: one adapter for each set of credentials, made anew when settings or keys change."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec
import structlog

from services.provider_bridge.domain.provider import ProviderState
from services.provider_bridge.domain.provider_settings import ProviderSettings, acknowledgement_problem, read_settings
from services.provider_bridge.outbound.credentials import Credentials, StoredCredential
from services.provider_bridge.outbound.egress import NetworkSettings
from services.provider_bridge.outbound.kinds import CredentialField, Materials, ProviderKind
from services.provider_bridge.outbound.network import NetworkEnvironment, overridden
from services.provider_bridge.outbound.ports import Provider
from services.provider_bridge.outbound.secrets import SecretChain, SourceBroken, normalised
from services.provider_bridge.provider_stream import ProviderStreams
from shared.clock import Clock
from shared.problems import Unavailable
from shared.settings import Secret

REFRESH_S = 30.0
"""How often keys are looked up again without being asked to: files and vaults do not tell of changes."""
LINGER = timedelta(minutes=5)
"""For so long a replaced adapter may still be in the middle of a call."""

log = structlog.stdlib.get_logger()


class FixedProviders:
    """Providers that stay as they are: those that need neither settings nor keys."""

    def __init__(self, providers: Iterable[Provider]) -> None:
        self._providers = {provider.name: provider for provider in providers}

    def of(self, name: str, user_id: str | None = None) -> Provider | None:  # noqa: ARG002 - the port's signature
        """The provider of that name, whoever asks."""
        return self._providers.get(name)

    def known(self) -> list[Provider]:
        """All of them."""
        return list(self._providers.values())


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What adapters get besides settings and keys. `variables`: provider -> setting -> what the environment says."""

    network: NetworkEnvironment
    variables: Mapping[str, Mapping[str, str]]
    installation: str
    clock: Clock


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One provider as it is set up: `problems` are why it is not, or not wholly; `sources` where its keys are from."""

    kind: ProviderKind
    settings: ProviderSettings
    network: NetworkSettings
    stored: Mapping[str, object] = {}
    """What was set by API, as it was given."""
    problems: tuple[str, ...] = ()
    sources: Mapping[str, str] = {}
    configured: bool = False
    """For everybody."""


class _Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an adapter is made of: the same recipe is the same adapter, with all that it has learned."""

    settings: msgspec.Struct
    network: NetworkSettings
    credentials: Mapping[str, Secret]


class _Made(msgspec.Struct, frozen=True, kw_only=True):
    recipe: _Recipe
    adapter: Provider
    provider: Provider
    """The adapter as others use it, with what was put around it."""


class ConfiguredProviders:
    """Built-in providers, and one adapter for each kind whose keys are there, for everybody and for users of own keys.

    A user's own key goes before one that was stored for everybody, and that before those that the operator keeps
    elsewhere. `wrap` is put around each adapter when it is made.
    """

    def __init__(
        self,
        built_in: Sequence[Provider],
        kinds: Sequence[ProviderKind],
        *,
        streams: ProviderStreams,
        credentials: Credentials,
        chain: SecretChain,
        surroundings: Surroundings,
        wrap: Callable[[Provider], Provider] = lambda provider: provider,
    ) -> None:
        self._built_in = {provider.name: provider for provider in built_in}
        self._kinds = kinds
        self._streams = streams
        self._credentials = credentials
        self._chain = chain
        self._around = surroundings
        self._wrap = wrap
        self._made: dict[tuple[str, str | None], _Made] = {}
        self._retired: list[tuple[datetime, Provider]] = []
        self._standings: dict[str, Standing] = {}
        self._turn = asyncio.Lock()
        self._asked = asyncio.Event()

    def of(self, name: str, user_id: str | None = None) -> Provider | None:
        """The provider with this user's keys, else with everybody's; None if it is not set up."""
        if (built_in := self._built_in.get(name)) is not None:
            return built_in
        made = self._found(name, user_id)
        return made.provider if made is not None else None

    def adapter(self, name: str, user_id: str | None = None) -> Provider | None:
        """The same without what was put around it: for questions that only one vendor can be asked."""
        made = self._found(name, user_id)
        return made.adapter if made is not None else None

    def known(self) -> list[Provider]:
        """All that are set up, with each set of keys."""
        return [*self._built_in.values(), *(made.provider for made in self._made.values())]

    def standing(self, name: str) -> Standing | None:
        """How a provider is set up; None for a built-in one, or one that nobody knows."""
        return self._standings.get(name)

    def run_limit_s(self, name: str) -> int | None:
        """How long one of its machines may run, as it is set; None if nobody has set that."""
        standing = self._standings.get(name)
        minutes = standing.settings.common.max_runtime_minutes if standing is not None else None
        return minutes * 60 if minutes is not None else None

    def _found(self, name: str, user_id: str | None) -> _Made | None:
        return self._made.get((name, user_id)) or self._made.get((name, None))

    def wake(self) -> None:
        """Settings or keys have changed: look at them soon."""
        self._asked.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Looks for changes when woken, and every REFRESH_S; closes everything at the end."""
        stopping = asyncio.ensure_future(stop.wait())
        try:
            while not stop.is_set():
                asked = asyncio.ensure_future(self._asked.wait())
                await asyncio.wait({asked, stopping}, timeout=REFRESH_S, return_when=asyncio.FIRST_COMPLETED)
                asked.cancel()
                if stop.is_set():
                    break
                self._asked.clear()
                try:
                    await self.refresh()
                except Unavailable as away:
                    log.warning("bridge.providers.kept", detail=away.detail)
        finally:
            stopping.cancel()
            await self._close()

    async def refresh(self) -> None:
        """Reads settings and keys, makes adapters that are new or changed, and retires those that are not used.

        Raises Unavailable when the log or Postgres is away; everything stays as it was.
        """
        async with self._turn:
            stored = await self._credentials.all()
            for kind in self._kinds:
                state = await self._streams.load(kind.name)
                await self._refresh_kind(kind, state, [one for one in stored if one.provider == kind.name])
            await self._close_retired()

    async def _refresh_kind(self, kind: ProviderKind, state: ProviderState, stored: list[StoredCredential]) -> None:
        settings, wrong = read_settings(kind.settings, state.settings, self._around.variables.get(kind.name, {}))
        problems = [f"{problem.field}: {problem.message}" for problem in wrong]
        if (unsafe := acknowledgement_problem(settings.common)) is not None:
            problems.append(f"{unsafe.field}: {unsafe.message}")
        problems += [one.problem for one in stored if one.problem is not None]
        kept, broken, sources = await self._kept(kind)
        ours = {one.name: one.value for one in stored if one.user_id is None and one.value is not None}
        sources |= dict.fromkeys(ours, "stored by API")
        network = overridden(self._around.network.settings_for(settings.api_url), settings.common)
        made = set[tuple[str, str | None]]()
        for user_id in {None, *(one.user_id for one in stored)}:
            own = {one.name: one.value for one in stored if one.user_id == user_id and one.value is not None}
            credentials = {**kept, **ours, **own}
            key = (kind.name, user_id)
            missing = _missing(kind, credentials)
            if unsafe is not None:
                continue
            if missing:
                if user_id is None:
                    problems.append(broken or _advice(missing))
                if broken is not None and key in self._made:
                    made.add(key)  # its key may well be as it was: runs need somebody who looks after them
            elif (problem := self._make(kind, key, settings, network, credentials)) is not None:
                problems.append(problem)
            else:
                made.add(key)
        for key in [key for key in self._made if key[0] == kind.name and key not in made]:
            self._retire(key)
        self._standings[kind.name] = Standing(
            kind=kind,
            settings=settings,
            network=network,
            stored=state.settings,
            problems=tuple(problems),
            sources=sources,
            configured=(kind.name, None) in self._made,
        )

    async def _kept(self, kind: ProviderKind) -> tuple[dict[str, Secret], str | None, dict[str, str]]:
        """What the operator keeps elsewhere, what hinders us from reading it, and where each is from."""
        found: dict[str, Secret] = {}
        sources: dict[str, str] = {}
        broken = None
        for field in kind.credentials:
            try:
                secret = await self._chain.find(field.variable)
            except SourceBroken as error:
                broken = f"{field.variable} may be in a place that cannot be read: {error}. {error.advice}"
                log.warning("bridge.secrets.unreadable", provider=kind.name, source=error.source, reason=error.message)
                continue
            if secret is not None:
                found[field.name], sources[field.name] = secret.value, secret.source
        return found, broken, sources

    def _make(
        self,
        kind: ProviderKind,
        key: tuple[str, str | None],
        settings: ProviderSettings,
        network: NetworkSettings,
        credentials: Mapping[str, Secret],
    ) -> str | None:
        """Makes the adapter unless it is there as it should be; tells why it cannot be made."""
        recipe = _Recipe(settings=settings.applied, network=network, credentials=credentials)
        known = self._made.get(key)
        if known is not None and known.recipe == recipe:
            return None
        materials = Materials(
            credentials=credentials,
            settings=recipe.settings,
            network=network,
            installation=self._around.installation,
            clock=self._around.clock,
        )
        try:
            adapter = kind.build(materials)
        except (OSError, ValueError) as error:  # a bundle that is gone, a setting that its client does not take
            log.warning("bridge.provider.unmade", provider=kind.name, reason=type(error).__name__)
            return f"it cannot be set up so: {type(error).__name__}"
        self._retire(key)
        self._made[key] = _Made(recipe=recipe, adapter=adapter, provider=self._wrap(adapter))
        log.info("bridge.provider.made", provider=kind.name, own_key=key[1] is not None)
        return None

    def _retire(self, key: tuple[str, str | None]) -> None:
        if (old := self._made.pop(key, None)) is not None:
            self._retired.append((self._around.clock(), old.provider))

    async def _close_retired(self) -> None:
        now = self._around.clock()
        over = [provider for since, provider in self._retired if now > since + LINGER]
        self._retired = [(since, provider) for since, provider in self._retired if now <= since + LINGER]
        for provider in over:
            await provider.close()

    async def _close(self) -> None:
        for provider in [*(made.provider for made in self._made.values()), *(one for _, one in self._retired)]:
            await provider.close()


def _missing(kind: ProviderKind, credentials: Mapping[str, Secret]) -> list[CredentialField]:
    return [field for field in kind.credentials if field.required and field.name not in credentials]


def _advice(missing: Sequence[CredentialField]) -> str:
    names = " and ".join(field.variable for field in missing)
    return f"{names} is not set: set it where the bridge runs, or store it by API"


def field_named(kind: ProviderKind, name: str) -> CredentialField | None:
    """The credential that a person means by its name with us or its variable, however it is spelt."""
    wanted = normalised(name)
    return next((one for one in kind.credentials if wanted in {normalised(one.name), normalised(one.variable)}), None)


def read_variables(
    kinds: Sequence[ProviderKind], common: Iterable[str], environ: Mapping[str, str]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """TUNEWRIGHT_PROVIDER_<NAME>_<SETTING> as provider -> setting -> text, and the variables that name no setting."""
    found: dict[str, dict[str, str]] = {}
    known = {
        f"{VARIABLE_PREFIX}{kind.name}_{setting}".upper(): (kind.name, setting)
        for kind in kinds
        for setting in (*kind.settings.__struct_fields__, *common)
    }
    unknown: list[str] = []
    for name, text in environ.items():
        if not name.startswith(VARIABLE_PREFIX) or not text:
            continue
        if (place := known.get(name)) is None:
            unknown.append(name)
        else:
            found.setdefault(place[0], {})[place[1]] = text
    return found, unknown


VARIABLE_PREFIX = "TUNEWRIGHT_PROVIDER_"
