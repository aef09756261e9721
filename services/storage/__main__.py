"""`python -m services.storage`: runs until SIGTERM."""

from services.storage.app import build
from services.storage.settings import Settings
from shared.service import run_service

raise SystemExit(run_service("storage", Settings, build))
