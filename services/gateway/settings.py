"""The gateway's settings, read from the environment in `__main__` only."""

from shared.contracts.offers import AUTO, PROVIDERS
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
    gateway_providers: str = ",".join((*PROVIDERS, AUTO))
    """Providers that jobs may be submitted to, with commas; those that are not set up refuse by themselves."""
    gateway_trusted_proxies: str = ""
    """Addresses or networks of proxies in front of this gateway, with commas: their X-Forwarded-For is believed."""
    tunewright_public_url: str = ""
    """The origin by which machines elsewhere reach this gateway, such as a tunnel's; its host is served."""
    simpletuner_public_url: str = ""
    """The same by the name that other documents use."""
    tunewright_private_networks: str = ""
    """Networks that are not public and may be called all the same when a webhook is tested."""
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

    @property
    def public_url(self) -> str | None:
        """This gateway's origin as the rest of the world reaches it, None if it does not."""
        return (self.tunewright_public_url or self.simpletuner_public_url).rstrip("/") or None
