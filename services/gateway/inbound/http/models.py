"""`/api/v1/models`: the registry of what was trained here."""

from typing import Annotated

from litestar import MediaType, Response, Router, get
from litestar.params import FromPath, QueryParameter

from services.gateway.inbound.http.parts import Parts

Limit = Annotated[int, QueryParameter(ge=1, le=500)]
Offset = Annotated[int, QueryParameter(ge=0)]


@get("/models")
async def list_models(parts: Parts, limit: Limit = 50, offset: Offset = 0) -> Response[bytes]:
    """Trained models, newest first, one for each listed job that completed; `total` counts all of them.

    Each has its name, base model, family, kind (lora or full), job, files with SHA-256, size, key and URL, the hash of
    its config, the keys of its samples, and what came of delivering it elsewhere.
    """
    return Response(await parts.reads.models(limit=limit, offset=offset), media_type=MediaType.JSON)


@get("/models/{name_or_id:str}")
async def get_model(name_or_id: FromPath[str], parts: Parts) -> Response[bytes]:
    """One model: by the id of the job that made it, or the newest of that name."""
    return Response(await parts.reads.model(name_or_id), media_type=MediaType.JSON)


ROUTER = Router("/api/v1", route_handlers=[list_models, get_model], tags=["Models"])
