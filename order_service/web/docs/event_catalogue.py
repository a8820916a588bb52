"""The contracts for those who read our topics: the catalogue of events as a page, and the AsyncAPI document.

The page is made from the same blocks as `docs/events.md` and has no script. AsyncAPI's own page is a script of 3 MB
that compiles schemas with `new Function`, and our policy allows no page to do that.
"""

from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Final

from aiohttp import web

from order_service.contracts import asyncapi, blocks, catalogue, words
from order_service.contracts.source import Source
from order_service.kafka.topics import TopicNames
from order_service.web.docs.pages import HEADERS, PAGE
from order_service.web.http import requests
from order_service.web.http.responses import JSON

Handler = Callable[[web.Request], Awaitable[web.Response]]

HEAD: Final = """\
<link rel="stylesheet" href="/static/contracts.css">
<p>For programs: <a href="/asyncapi.json">AsyncAPI</a> and <a href="/schema-registry/subjects">schemas</a>.
"""


def routes(names: TopicNames, partitions: int) -> list[web.RouteDef]:
    """Give the routes of the page and of the document, both made once. They need no token: they tell of no order."""
    source = Source(names, partitions)
    return [
        web.get("/asyncapi", _served(page(source), "text/html")),
        web.get("/asyncapi.json", _served(asyncapi.text(source), JSON)),
    ]


def page(source: Source) -> str:
    """Make the page."""
    _, *rest = catalogue.blocks(source)  # the first block is the title
    return PAGE.format(title=words.TITLE, body=HEAD + blocks.html(rest))


def _served(text: str, kind: str) -> Handler:
    body = text.encode()
    tag = sha256(body).hexdigest()

    async def serve(request: web.Request) -> web.Response:
        if requests.has(request, tag):
            answer = web.Response(status=304, headers=HEADERS)
        else:
            answer = web.Response(body=body, content_type=kind, charset="utf-8", headers=HEADERS)
        answer.etag = tag
        return answer

    return serve
