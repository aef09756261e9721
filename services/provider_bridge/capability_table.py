"""`python -m services.provider_bridge.capability_table`: docs/providers.md's table, made from the capability records.

Prints the section between its two marks; `--write PATH` puts it into that page. A test holds the page fresh.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from services.provider_bridge.outbound.kinds import ProviderKind
from services.provider_bridge.outbound.local import CAPABILITIES as LOCAL
from services.provider_bridge.outbound.ports import Capabilities
from services.provider_bridge.outbound.vendors.catalogue import KINDS
from services.provider_bridge.outbound.workers import CAPABILITIES as WORKER

BEGIN, END = "<!-- made by services.provider_bridge.capability_table -->", "<!-- end of what is made -->"
_COLUMNS = (
    "Provider",
    "Cancel",
    "Live logs",
    "Tells cost",
    "Spot",
    "Longest run",
    "Upload limit",
    "Webhooks",
    "Outcome",
    "Paid for",
    "Tested against",
)
_MIB = 1024 * 1024
_HOUR_S = 3600


def section() -> str:
    """What stands between the marks, marks included."""
    records = {"local": LOCAL, "worker": WORKER, **{kind.name: kind.capabilities for kind in KINDS}}
    parts = [BEGIN, "", *_table(records), "", *(line for kind in KINDS for line in _settings(kind)), END]
    return "\n".join(parts) + "\n"


def renewed(page: str) -> str:
    """The page with a fresh section. Raises ValueError when the marks are not there."""
    before, after = page.index(BEGIN), page.index(END) + len(END) + 1
    return page[:before] + section() + page[after:]


def _table(records: dict[str, Capabilities]) -> Iterable[str]:
    yield f"| {' | '.join(_COLUMNS)} |"
    yield f"|{'---|' * len(_COLUMNS)}"
    for name, can in records.items():
        cells = (
            f"`{name}`",
            _word(can.can_cancel),
            _word(can.live_logs),
            _word(can.cost),
            _word(can.spot),
            "no limit" if can.max_run_time_s is None else f"{can.max_run_time_s / _HOUR_S:g} h",
            "none" if can.upload_limit_bytes is None else f"{can.upload_limit_bytes // _MIB} MiB",
            _word(can.webhooks),
            "told" if can.knows_outcome else "by the trainer's report",
            "the machine" if can.metering == "machine" else "the training",
            can.tested_against,
        )
        yield f"| {' | '.join(cells)} |"


def _settings(kind: ProviderKind) -> Iterable[str]:
    yield f"### `{kind.name}`: {kind.title}"
    yield ""
    yield kind.description
    yield ""
    wanted = ", ".join(f"`{field.variable}`{'' if field.required else ' (optional)'}" for field in kind.credentials)
    yield f"Keys: {wanted or 'none'}."
    yield ""
    yield "| Setting | Default | Variable |"
    yield "|---|---|---|"
    for field in msgspec.structs.fields(kind.settings):
        default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory
        shown = default() if callable(default) else default
        text = "" if shown in ("", None) else f"`{msgspec.json.encode(shown).decode()}`"
        yield f"| `{field.name}` | {text} | `TUNEWRIGHT_PROVIDER_{kind.name.upper()}_{field.name.upper()}` |"
    yield ""


def _word(yes: bool) -> str:  # noqa: FBT001 - what is written for it
    return "yes" if yes else "no"


def main(arguments: Sequence[str]) -> int:
    """Prints the section, or writes it into a page."""
    match arguments:
        case ["--write", path]:
            page = Path(path)
            page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
        case _:
            sys.stdout.write(section())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
