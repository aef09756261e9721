"""`python -m services.provider_bridge`: runs until SIGTERM, then drains. Its runs live on."""

from services.provider_bridge.app import build
from services.provider_bridge.settings import Settings
from shared.service import run_service

if __name__ == "__main__":
    raise SystemExit(run_service("provider_bridge", Settings, build))
