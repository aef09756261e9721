"""`/api/events`: what happens, as it happens."""

from litestar import Router, get
from litestar.response import Stream

from services.gateway.inbound.http.jobs import LastEventId
from services.gateway.inbound.http.parts import Caller, Parts
from services.gateway.inbound.http.sse import cursor_of, event_stream


@get("/", media_type="text/event-stream")
async def live_events(parts: Parts, principal: Caller, last_event_id: LastEventId = None) -> Stream:
    """Every event as it is recorded (`id:` is its log position), and the progress of running jobs.

    Last-Event-ID resumes from the log, however long ago that was.
    """
    return event_stream(parts.feed.open(principal.source_ip or "", cursor_of(last_event_id)))


ROUTER = Router("/api/events", route_handlers=[live_events], tags=["Events"])
