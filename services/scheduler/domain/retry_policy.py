"""Which failures are worth another attempt, how many, and after how long. Pure: the table below is the whole policy."""

import msgspec

BASE_DELAY_S = 10
MAX_DELAY_S = 600

AT_ONCE = frozenset({"preempted"})
"""The machine was taken away; nothing was wrong with the job."""

NO_MACHINE = frozenset({"no_capacity", "no_offer"})
"""There was no machine to be had: nothing was started, so a job may wait for one as long as its owner likes."""

AFTER_A_WHILE = frozenset({"lost", "killed", "unreachable", "internal", "gpu_fault", "superseded"}) | NO_MACHINE
"""The cause may have gone by itself, or be another machine's: the delay doubles from BASE_DELAY_S with each attempt, up
to MAX_DELAY_S."""

ELSEWHERE = frozenset({"no_capacity", "no_funds", "credentials_refused", "start_refused"})
"""Of a job that may run anywhere: the next best offer is tried at once. Those that refused are out for a while, so this
ends with `no_offer` when none is left."""

NEVER = frozenset(
    {
        "bad_config",
        "bad_data",
        "out_of_memory",
        "nan_loss",
        "disk_full",
        "start_refused",
        "no_funds",
        "credentials_refused",
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


def is_spared(kind: str, *, anywhere: bool, saved_more: bool) -> bool:
    """Whether a failed attempt does not count: no machine was had, or it was taken away after it had saved progress."""
    return kind in NO_MACHINE or (anywhere and kind in ELSEWHERE) or (kind == "preempted" and saved_more)


def after_failure(
    kind: str,
    attempts_made: int,
    max_attempts: int,
    rules: RetryRules = IN_FORCE,
    *,
    spared: int = 0,
    anywhere: bool = False,
) -> Retry | GiveUp:
    """What follows the failure of attempt number `attempts_made`. A kind that nobody knows is not tried again.

    `spared` of the attempts made do not count; `anywhere`: the job may run at any provider.
    """
    if rules.max_attempts is not None:
        max_attempts = rules.max_attempts
    max_attempts += spared
    at_once = AT_ONCE | ELSEWHERE if anywhere else AT_ONCE
    if kind not in at_once and kind not in AFTER_A_WHILE:
        return GiveUp(reason=f"{kind} would fail the same way again" if kind in NEVER else f"unknown kind {kind}")
    if attempts_made >= max_attempts:
        return GiveUp(reason=f"attempt {attempts_made} of {max_attempts} was the last")
    doubled_s = min(rules.base_delay_s * 2 ** (max(attempts_made, 1) - 1), rules.max_delay_s)
    delay_s = 0 if kind in at_once else doubled_s
    after = f"in {delay_s} s" if delay_s else "at once"
    return Retry(delay_s=delay_s, reason=f"retry after {kind}: attempt {attempts_made + 1} of {max_attempts} {after}")
