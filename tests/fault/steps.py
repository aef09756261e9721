"""Every step of the system that a fault can hit, made from the code: commands, events, durables and outside calls.

A command, event, durable or provider method that is new has new steps at once. Where the workload cannot reach one,
`OUT_OF_REACH` says why; a test holds that table complete.
"""

import inspect
from collections.abc import Iterator

from services.provider_bridge.outbound.ports import Provider
from shared.contracts import account, admin, artifact, attempt, job
from shared.contracts.catalogue import EVENT_TYPES
from shared.contracts.job import Command
from shared.contracts.subjects import DURABLES, SERVICES
from shared.messaging.commands import command_tag
from tests.fault.http_frames import http_steps
from tests.fault.postgres_frames import query_steps

_OWNED = {"scheduler": job, "provider_bridge": attempt, "storage": artifact, "billing": account}

PROVIDER_ACTS: dict[str, tuple[str, str]] = {
    "submit": ("attempt.start_intended.v1", "attempt.accepted.v1"),
    "cancel": ("attempt.cancel_requested.v1", "attempt.cancelled.v1"),
}
"""Method of the provider's port that acts -> the event of the intent, the event of the outcome."""

PROVIDER_LOOKS = frozenset(
    {
        "name",
        "capabilities",
        "quote",
        "find",
        "fetch",
        "logs",
        "confirm_gone",
        "list_ours",
        "verify_webhook",
        "validate_credentials",
        "balance",
        "close",
    }
)
"""Its methods that change nothing at the provider but a fence."""


def commands() -> Iterator[tuple[str, str]]:
    """Owner and tag of every command of the contracts."""
    for owner, module in _OWNED.items():
        yield from ((owner, command_tag(kind)) for kind in _commands_of(module))
    for service in SERVICES:
        yield from ((service, command_tag(kind)) for kind in _commands_of(admin))


def _commands_of(module: object) -> list[type[Command]]:
    found = [
        kind
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Command) and kind is not Command and kind.__module__ == getattr(module, "__name__", "")
    ]
    return sorted(found, key=command_tag)


def provider_methods() -> set[str]:
    """What the bridge may ask of a provider."""
    return {name for name in vars(Provider) if not name.startswith("_")}


def aliases(step: str) -> tuple[str, ...]:
    """The outside calls that lie beside an append: acted upon, and not yet written down."""
    for method, (intent, outcome) in PROVIDER_ACTS.items():
        if step == f"append:{intent}:committed":
            return (f"provider:{method}:intended",)
        if step == f"append:{outcome}:before":
            return (f"provider:{method}:acted",)
    return ()


def all_steps() -> list[str]:
    """Every step by name, always in the same order."""
    steps: list[str] = []
    for owner, tag in commands():
        steps += [f"command:{owner}.{tag}:received", f"command:{owner}.{tag}:answered"]
    for type_ in EVENT_TYPES:
        steps += [f"append:{type_}:{when}" for when in ("before", "before-commit", "committed")]
        steps += [f"relay:{type_}:{when}" for when in ("before-publish", "published")]
    for durable in DURABLES:
        read = [type_ for type_ in EVENT_TYPES if type_.partition(".")[0] in durable.categories]
        steps += [f"deliver:{durable.name}:{type_}" for type_ in read]
        steps += [f"rows:{durable.name}:before-commit", f"rows:{durable.name}:committed", f"ack:{durable.name}:before"]
    for method in PROVIDER_ACTS:
        steps += [f"provider:{method}:intended", f"provider:{method}:acted"]
    return [*steps, *http_steps(), *query_steps()]
