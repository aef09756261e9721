"""Every step there is, from the code: commands, events, durables, queries, the provider's methods, and each fault that
may strike there. What is added to the code is a step at once, and shows up as never hit until a seed passes it.
"""

from collections.abc import Iterator, Sequence
from typing import cast

from services.provider_bridge.outbound.ports import Provider
from shared.contracts import account, artifact, attempt, catalogue, job
from shared.contracts.subjects import DURABLES, SERVICES
from shared.messaging.commands import command_tag
from tests.sim import bus, connection, provider, store
from tests.sim.chaos import CRASH, PAUSE
from tests.sim.twins import TWINS, load

STRIKES = (CRASH, PAUSE)
_OWNERS = {job: "scheduler", attempt: "provider_bridge", artifact: "storage", account: "billing"}
_PROVIDER_FAULTS: dict[str, Sequence[str]] = {
    "submit": (provider.REFUSED, provider.LATE),
    "fetch": (provider.ODD,),
    "cancel": (provider.IGNORED,),
    "list_ours": (provider.LAGGING,),
}
_DOORS = ("submit", "cancel", "report", "upload", "object")
_NOT_SENT = frozenset(
    {"meter_usage", "read_job_cost", "read_account", "delete_job", "read_queue", "read_reports", "ask_trainer"}
)
"""Commands that nobody in the simulation sends: reads, deletions, wishes of people, and metering by hand."""


def known_steps() -> set[str]:
    """Each place, and each fault at each place."""
    return {step for place, kinds in _places() for step in (place, *(f"{kind} at {place}" for kind in kinds))}


def _places() -> Iterator[tuple[str, Sequence[str]]]:
    load()
    for owner, tag in _commands():
        yield f"command:{owner}.{tag}", (bus.LOST, bus.DELAYED)
        yield f"received:{owner}.{tag}", STRIKES
        yield f"answer:{owner}.{tag}", (bus.LOST, bus.DELAYED, *STRIKES)
    for type_ in catalogue.EVENT_TYPES:
        category, name, _ = type_.split(".")
        yield f"append:{type_}", (connection.UNAVAILABLE, store.CONFLICT, *STRIKES)
        yield f"appended:{type_}", (connection.UNAVAILABLE, *STRIKES)
        yield f"publish:{category}.{name}", (bus.LOST, bus.UNHEARD, *STRIKES)
        for durable in DURABLES:
            if category in durable.categories:
                yield f"deliver:{durable.name}:{category}.{name}", (bus.LOST, bus.REPEATED, bus.DELAYED)
    for place, _ in TWINS.values():
        yield place, (*connection.STATEMENT_FAULTS, *STRIKES)
    for service in SERVICES:
        yield f"commit:{service}", (*connection.STATEMENT_FAULTS, *STRIKES)
    for method in (name for name in vars(Provider) if name in provider.METHODS):
        yield f"provider:{method}:before", (provider.UNAVAILABLE, *_PROVIDER_FAULTS.get(method, ()), *STRIKES)
        yield f"provider:{method}:after", (provider.UNAVAILABLE, *STRIKES)
    for door in _DOORS:
        yield f"http:{door}", ("request lost", "answer lost")
    for storm in ("Postgres is away", "NATS is away", "JetStream is wiped"):
        yield storm, ()
    yield "pack:folder", ("disk full", *STRIKES)
    yield "read:log", (connection.UNAVAILABLE, *STRIKES)
    yield "read:jobs_view", STRIKES


def _commands() -> Iterator[tuple[str, str]]:
    for module, owner in _OWNERS.items():
        kinds = cast("list[object]", list(vars(module).values()))
        for kind in kinds:
            if not isinstance(kind, type) or not issubclass(kind, job.Command) or kind is job.Command:
                continue
            if kind.__module__ == module.__name__ and command_tag(kind) not in _NOT_SENT:
                yield owner, command_tag(kind)
