"""HTML pages and their static files, all served from here: pages load nothing from other origins."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from order_service.web.api.operations import OPERATIONS, problems_of
from order_service.web.http import requests
from order_service.web.http.problems import ALL, BASE, STATUS, Kind, title
from order_service.web.http.responses import JSON, encode

Handler = Callable[[web.Request], Awaitable[web.Response]]

STATIC: Final = Path(__file__).parent.with_name("static")
CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a page may load: files of this server; no inline script or style."""
HEADERS: Final = {"Content-Security-Policy": CSP, "Cache-Control": "no-cache", "X-Frame-Options": "DENY"}
TYPES: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".json": JSON,
}
SHORT: Final = {
    "/": "index.html",
    "/operations": "operations.html",
    "/docs": "docs/index.html",
    "/openapi.json": "openapi.json",
}
"""Files that also have a shorter path than `/static/…`."""
LINK: Final = re.compile(r'\b(href|src)="/')
DOCUMENTED: Final = re.compile(rb"/(problems|asyncapi)\b")
"""Matches the links of the OpenAPI document to other pages."""
LINKS: Final = """\
<nav aria-label="Documents">
    <a href="/operations">Operations</a> <a href="/docs">API</a>
    <a href="/asyncapi">Events</a> <a href="/problems">Problems</a>
  </nav>"""
"""The links in the header of every page, which stand for `LINKS_HERE`."""
LINKS_HERE: Final = "<!-- links -->"
PIECE_BYTES: Final = 64 * 1024
PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="/static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/static/frame.css">
<link rel="stylesheet" href="/static/documents.css">
<header>
  <a class="brand" href="/"><img src="/static/icon.svg" alt="" width="26" height="26">Orders</a>
  <!-- links -->
</header>
<main>
<h1>{title}</h1>
{body}
</main>
</html>
"""
"""A page of text, `built` like the static pages."""


def routes(base_path: str) -> list[web.RouteDef]:
    """Return the routes of the pages. They need no token: their scripts call `/v1` with the token of the user."""
    files = [path for path in STATIC.rglob("*") if path.suffix in TYPES]
    handlers = {
        f"/static/{path.relative_to(STATIC).as_posix()}": file_handler(_content(path, base_path), TYPES[path.suffix])
        for path in files
    }
    handlers |= {short: handlers[f"/static/{name}"] for short, name in SHORT.items()}
    return [
        *(web.get(path, handler) for path, handler in sorted(handlers.items())),
        web.get("/problems", partial(problems, base_path)),
        web.get("/problems/{kind}", partial(problem, base_path)),
    ]


def built(html: str, base_path: str) -> str:
    """Return a page with the links of the header. Its links to this server begin with the base path."""
    return LINK.sub(rf'\1="{base_path}/', html.replace(LINKS_HERE, LINKS))


def _content(path: Path, base_path: str) -> bytes:
    """Return the content of a static file, with the base path in its links. Scripts find it by their own URL."""
    content = path.read_bytes()
    if path.suffix == ".html":
        return built(content.decode(), base_path).encode()
    if base_path and path.name == "openapi.json":
        content = content.replace(b'"url": "/"', f'"url": "{base_path}"'.encode())
        return DOCUMENTED.sub(rf"{base_path}/\1".encode(), content)
    return content


def file_handler(content: bytes, content_type: str) -> Handler:
    """Return the handler that serves a file; its ETag is a digest of the content."""
    tag = sha256(content).hexdigest()
    headers = HEADERS | {"Content-Length": str(len(content))}

    async def file(request: web.Request) -> web.Response:
        if requests.etag_matches(request, tag):
            response = web.Response(status=304, headers=HEADERS)
        else:
            response = web.Response(body=_pieces(content), content_type=content_type, charset="utf-8", headers=headers)
        response.etag = tag
        return response

    return file


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    """Yield a file in pieces: aiohttp would copy a whole one for every slow reader."""
    for start in range(0, len(content), PIECE_BYTES):
        yield content[start : start + PIECE_BYTES]


async def problems(base_path: str, request: web.Request) -> web.Response:
    """Respond with all problem types."""
    rows = "\n".join(
        f'<tr><td><a href="{BASE}{kind}">{kind}</a><td>{STATUS[kind]}<td>{escape(meaning.cause)}'
        for kind, meaning in ALL.items()
    )
    body = f"<table>\n<tr><th>Type<th>Status<th>Cause\n{rows}\n</table>"
    return _page(request, "Problems", body, {"problems": [_description(kind, base_path) for kind in ALL]}, base_path)


async def problem(base_path: str, request: web.Request) -> web.Response:
    """Respond with a problem type: its cause, its cure, and the routes that return it."""
    kinds = {kind.value: kind for kind in ALL}
    kind = kinds.get(request.match_info["kind"])
    if kind is None:
        raise web.HTTPNotFound
    described = _description(kind, base_path)
    routes = "\n".join(f"<li><code>{escape(route)}</code>" for route in described["routes"])
    body = (
        f"<p><code>{described['type']}</code>, status {described['status']}\n"
        f"<h2>Cause</h2>\n<p>{escape(described['cause'])}\n<h2>What to do</h2>\n<p>{escape(described['cure'])}\n"
        f'<h2>Routes that return it</h2>\n<ul>\n{routes}\n</ul>\n<p><a href="/problems">All problems</a>'
    )
    return _page(request, described["title"], body, described, base_path)


def _description(kind: Kind, base_path: str) -> dict[str, Any]:
    routes = [f"{operation.method} {operation.path}" for operation in OPERATIONS if kind in problems_of(operation)]
    meaning = ALL[kind]
    return {
        "type": f"{base_path}{BASE}{kind}",
        "title": title(kind),
        "status": STATUS[kind],
        "cause": meaning.cause,
        "cure": meaning.cure,
        "routes": routes,
    }


def _page(request: web.Request, heading: str, body: str, content: dict[str, Any], base_path: str) -> web.Response:
    """Respond with an HTML page, or with its content as JSON if the request accepts that."""
    headers = HEADERS | {"Vary": "Accept"}
    if JSON in request.headers.get("Accept", ""):
        return web.Response(body=encode(content), content_type=JSON, headers=headers)
    html = built(PAGE.format(title=escape(heading), body=body), base_path)
    return web.Response(text=html, content_type="text/html", charset="utf-8", headers=headers)
