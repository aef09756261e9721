"""What may be set of a provider: the settings that all have, by the documented names, beside a provider's own. Pure."""

import ipaddress
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from shared.contracts.training.endpoints import endpoint_problem
from shared.contracts.training.problems import FieldProblem

LONGEST_TIMEOUT_S = 600.0
_CREDENTIALS_ADVICE = "Give a proxy's user and password in HTTPS_PROXY on the bridge's machine, not here."


class CommonSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The documented settings of every provider. None = as the environment says, or nothing."""

    version_override: str | None = None
    webhook_url: str | None = None
    """Where its machines and webhooks reach this gateway; None = TUNEWRIGHT_PUBLIC_URL."""
    preferences: dict[str, Any] = {}
    """Kept for clients."""
    cost_limit_enabled: bool = False
    cost_limit_amount: float | None = None
    cost_limit_period: Literal["daily", "weekly", "monthly", "yearly"] = "monthly"
    cost_limit_action: Literal["warn", "block"] = "warn"
    hardware_info: dict[str, dict[str, Any]] | None = None
    """Prices of its hardware where they differ from those it tells: `{"gpu-l40s": {"cost_per_second": 0.001}}`."""
    hardware_profile: str | None = None
    """What a job is on that names none."""
    webhook_require_signature: bool = True
    webhook_ip_allowlist_enabled: bool | None = None
    """False keeps the list and lets everybody through."""
    webhook_allowed_ips: list[str] = []
    ssl_verify: bool | None = None
    ssl_verify_acknowledged: bool = False
    ssl_ca_bundle: str | None = None
    proxy_url: str | None = None
    http_timeout: float | None = None
    webhook_rate_limit_max: int | None = None
    webhook_rate_limit_window: int | None = None
    s3_rate_limit_max: int | None = None
    s3_rate_limit_window: int | None = None
    org_id: str | None = None
    api_base_url: str | None = None
    """Where its API is, instead of its own setting `api_url`."""
    max_runtime_minutes: int | None = None
    """How long one of its machines may run; a run that needs longer saves, and goes on on the next one."""

    @property
    def checks_sender(self) -> bool:
        """Whether a webhook's address must be in the list."""
        return bool(self.webhook_allowed_ips) and self.webhook_ip_allowlist_enabled is not False

    def allows_sender(self, address: str | None) -> bool:
        """Whether a webhook from this address may be looked at."""
        if not self.checks_sender:
            return True
        try:
            sender = ipaddress.ip_address(address or "")
        except ValueError:
            return False
        if isinstance(sender, ipaddress.IPv6Address) and sender.ipv4_mapped is not None:
            sender = sender.ipv4_mapped
        return any(sender in ipaddress.ip_network(listed, strict=False) for listed in self.webhook_allowed_ips)


ALIASES = {"ca_bundle_path": "ssl_ca_bundle"}
"""Other documented names."""
COMMON_NAMES = frozenset(CommonSettings.__struct_fields__)


class ProviderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of one provider: the common ones, and its own as its kind declares them."""

    common: CommonSettings
    own: msgspec.Struct

    @property
    def applied(self) -> msgspec.Struct:
        """Its own settings, with what was set by a documented name that means one of them."""
        given = {_MEANT[name]: getattr(self.common, name) for name in _MEANT}
        prices = {sku: _price(info) for sku, info in (self.common.hardware_info or {}).items()}
        given["prices_usd_per_s"] = {sku: price for sku, price in prices.items() if price is not None} or None
        fields = self.own.__struct_fields__
        meant = {name: value for name, value in given.items() if value is not None and name in fields}
        return msgspec.structs.replace(self.own, **meant)

    @property
    def api_url(self) -> str:
        """Where its API is."""
        return str(getattr(self.applied, "api_url", ""))


_MEANT = {"api_base_url": "api_url", "version_override": "version", "hardware_profile": "hardware"}
"""A documented name -> the provider's own setting that it means, where the provider has that one."""


def _price(info: Mapping[str, Any]) -> float | None:
    price = info.get("cost_per_second")
    return float(price) if isinstance(price, int | float) else None


