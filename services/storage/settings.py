"""What storage reads from its environment."""

from shared.service import CoreSettings
from shared.settings import Secret

GIB = 1024**3


class Settings(CoreSettings, frozen=True, kw_only=True):
    """Each field is the environment variable of the same name in upper case."""

    storage_root: str = ""
    """Directory that holds every object. Needed unless `storage_object_url` is set."""
    storage_object_url: str = ""
    """`s3://bucket/prefix` and the like instead of a directory; credentials come from the vendor's own variables."""
    storage_http_host: str = "127.0.0.1"
    storage_http_port: int = 8002
    storage_http_token: Secret
    """What the gateway shows as bearer."""
    storage_dataset_roots: str = "/"
    """Datasets are packed from inside these directories only; several are separated by `:`."""
    storage_private_dirs: str = ""
    """Never packed, nor any folder that holds one of them; several are separated by `:`."""
    tunewright_data_dir: str = ""
    """Embedded mode's own directory, which holds its secrets; private as well, and so is `storage_root`."""
    storage_max_dataset_bytes: int = 200 * GIB
    storage_max_object_bytes: int = 100 * GIB
    storage_min_free_bytes: int = GIB // 4
    """Uploads and packing stop with storage_full before the disk has less than this left."""
    storage_pack_parallelism: int = 2
    """Jobs packed at once by this process; 0 leaves packing to other replicas."""
    storage_pack_lease_s: float = 30.0
    """How long a packing claim outlives a worker that vanished."""
    storage_report_retention_days: int = 30
