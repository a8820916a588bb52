"""Pages for people, and the files that they load: all of them ours, none from elsewhere."""

from collections.abc import AsyncIterator
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from order_service.web.api.operations import OPERATIONS, problems_of
from order_service.web.http import requests
from order_service.web.http.problems import ALL, BASE, STATUS, Kind, title
from order_service.web.http.responses import JSON, encode

STATIC: Final = Path(__file__).parent.with_name("static")
CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a page may load: what we serve, and no script or style inside itself."""
HEADERS: Final = {"Content-Security-Policy": CSP, "Cache-Control": "no-cache", "X-Frame-Options": "DENY"}
TYPES: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".json": JSON,
}
SHORT: Final = {"/": "index.html", "/docs": "docs/index.html", "/openapi.json": "openapi.json"}
"""The files that stand under a shorter address than `/static/…`."""
PIECE_BYTES: Final = 64 * 1024
PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/static/problems.css">
<h1>{title}</h1>
{body}
</html>
"""


def routes() -> list[web.RouteDef]:
    """Give the routes of the pages. They need no token: what they show they ask `/v1` for, with their reader's."""
    kept = [path for path in STATIC.rglob("*") if path.suffix in TYPES]
    files = {f"/static/{path.relative_to(STATIC).as_posix()}": path.read_bytes() for path in kept}
    files |= {address: files[f"/static/{name}"] for address, name in SHORT.items()}
    tags = {address: sha256(content).hexdigest() for address, content in files.items()}

    async def file(request: web.Request) -> web.Response:
        address = request.path
        if requests.has(request, tags[address]):
            answer = web.Response(status=304, headers=HEADERS)
        else:
            kind, body = TYPES[Path(SHORT.get(address, address)).suffix], files[address]
            headers = HEADERS | {"Content-Length": str(len(body))}
            answer = web.Response(body=_pieces(body), content_type=kind, charset="utf-8", headers=headers)
        answer.etag = tags[address]
        return answer

    return [
        *(web.get(address, file) for address in sorted(files)),
        web.get("/problems", problems),
        web.get("/problems/{kind}", problem),
    ]


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    """Give a file as it is taken: whole, aiohttp would copy it for each who is slow."""
    for start in range(0, len(content), PIECE_BYTES):
        yield content[start : start + PIECE_BYTES]


async def problems(request: web.Request) -> web.Response:
    """Give all types of problems."""
    rows = "\n".join(
        f'<tr><td><a href="{BASE}{kind}">{kind}</a><td>{STATUS[kind]}<td>{escape(meaning.cause)}'
        for kind, meaning in ALL.items()
    )
    body = f"<table>\n<tr><th>Type<th>Status<th>Cause\n{rows}\n</table>"
    return _page(request, "Problems", body, {"problems": [_said(kind) for kind in ALL]})


async def problem(request: web.Request) -> web.Response:
    """Give a type of problem: its cause, its cure, and which routes have it."""
    kinds = {kind.value: kind for kind in ALL}
    kind = kinds.get(request.match_info["kind"])
    if kind is None:
        raise web.HTTPNotFound
    said = _said(kind)
    routes = "\n".join(f"<li><code>{escape(route)}</code>" for route in said["routes"])
    body = (
        f"<p><code>{said['type']}</code>, status {said['status']}\n"
        f"<h2>Cause</h2>\n<p>{escape(said['cause'])}\n<h2>Cure</h2>\n<p>{escape(said['cure'])}\n"
        f'<h2>Routes that answer with it</h2>\n<ul>\n{routes}\n</ul>\n<p><a href="/problems">All problems</a>'
    )
    return _page(request, said["title"], body, said)


def _said(kind: Kind) -> dict[str, Any]:
    routes = [f"{operation.method} {operation.path}" for operation in OPERATIONS if kind in problems_of(operation)]
    meaning = ALL[kind]
    return {
        "type": BASE + kind,
        "title": title(kind),
        "status": STATUS[kind],
        "cause": meaning.cause,
        "cure": meaning.cure,
        "routes": routes,
    }


def _page(request: web.Request, heading: str, body: str, said: dict[str, Any]) -> web.Response:
    """Answer with a page, or with what stands on it as JSON for whoever asks for that."""
    headers = HEADERS | {"Vary": "Accept"}
    if JSON in request.headers.get("Accept", ""):
        return web.Response(body=encode(said), content_type=JSON, headers=headers)
    html = PAGE.format(title=escape(heading), body=body)
    return web.Response(text=html, content_type="text/html", charset="utf-8", headers=headers)