def changed(stored: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The stored settings with the changes made; None takes a setting back to what it is by itself."""
    asked = {ALIASES.get(name, name): value for name, value in changes.items()}
    merged = {**stored, **asked}
    if asked.get("ssl_verify") is not False and merged.get("ssl_verify") is not False:
        merged.pop("ssl_verify_acknowledged", None)  # an acknowledgement is of one decision
    return {name: value for name, value in merged.items() if value is not None}


def read_settings(
    kind: type[msgspec.Struct], stored: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[ProviderSettings, list[FieldProblem]]:
    """Stored settings over the environment's over defaults, and everything that is wrong with them.

    What is wrong is left at its default.
    """
    problems: list[FieldProblem] = []
    own: dict[str, Any] = {}
    common: dict[str, Any] = {}
    known = {field.name: field.type for field in msgspec.structs.fields(CommonSettings)}
    owned = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for given, is_text in ((environment, True), (stored, False)):
        for name, value in given.items():
            type_ = owned.get(name, known.get(name))
            if type_ is None:
                problems.append(_unknown(name, owned))
                continue
            found, problem = _value(name, value, type_, is_text=is_text)
            if problem is None:
                (own if name in owned else common)[name] = found
            else:
                problems.append(problem)
    settings = ProviderSettings(common=CommonSettings(**common), own=kind(**own))
    return settings, problems


def _value(name: str, value: Any, type_: Any, *, is_text: bool) -> tuple[Any, FieldProblem | None]:
    try:
        is_json = is_text and str(value).lstrip().startswith(("{", "["))
        found = msgspec.convert(msgspec.json.decode(value) if is_json else value, type_, strict=not is_text)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        return None, FieldProblem(field=name, code="wrong_type", message=str(error), advice="Correct its type.")
    message = _RULES[name](found) if name in _RULES and found is not None else None
    if message is None:
        return found, None
    advice = _CREDENTIALS_ADVICE if name == "proxy_url" else "Correct it, or send null for what it is by itself."
    return None, FieldProblem(field=name, code="out_of_range", message=message, advice=advice)


def _unknown(name: str, owned: Mapping[str, Any]) -> FieldProblem:
    own = ", ".join(sorted(owned))
    advice = f"Its own settings are {own}; those that every provider has: {', '.join(sorted(COMMON_NAMES))}."
    return FieldProblem(field=name, code="unknown_key", message="there is no such setting", advice=advice)


def acknowledgement_problem(settings: CommonSettings) -> FieldProblem | None:
    """That TLS checks are switched off by accident, if so."""
    if settings.ssl_verify is not False or settings.ssl_verify_acknowledged:
        return None
    return FieldProblem(
        field="ssl_verify",
        code="conflict",
        message="without checks of certificates anybody on the way can read the provider's key and answer for it",
        advice="Set ssl_ca_bundle to your own CA instead, or send ssl_verify_acknowledged: true with it.",
    )


def proxy_problem(url: str) -> str | None:
    """What is wrong with a proxy's URL, without showing what may be a password in it; None if it can be used."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "it is no URL"
    if parts.scheme not in {"http", "https"} or not host:
        return "it must begin with http:// or https:// and name a host, such as http://proxy.example.com:8080"
    return None


def timeout_problem(seconds: float) -> str | None:
    """What is wrong with a timeout; None if it can be used."""
    return None if 0 < seconds <= LONGEST_TIMEOUT_S else f"it must be more than 0 and at most {LONGEST_TIMEOUT_S:.0f} s"


def _open_proxy_problem(url: str) -> str | None:
    """A setting stands in the log, so it holds no password."""
    problem = proxy_problem(url)
    return problem or ("it must not hold a user or a password" if "@" in urlsplit(url).netloc else None)


def _networks_problem(listed: list[str]) -> str | None:
    for word in listed:
        try:
            ipaddress.ip_network(word, strict=False)
        except ValueError:
            return f"{word[:64]!r} is no address or network such as 10.0.0.0/8 or 1.2.3.4/32"
    return None


def _above_zero(amount: float) -> str | None:
    return None if amount > 0 else "it must be more than 0"


def _always_signed(required: bool) -> str | None:  # noqa: FBT001 - a setting's value
    return None if required else "signatures are always checked where the provider signs; this cannot be switched off"


_RULES: dict[str, Any] = {
    "proxy_url": _open_proxy_problem,
    "http_timeout": timeout_problem,
    "webhook_allowed_ips": _networks_problem,
    "webhook_require_signature": _always_signed,
    "webhook_url": endpoint_problem,
    "api_base_url": endpoint_problem,
    "api_url": endpoint_problem,
    "cost_limit_amount": _above_zero,
    "webhook_rate_limit_max": _above_zero,
    "webhook_rate_limit_window": _above_zero,
    "s3_rate_limit_max": _above_zero,
    "s3_rate_limit_window": _above_zero,
    "max_runtime_minutes": _above_zero,
}
"""Setting -> what is wrong with a value of its type, None if nothing is."""
