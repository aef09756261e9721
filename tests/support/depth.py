"""How far properties are searched: the same examples in every run, others and far more with HYPOTHESIS_PROFILE=deep.

A run that nobody watches must not fail for an example that the change under test has nothing to do with, so the quick
profile is derandomised: its examples follow from the test's own text. The search for new ones is `deep`, by hand.
`@examples(20)` is 20 examples in a quick run and 1000 in a deep one. A failure prints what reproduces it.
"""

import os
from typing import Any

from hypothesis import HealthCheck, settings

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
FACTORS = {"quick": 1, "deep": 50}


def load_profile() -> None:
    """Settings of every property that says nothing else: no deadline anywhere, for the machine may be busy."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    common = settings(deadline=None, suppress_health_check=slow, print_blob=True)
    settings.register_profile("quick", common, derandomize=True, database=None)
    settings.register_profile("deep", common, derandomize=False)
    settings.load_profile(PROFILE)


def depth(quick: int) -> int:
    """So many in every run, more in a deep one; a profile that nobody knows is an error."""
    return quick * FACTORS[PROFILE]


def examples(quick: int, **more: Any) -> settings:
    """The profile's settings with so many examples."""
    return settings(max_examples=depth(quick), **more)
