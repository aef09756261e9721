"""The gateway's settings, read from the environment in `__main__` only."""

from shared.service import CoreSettings
from shared.settings import Secret

GIB = 1024**3


class Settings(CoreSettings, frozen=True, kw_only=True):
    """Environment names are the field names in upper case; those without a default must be set."""

    gateway_host: str = "127.0.0.1"
    """Loopback by default: single-user mode has no sign-in."""
    gateway_port: int = 8001
    gateway_allowed_hosts: str = ""
    """Host names besides loopback and `gateway_host` that requests may name, with commas; `*` allows every name."""
    gateway_config_dir: str = "config"
    """Saved configs: `<name>/config.json` or `<name>.json`."""
    gateway_providers: str = "local"
    """Providers that jobs may be submitted to, with commas."""
    gateway_storage_url: str = "http://127.0.0.1:8002"
    gateway_storage_token: Secret
    gateway_max_object_bytes: int = 64 * GIB
    gateway_event_streams: int = 2000
    """How many event streams may be open at once; more are told to come back later."""
    gateway_event_streams_per_ip: int = 100
    gateway_log_streams: int = 2000
    """The same for logs that are followed."""
    gateway_worker_streams: int = 2000
    """The same for own workers."""
    gateway_drain_s: float = 10.0
    """How long requests in flight may take to finish when the gateway is asked to stop."""
