"""Routes that read JSON take nothing that a page of another site could send without asking."""

from typing import Any, cast

import httpx
import pytest
from litestar import Litestar, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody

from services.gateway.inbound.http import admin, jobs
from services.gateway.inbound.http.principal import require_json
from services.gateway.inbound.http.problems import HANDLERS


@post("/", guards=[require_json])
async def echo(data: JSONBody[dict[str, Any]]) -> dict[str, Any]:
    """What came."""
    return data


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("application/json", 201),
        ("Application/JSON; charset=utf-8", 201),
        ("text/plain", 400),
        ("text/plain; application/json", 400),
        ("application/x-www-form-urlencoded", 400),
        (None, 400),
    ],
)
async def test_body_is_taken_under_the_json_media_type_only(header: str | None, status: int) -> None:
    headers = {"Content-Type": header} if header else {}
    app: Any = Litestar([echo], exception_handlers=HANDLERS)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        answer = await client.post("/", content=b'{"a": 1}', headers=headers)
    assert answer.status_code == status
    if status == 400:
        (error,) = answer.json()["errors"]
        assert (answer.json()["code"], error["field"]) == ("validation_error", "Content-Type")
        assert "Content-Type" in answer.json()["detail"]
        assert "application/json" in answer.json()["detail"]


@pytest.mark.parametrize("handler", [jobs.submit, admin.replay])
def test_routes_that_read_json_have_the_guard(handler: HTTPRouteHandler) -> None:
    assert require_json in (cast("Any", handler).guards)
