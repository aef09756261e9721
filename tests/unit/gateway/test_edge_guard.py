"""Who may call by which name, and what every answer carries."""

from typing import Any

import pytest

from services.gateway.inbound.http.edge import Edge, HostRule

LOCAL = HostRule.of("127.0.0.1", [])


@pytest.mark.parametrize(
    "authority", ["localhost", "LOCALHOST:8001", "127.0.0.1:8001", "127.9.9.9", "[::1]:8001", "[::1]"]
)
def test_loopback_names_are_served(authority: str) -> None:
    assert LOCAL.allows(authority)


@pytest.mark.parametrize(
    "authority",
    ["", "evil.example", "evil.example:8001", "127.0.0.1.evil.example", "10.0.0.1", "[bad", "localhost.evil"],
)
def test_other_names_are_not_served(authority: str) -> None:
    assert not LOCAL.allows(authority)


def test_bound_address_and_allowed_names_are_served() -> None:
    rule = HostRule.of("10.0.0.5", ["tunewright.lan", " Other.LAN ", ""])
    assert rule.allows("10.0.0.5:8001")
    assert rule.allows("tunewright.lan")
    assert rule.allows("other.lan:80")
    assert not rule.allows("10.0.0.6")
    assert HostRule.of("0.0.0.0", ["*"]).allows("anything.example")  # noqa: S104 - the operator's own choice


@pytest.mark.parametrize(
    ("origin", "host", "fine"),
    [
        (None, "localhost:8001", True),
        ("http://localhost:8001", "localhost:8001", True),
        ("HTTP://LOCALHOST:8001", "localhost:8001", True),
        ("http://[::1]:8001", "[::1]:8001", True),
        ("http://localhost", "localhost", True),
        ("http://localhost:80", "localhost", True),
        ("https://localhost", "localhost:443", True),
        ("http://localhost:3000", "localhost:8001", False),
        ("http://127.0.0.1:8001", "localhost:8001", False),
        ("http://localhost", "localhost:8001", False),
        ("https://localhost", "localhost:80", False),
        ("http://evil.example", "localhost:8001", False),
        ("http://localhost:bad", "localhost:8001", False),
        ("http://", "", False),
        ("null", "localhost:8001", False),
        ("", "localhost:8001", False),
    ],
)
def test_only_a_page_of_the_same_host_and_port_may_change_anything(
    origin: str | None,
    host: str,
    fine: bool,  # noqa: FBT001
) -> None:
    assert LOCAL.allows_origin(origin, host) is fine


def test_allowed_name_with_a_port_is_a_page_that_may_change_things() -> None:
    rule = HostRule.of("127.0.0.1", ["ui.lan:3000", "tunewright.lan", "app.lan:443"])
    assert rule.allows_origin("http://ui.lan:3000", "localhost:8001")
    assert rule.allows_origin("https://app.lan", "localhost:8001")
    assert not rule.allows_origin("http://ui.lan:3001", "localhost:8001")
    assert not rule.allows_origin("http://tunewright.lan:3000", "tunewright.lan:8001")
    assert rule.allows("ui.lan:3000")
    assert not rule.allows("ui.lan:8001")
    anything = HostRule.of("127.0.0.1", ["*"])
    assert not anything.allows_origin("http://evil.example", "localhost:8001")


async def called(method: str, headers: dict[str, str], *, host: str = "localhost") -> list[Any]:
    """What the edge sends for one request to an application that answers with nothing."""
    sent: list[Any] = []

    async def inner(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": [(b"cache-control", b"private")]})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in {"host": host, **headers}.items()]
    scope: Any = {"type": "http", "method": method, "path": "/x", "headers": raw, "state": {}}
    await Edge(inner, LOCAL)(scope, receive, send)
    return sent


def headers_of(sent: list[Any]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in sent[0]["headers"]}


async def test_security_headers_are_on_every_answer_and_replace_nothing() -> None:
    headers = headers_of(await called("GET", {}))
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "private"


async def test_refused_host_gets_a_problem_with_the_same_headers() -> None:
    sent = await called("GET", {}, host="evil.example")
    assert sent[0]["status"] == 400
    assert b'"code":"host_not_allowed"' in sent[1]["body"]
    assert headers_of(sent)["x-content-type-options"] == "nosniff"


async def test_foreign_origin_may_read_nothing_new_and_change_nothing() -> None:
    assert (await called("POST", {"origin": "https://evil.example"}))[0]["status"] == 400
    assert (await called("POST", {"origin": "http://localhost:3000"}, host="localhost:8001"))[0]["status"] == 400
    assert (await called("POST", {"origin": "http://localhost:8001"}, host="localhost:8001"))[0]["status"] == 204
    assert (await called("GET", {"origin": "https://evil.example"}))[0]["status"] == 204


async def test_request_id_is_kept_when_it_is_sane_and_made_when_not() -> None:
    assert headers_of(await called("GET", {"x-request-id": "abc-1"}))["x-request-id"] == "abc-1"
    made = headers_of(await called("GET", {"x-request-id": 'x"\ny'}))["x-request-id"]
    assert len(made) == 36
