"""How `tunewright` ends. Job results use the codes that SkyPilot's users know."""

DONE = 0
ERROR = 1
USAGE = 2
JOB_FAILED = 100
JOB_CANCELLED = 103
INTERRUPTED = 130

OF_STATUS = {"completed": DONE, "failed": JOB_FAILED, "cancelled": JOB_CANCELLED}
"""A job's last status -> the exit code of `submit --wait` and `logs -f`."""
