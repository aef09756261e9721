"""`python -m services.scheduler`: runs until SIGTERM, then finishes what is under way."""

from services.scheduler.app import build
from services.scheduler.settings import Settings
from shared.service import run_service

if __name__ == "__main__":
    raise SystemExit(run_service("scheduler", Settings, build))
