"""What the bridge reads from its environment."""

import os

from services.provider_bridge.domain.attempt_commands import REPORT_GRACE_S
from shared.service import CoreSettings


class Settings(CoreSettings, frozen=True, kw_only=True):
    """Variables are the names in upper case. Times in seconds, sizes in bytes."""

    bridge_gateway_url: str
    """The origin that trainers report to and fetch from."""
    tunewright_public_url: str = ""
    """The origin by which machines elsewhere reach the gateway, such as a tunnel's."""
    simpletuner_public_url: str = ""
    """The same by the name that other documents use."""
    bridge_state_dir: str
    """Attempts of the `local` provider, for as long as they are of interest; keep it across restarts."""
    bridge_trainer_dir: str = "."
    """The folder that holds the package `trainer`, or that package's own folder."""
    bridge_trainer_python: str = ".venv-trainer/bin/python"
    """The interpreter with the trainer's packages; a relative path is meant from the trainer's folder."""
    bridge_lease_s: float = 15.0
    bridge_reconcile_interval_s: float = 1.0
    bridge_sweep_interval_s: float = 30.0
    bridge_quote_interval_s: float = 30.0
    """How often providers are asked what they offer."""
    bridge_cancel_grace_s: float = 30.0
    bridge_longest_run_s: int = 7 * 24 * 3600
    """After so long a run on a paid machine is ended if nobody has given it a limit of its own."""
    bridge_report_grace_s: float = REPORT_GRACE_S
    bridge_worker_lost_s: float = 900.0
    """How long a worker may stay offline before its run is given up and the job goes on elsewhere."""
    bridge_log_limit_bytes: int = 16 * 1024 * 1024

    @property
    def public_url(self) -> str | None:
        """The gateway's origin as the rest of the world reaches it, None if it does not."""
        return (self.tunewright_public_url or self.simpletuner_public_url).rstrip("/") or None


def inherited_environment() -> dict[str, str]:
    """What this process was started with; the local provider passes a chosen part of it on to trainers."""
    return dict(os.environ)
