"""The HTTP application: every route, one way to refuse, and the edge around it all."""

from typing import Any

from litestar import Litestar
from litestar.di import Provide
from litestar.types import ASGIApp

from services.gateway.inbound.http import (
    admin,
    attempts,
    credentials,
    deploy,
    events,
    health,
    jobs,
    metrics,
    models,
    objects,
    past,
    providers,
    story,
    training,
    webhooks,
    workers,
)
from services.gateway.inbound.http.docs import openapi_config, openapi_document
from services.gateway.inbound.http.edge import Edge, HostRule
from services.gateway.inbound.http.parts import GatewayParts
from services.gateway.inbound.http.principal import provide_principal
from services.gateway.inbound.http.problems import HANDLERS

MAX_JSON_BYTES = 4 * 1024 * 1024


def make_litestar(parts: GatewayParts, version: str) -> Litestar:
    """The routes without the edge."""

    def provide_parts() -> Any:
        return parts

    return Litestar(
        route_handlers=[
            *health.HANDLERS,
            openapi_document,
            jobs.ROUTER,
            events.ROUTER,
            objects.ROUTER,
            objects.DATASETS_ROUTER,
            attempts.ROUTER,
            story.ROUTER,
            training.ROUTER,
            past.ROUTER,
            models.ROUTER,
            admin.ROUTER,
            workers.ROUTER,
            workers.ADMIN_ROUTER,
            *metrics.ROUTERS,
            *providers.ROUTERS,
            credentials.ROUTER,
            webhooks.ROUTER,
            deploy.ROUTER,
        ],
        dependencies={
            "parts": Provide(provide_parts, sync_to_thread=False),
            "principal": Provide(provide_principal, sync_to_thread=False),
        },
        exception_handlers=HANDLERS,
        request_max_body_size=MAX_JSON_BYTES,
        openapi_config=openapi_config(version),
        logging_config=None,
        debug=False,
    )


def make_app(parts: GatewayParts, version: str, hosts: HostRule) -> ASGIApp:
    """What uvicorn serves."""
    return Edge(make_litestar(parts, version), hosts)
