"""What-if: the past decided again under another policy. Asked of the scheduler; prices are asked of billing.

The policy and price structs refuse unknown keys: they are also the files that a person writes.
"""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec

from shared.contracts.job import Command

Slots = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=31_536_000)]


class PolicyLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many jobs may hold a slot: in all, of one user, and of users named here. None: as it was."""

    in_all: Slots | None = None
    per_user: Slots | None = None
    of_users: dict[str, Slots] = {}


class PolicyRetry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Delays and number of attempts. None: as it was."""

    base_delay_s: Seconds | None = None
    max_delay_s: Seconds | None = None
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=20)] | None = None


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The policy to decide by. What it leaves out is as it was; an empty one changes nothing."""

    order: Literal["priority", "fifo", "fair_share"] = "priority"
    limits: PolicyLimits = msgspec.field(default_factory=PolicyLimits)
    retry: PolicyRetry = msgspec.field(default_factory=PolicyRetry)


class PriceOffer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of a price list, as in billing's catalogue."""

    provider: str
    price_micro_usd_per_hour: Annotated[int, msgspec.Meta(ge=0)]
    hardware: str = ""
    base_seconds: Seconds = 0
    seconds_per_step: Seconds = 0
    seconds_without_steps: Seconds = 0


class PriceList(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What machine time would cost; every provider that was used must be in it."""

    offers: list[PriceOffer]


class SimulatePolicy(Command, frozen=True, kw_only=True, tag="simulate_policy"):
    """Asks what the jobs that were submitted between two positions would have met with; writes nothing.

    `after_position` < position <= `up_to_position` (0: to the end of the log). Jobs that lived before take part, but
    are not counted. `jobs_limit` of 0 leaves the rows of single jobs out. Answers a `WhatIfReport`.
    """

    policy: Policy = msgspec.field(default_factory=Policy)
    prices: PriceList | None = None
    after_position: int = 0
    up_to_position: int = 0
    jobs_limit: int = 0
    jobs_offset: int = 0


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """`count` attempts that each used so many seconds; `price` None asks for that of the price list."""

    group: str
    provider: str
    seconds: int
    price_micro_usd_per_hour: int | None
    count: int


class PriceUsage(Command, frozen=True, kw_only=True, tag="price_usage"):
    """Asks billing what usages would cost, each attempt rounded as it would be billed; writes nothing.

    Without `prices` billing's own list holds. Answers `{"groups": {group: micro-dollars}}`, or refuses with
    `validation_error` when a provider has no price.
    """

    usages: list[Usage]
    prices: PriceList | None = None


# ---- the answer ------------------------------------------------------------------------------------------------------


class WaitStats(msgspec.Struct, frozen=True, kw_only=True):
    """How long jobs waited in the queue, retries included, in seconds; those that wait at the end count so far."""

    jobs: int
    mean_s: float
    median_s: float
    p95_s: float
    max_s: float


class UserShare(msgspec.Struct, frozen=True, kw_only=True):
    """What one user got."""

    user_id: str
    jobs: int
    mean_wait_s: float
    slot_seconds: int
    cost_micro_usd: int


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """How it went, or would have gone. `waiting` and `open` are as of the end; indexes are Jain's, 1 is even."""

    jobs: int
    completed: int
    failed: int
    cancelled: int
    open: int
    waiting: int
    attempts: int
    slot_seconds: int
    cost_micro_usd: int
    wait: WaitStats
    wait_by_priority: dict[str, WaitStats]
    users: list[UserShare]
    """Those with the most slot seconds, at most 100."""
    users_total: int
    fairness_wait: float
    fairness_slot_seconds: float


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """The first decision that would not have been the one in the log."""

    position: int
    at: datetime
    job_id: UUID
    recorded: str
    decided: str


class Decisions(msgspec.Struct, frozen=True, kw_only=True):
    """The log's own decisions, taken again. Behind the first difference nothing can be compared.

    `without_basis` of them are of before events said what they were decided on: there a round is what stands together
    in the log, decided on what was there before it or on as much of that as gives the same.
    """

    recorded: int
    reproduced: int
    dispatches: int
    explanations: int
    retries: int
    without_basis: int
    first_difference: Difference | None


class JobTold(msgspec.Struct, frozen=True, kw_only=True):
    """One job: outcome, wait and attempts, as it was and as it would have been."""

    job_id: UUID
    user_id: str
    priority: int
    outcome: str
    what_if_outcome: str
    wait_s: float
    what_if_wait_s: float
    attempts: int
    what_if_attempts: int


class WhatIfReport(msgspec.Struct, frozen=True, kw_only=True):
    """`happened` and `what_if` side by side.

    `assumed_attempts` of the latter have no counterpart in the log: how long they hold a slot is taken from the job's
    last attempt, else from the median of its user's.
    """

    after_position: int
    up_to_position: int
    began_at: datetime | None
    ended_at: datetime | None
    policy: dict[str, Any]
    limits_in_force: dict[str, int]
    events: int
    carried_over: int
    """Jobs from before that took part and are not counted."""
    duration_s: float
    decisions: Decisions
    happened: Told
    what_if: Told
    assumed_attempts: int
    late_cancels: int
    """Cancels that would have come after the job's end."""
    jobs: list[JobTold]
