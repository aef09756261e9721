"""`python -m services.gateway`: runs until SIGTERM, then drains."""

from services.gateway.app import build
from services.gateway.settings import Settings
from shared.service import run_service

if __name__ == "__main__":
    raise SystemExit(run_service("gateway", Settings, build))
