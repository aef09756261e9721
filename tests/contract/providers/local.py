"""This machine, with a stand-in for the trainer."""

import signal
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import msgspec

from services.provider_bridge.outbound.local import LocalOptions, LocalProvider
from services.provider_bridge.outbound.ports import Provider
from tests.contract.providers.case import Case, Lack, Trouble, not_here
from tests.integration.provider_bridge import stand_in_trainer as stand_in


class LocalCase:
    """Runs are real processes."""

    def __init__(self, folder: Path) -> None:
        self.options = LocalOptions(
            state_dir=folder / "state",
            trainer_python=stand_in.install(folder),
            trainer_dir=folder,
            environ={"PATH": "/usr/bin:/bin"},
        )

    def connect(self, *, installation: str = "", key: str | None = None) -> Provider:
        if key is not None or installation not in {"", "0a1b2c3d"}:
            not_here("a machine has no keys and one installation in each folder")
        return LocalProvider(self.options)

    def starts(self, attempt_id: UUID) -> int:
        return len(stand_in.starts(self.options.state_dir, attempt_id))

    def begin(self, attempt_id: UUID) -> None:
        """It begins by itself."""

    def finish(self, attempt_id: UUID, code: int = 0) -> None:  # noqa: ARG002 - the plan of the run says it
        stand_in.finish(self.options.state_dir, attempt_id)

    def vanish(self, attempt_id: UUID) -> None:
        claimed = (self.options.state_dir / "attempts" / str(attempt_id) / "started.json").read_bytes()
        stand_in.kill(msgspec.json.decode(claimed)["runner_pid"], signal.SIGKILL)

    def say(self, attempt_id: UUID, word: str) -> None:  # noqa: ARG002 - the protocol's signature
        not_here("its words are our own")

    def lose_next_reply(self) -> None:
        not_here("tests/integration/provider_bridge/test_driving.py kills the bridge in between")

    def trouble(self, kind: Trouble | None) -> None:  # noqa: ARG002 - the protocol's signature
        not_here("there is no network in between")

    def lack(self, what: Lack | None) -> None:  # noqa: ARG002 - the protocol's signature
        not_here("a machine is there or is not")

    def webhook(self, attempt_id: UUID) -> tuple[dict[str, str], dict[str, str], bytes]:  # noqa: ARG002 - the protocol's signature
        return {}, {}, b"{}"

    def requests(self) -> list[tuple[str, Mapping[str, str]]]:
        return []


@asynccontextmanager
async def local_case(folder: Path) -> AsyncGenerator[Case]:
    case = LocalCase(folder)
    yield case
    provider = LocalProvider(case.options)
    for run in await provider.list_ours():
        case.vanish(run.tag.attempt_id)
