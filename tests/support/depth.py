"""How far properties are searched: a little in every run, far with HYPOTHESIS_PROFILE=deep.

`@examples(20)` is 20 examples in every run and 1000 in a deep one. A failure prints what reproduces it.
"""

import os
from typing import Any

from hypothesis import HealthCheck, settings

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
FACTORS = {"quick": 1, "deep": 50}


def depth(quick: int) -> int:
    """So many in every run, more in a deep one; a profile that nobody knows is an error."""
    return quick * FACTORS[PROFILE]


def examples(quick: int, **more: Any) -> settings:
    """Hypothesis settings with so many examples, and no deadline: the machine may be busy."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=depth(quick), deadline=None, suppress_health_check=slow, print_blob=True, **more)
