"""`/docs`: the OpenAPI document as one plain page. No script, nothing fetched from anywhere."""

import base64
import hashlib
from html import escape
from typing import Any, cast

import msgspec
from litestar import Request, Response, Router, get
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import OpenAPIRenderPlugin

TITLE = "Tunewright"
DESCRIPTION = (
    "Submit a training config once; see it run, bring the model home, prove every state change and every cent."
)
METHODS = ("get", "head", "post", "put", "patch", "delete")
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
code,pre{font:13px/1.45 ui-monospace,monospace}pre{background:#f3f5f7;padding:.75rem;overflow:auto;border-radius:6px}
summary{cursor:pointer;padding:.3rem 0}details{border-bottom:1px solid #e3e7eb}h2{margin-top:2rem}
.m{display:inline-block;min-width:4.5rem;font-weight:700}table{border-collapse:collapse}td,th{text-align:left;
padding:.15rem .8rem .15rem 0;vertical-align:top}.d{color:#57606a}
@media(prefers-color-scheme:dark){body{color:#e6e9ec;background:#14171a}pre{background:#1f2428}details{border-color:#30363d}
.d{color:#9aa4ae}a{color:#7cb7ff}}
""".strip()
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'; base-uri 'none'"
)


class PlainDocs(OpenAPIRenderPlugin):
    """Renders the schema on the server."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:  # noqa: ARG002
        """The whole page."""
        sections = "".join(_section(tag, operations) for tag, operations in _by_tag(openapi_schema).items())
        schemas = openapi_schema.get("components", {}).get("schemas", {})
        shapes = "".join(_shape(name, schema) for name, schema in sorted(schemas.items()))
        return (
            f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            f"<title>{TITLE} API</title><style>{STYLE}</style><h1>{TITLE} API</h1><p>{escape(DESCRIPTION)}</p>"
            f"<p>The same as a document: <a href='/openapi.json'>/openapi.json</a></p>{sections}"
            f"<h2>Shapes</h2>{shapes}</html>"
        ).encode()


def openapi_config(version: str) -> OpenAPIConfig:
    """The document at /openapi.json, the page at /docs."""
    return OpenAPIConfig(
        title=TITLE,
        version=version,
        description=DESCRIPTION,
        render_plugins=[PlainDocs(path="/")],
        openapi_router=Router(
            "/docs",
            route_handlers=[],
            include_in_schema=False,
            response_headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY},
        ),
    )


@get("/openapi.json", include_in_schema=False)
async def openapi_document(request: Request[Any, Any, Any]) -> Response[bytes]:
    """The OpenAPI document."""
    schema = request.app.openapi_schema.to_schema()
    return Response(msgspec.json.encode(schema, enc_hook=str), media_type="application/json")


def _by_tag(schema: dict[str, Any]) -> dict[str, list[tuple[str, str, dict[str, Any]]]]:
    found: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, item in sorted(schema.get("paths", {}).items()):
        for method in METHODS:
            if method in item:
                tag = (item[method].get("tags") or ["Other"])[0]
                found.setdefault(tag, []).append((method, path, item[method]))
    return found


def _section(tag: str, operations: list[tuple[str, str, dict[str, Any]]]) -> str:
    return f"<h2>{escape(tag)}</h2>" + "".join(_operation(*operation) for operation in operations)


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    said = operation.get("description") or operation.get("summary") or ""
    rows = "".join(_parameter(parameter) for parameter in operation.get("parameters", []))
    table = f"<table><tr><th>name<th>in<th>type{rows}</table>" if rows else ""
    body = _content("Body", operation.get("requestBody", {}))
    answers = "".join(_content(f"{status}", answer) for status, answer in operation.get("responses", {}).items())
    return (
        f"<details><summary><span class=m>{method.upper()}</span> <code>{escape(path)}</code> "
        f"<span class=d>{escape(said.partition(chr(10))[0])}</span></summary>"
        f"<p>{escape(said)}</p>{table}{body}{answers}</details>"
    )


def _parameter(parameter: dict[str, Any]) -> str:
    kind = escape(_brief(parameter.get("schema", {})))
    return f"<tr><td><code>{escape(parameter['name'])}</code><td>{escape(parameter['in'])}<td><code>{kind}</code>"


def _content(label: str, holder: dict[str, Any]) -> str:
    kinds = [
        f"<p>{escape(label)} <code>{escape(media)}</code> <code>{escape(_brief(content.get('schema', {})))}</code></p>"
        for media, content in holder.get("content", {}).items()
    ]
    return "".join(kinds)


def _brief(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for joint in ("oneOf", "anyOf"):
        if joint in schema:
            return " | ".join(_brief(option) for option in schema[joint])
    kind: Any = schema.get("type", "any")
    if kind == "array":
        return f"[{_brief(schema.get('items', {}))}]"
    return " | ".join(cast("list[str]", kind)) if isinstance(kind, list) else str(kind)


def _shape(name: str, schema: dict[str, Any]) -> str:
    text = msgspec.json.format(msgspec.json.encode(schema, enc_hook=str)).decode()
    return f"<details><summary><code>{escape(name)}</code></summary><pre>{escape(text)}</pre></details>"
