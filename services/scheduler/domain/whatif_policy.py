"""The policy that is asked about: what it leaves open is as it was."""

import msgspec

from services.scheduler.domain.queue_policy import Limits, Order
from services.scheduler.domain.retry_policy import IN_FORCE, RetryRules
from shared.contracts.whatif import Policy


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """A `Policy` as the queue's and the retry policy take it."""

    order: Order = "priority"
    retry: RetryRules = IN_FORCE
    in_all: int | None = None
    per_user: int | None = None
    of_users: dict[str, int] = {}

    def limits(self, in_force: Limits) -> Limits:
        """The limits, given those that were in force."""
        return Limits(
            in_all=in_force.in_all if self.in_all is None else self.in_all,
            per_user=in_force.per_user if self.per_user is None else self.per_user,
            of_users=self.of_users,
        )


def rules_of(policy: Policy) -> Rules:
    """The rules that a policy asks for."""
    asked = policy.retry
    return Rules(
        order=policy.order,
        retry=RetryRules(
            base_delay_s=IN_FORCE.base_delay_s if asked.base_delay_s is None else asked.base_delay_s,
            max_delay_s=IN_FORCE.max_delay_s if asked.max_delay_s is None else asked.max_delay_s,
            max_attempts=asked.max_attempts,
        ),
        in_all=policy.limits.in_all,
        per_user=policy.limits.per_user,
        of_users=policy.limits.of_users,
    )
