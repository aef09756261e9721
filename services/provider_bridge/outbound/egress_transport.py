"""Lets a vendor's httpx client speak through our one way out, so that its own retries and limits never act."""

import httpx

from services.provider_bridge.outbound.egress import Egress

_CHANGED = frozenset({"content-encoding", "content-length", "transfer-encoding"})
"""The body has been read and decoded; these headers no longer speak of it."""


class EgressTransport(httpx.AsyncBaseTransport):
    """Sends what a vendor's client asks for by `egress`; refusals and outages are raised as `Egress.call` raises them.

    `prefix` is the part of the path that the client adds by itself and that the base address already holds.
    """

    def __init__(self, egress: Egress, prefix: str) -> None:
        self._egress = egress
        self._prefix = prefix

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The answer below 400; whatever else came is an exception."""
        kind = request.headers.get("content-type")
        answer = await self._egress.call(
            request.method,
            request.url.raw_path.decode("ascii").removeprefix(self._prefix),
            content=await request.aread() or None,
            headers={"content-type": kind} if kind else {},
        )
        headers = [(name, value) for name, value in answer.headers.items() if name.lower() not in _CHANGED]
        return httpx.Response(answer.status, headers=headers, content=answer.body, request=request)
