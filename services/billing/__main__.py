"""`python -m services.billing`: runs until SIGTERM, then finishes what is under way."""

from services.billing.app import build
from services.billing.settings import Settings
from shared.service import run_service

if __name__ == "__main__":
    raise SystemExit(run_service("billing", Settings, build))
