"""Storage's composition: the only place that names concrete parts."""

from functools import partial
from pathlib import Path

import structlog

from services.storage.handlers import Storage
from services.storage.inbound.http import make_app
from services.storage.inbound.http_server import bind, serve
from services.storage.outbound.objects import Objects
from services.storage.packing import Packing, PackLimits, folder_packer
from services.storage.projections import objects as objects_projection
from services.storage.report_days import keep_report_days
from services.storage.settings import Settings
from shared.contracts.artifact import ConfirmArtifacts, PackDatasets, ReadReports, RecordReports
from shared.contracts.subjects import STORAGE_OBJECTS
from shared.messaging.consumer import Subscription
from shared.projection import Projection
from shared.service import Runtime, ServiceParts
from shared.settings import SettingsError

log = structlog.stdlib.get_logger()


async def build(runtime: Runtime, settings: Settings) -> ServiceParts:
    """Every part of storage, wired; nothing runs yet."""
    objects = open_objects(settings)
    limits = pack_limits(settings)
    packing = Packing(runtime.pool, runtime.store, folder_packer(objects, limits), runtime.clock, limits)
    storage = Storage(runtime.pool, runtime.store, objects, packing, runtime.bus.client, runtime.clock)
    app = make_app(storage, settings.storage_http_token, settings.storage_max_object_bytes)
    bound = bind(settings.storage_http_host, settings.storage_http_port)
    return ServiceParts(
        commands={
            PackDatasets: storage.pack_datasets,
            ConfirmArtifacts: storage.confirm_artifacts,
            RecordReports: storage.record_reports,
            ReadReports: storage.read_reports,
        },
        subscriptions=[Subscription(durable=STORAGE_OBJECTS, project=objects_projection.project)],
        projections=[
            Projection(
                name="objects",
                tables=objects_projection.TABLES,
                durable=STORAGE_OBJECTS,
                project=objects_projection.project,
            )
        ],
        loops=[
            partial(serve, app, bound),
            packing.run,
            partial(keep_report_days, runtime.pool, runtime.clock, settings.storage_report_retention_days),
        ],
    )


def open_objects(settings: Settings) -> Objects:
    """The object store that the settings name."""
    if not settings.storage_root and not settings.storage_object_url:
        raise SettingsError("STORAGE_ROOT is not set (a directory; or set STORAGE_OBJECT_URL)")
    return Objects.open(
        root=settings.storage_root,
        url=settings.storage_object_url,
        min_free_bytes=settings.storage_min_free_bytes,
    )


def pack_limits(settings: Settings) -> PackLimits:
    """Where datasets may come from and how large they may be; relative roots are refused."""
    roots = [Path(root) for root in settings.storage_dataset_roots.split(":") if root]
    relative = [str(root) for root in roots if not root.is_absolute()]
    if relative or not roots:
        raise SettingsError(f"STORAGE_DATASET_ROOTS must hold absolute paths: {', '.join(relative) or 'it is empty'}")
    return PackLimits(
        roots=[root.resolve() for root in roots],
        private=_private_dirs(settings),
        max_dataset_bytes=settings.storage_max_dataset_bytes,
        parallelism=settings.storage_pack_parallelism,
        lease_s=settings.storage_pack_lease_s,
    )


def _private_dirs(settings: Settings) -> list[Path]:
    """What holds secrets or other people's objects: it is never a dataset, whatever the roots allow."""
    own = [settings.storage_root, settings.tunewright_data_dir, *settings.storage_private_dirs.split(":")]
    return [Path(path).resolve() for path in own if path]
