"""What this machine's environment holds for targets outside. Values never show in a repr, a log line or a report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

HUB_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True)
class BucketCredentials:
    """One pair of S3 keys."""

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    region: str | None = None


@dataclass(frozen=True)
class Outside:
    """Credentials and places for deliveries; what is not set is None or empty."""

    hub_token: str | None = field(default=None, repr=False)
    hub_endpoint: str = HUB_ENDPOINT
    bucket: BucketCredentials | None = None
    backblaze: BucketCredentials | None = None
    roots: tuple[Path, ...] = ()
    """Folders below which results may be put on this machine."""

    def secrets(self) -> list[str]:
        """Every value that must never be written anywhere."""
        pairs = [pair for pair in (self.bucket, self.backblaze) if pair is not None]
        keys = [value for pair in pairs for value in (pair.access_key_id, pair.secret_access_key, pair.session_token)]
        return [value for value in (self.hub_token, *keys) if value]


def outside_from(environ: Mapping[str, str]) -> Outside:
    """Read HF_TOKEN, HF_ENDPOINT, AWS_*, B2_APPLICATION_KEY(_ID) and TRAINER_PUBLISH_ROOTS (folders, with colons)."""
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    bucket = _pair(environ, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", environ.get("AWS_SESSION_TOKEN"), region)
    backblaze = _pair(environ, "B2_APPLICATION_KEY_ID", "B2_APPLICATION_KEY", None, None)
    roots = [Path(root).expanduser() for root in environ.get("TRAINER_PUBLISH_ROOTS", "").split(":") if root]
    return Outside(
        hub_token=environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN") or None,
        hub_endpoint=environ.get("HF_ENDPOINT") or HUB_ENDPOINT,
        bucket=bucket,
        backblaze=backblaze,
        roots=tuple(root for root in roots if root.is_absolute()),
    )


def _pair(
    environ: Mapping[str, str], id_name: str, secret_name: str, session_token: str | None, region: str | None
) -> BucketCredentials | None:
    access_key_id, secret = environ.get(id_name, ""), environ.get(secret_name, "")
    if not access_key_id or not secret:
        return None
    return BucketCredentials(access_key_id, secret, session_token or None, region)
