"""Which failures are worth another attempt, how many, and after how long. Pure: the table below is the whole policy."""

import msgspec

BASE_DELAY_S = 10
MAX_DELAY_S = 600

AT_ONCE = frozenset({"preempted"})
"""The machine was taken away; nothing was wrong with the job."""

AFTER_A_WHILE = frozenset({"lost", "killed", "unreachable", "internal", "gpu_fault"})
"""The cause may have gone by itself, or be another machine's: the delay doubles from BASE_DELAY_S with each attempt, up
to MAX_DELAY_S."""

NEVER = frozenset(
    {
        "bad_config",
        "bad_data",
        "out_of_memory",
        "nan_loss",
        "disk_full",
        "start_refused",
        "funds_refused",
        "dataset_refused",
    }
)
"""The same input fails the same way again."""


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """Try again after `delay_s`; `reason` goes into the event."""

    delay_s: int
    reason: str


class GiveUp(msgspec.Struct, frozen=True, kw_only=True):
    """No further attempt; `reason` goes into the event."""

    reason: str


class RetryRules(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of the policy. The service decides by these; `tunewright whatif` may ask about others."""

    base_delay_s: int = BASE_DELAY_S
    max_delay_s: int = MAX_DELAY_S
    max_attempts: int | None = None
    """None: as many as the job asked for."""


IN_FORCE = RetryRules()


def after_failure(kind: str, attempts_made: int, max_attempts: int, rules: RetryRules = IN_FORCE) -> Retry | GiveUp:
    """What follows the failure of attempt number `attempts_made`. A kind that nobody knows is not tried again."""
    if rules.max_attempts is not None:
        max_attempts = rules.max_attempts
    if kind not in AT_ONCE and kind not in AFTER_A_WHILE:
        return GiveUp(reason=f"{kind} would fail the same way again" if kind in NEVER else f"unknown kind {kind}")
    if attempts_made >= max_attempts:
        return GiveUp(reason=f"attempt {attempts_made} of {max_attempts} was the last")
    doubled_s = min(rules.base_delay_s * 2 ** (max(attempts_made, 1) - 1), rules.max_delay_s)
    delay_s = 0 if kind in AT_ONCE else doubled_s
    after = f"in {delay_s} s" if delay_s else "at once"
    return Retry(delay_s=delay_s, reason=f"retry after {kind}: attempt {attempts_made + 1} of {max_attempts} {after}")
