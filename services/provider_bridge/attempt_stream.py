"""An attempt as a stream of the log: its name, its decider, and who we are when we write to it."""

from uuid import UUID

from services.provider_bridge.domain.attempt import decide
from services.provider_bridge.domain.attempt_commands import AttemptCommand
from services.provider_bridge.domain.attempt_states import Absent, AttemptState, evolve
from shared.decider import Decider

ACTOR = "system:provider_bridge"
ATTEMPT: Decider[AttemptState, AttemptCommand] = Decider(initial=Absent(), evolve=evolve, decide=decide)


def attempt_stream(attempt_id: UUID) -> str:
    """The stream that an attempt's events stand on."""
    return f"attempt-{attempt_id}"
