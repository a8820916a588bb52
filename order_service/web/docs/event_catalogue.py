"""The contracts for consumers of the topics: the event catalogue as a page, and the AsyncAPI document.

The page is built from the same blocks as `docs/events.md` and has no script. AsyncAPI's own page is a 3 MB script that
compiles schemas with `new Function`, which our Content-Security-Policy forbids.
"""

from typing import Final

from aiohttp import web

from order_service.contracts import asyncapi, blocks, catalogue, words
from order_service.contracts.source import Source
from order_service.kafka.topics import TopicNames
from order_service.web.docs.pages import PAGE, built, file_handler
from order_service.web.http.responses import JSON

HEAD: Final = """\
<p>For programs: <a href="/asyncapi.json">AsyncAPI</a> and <a href="/schema-registry/subjects">schemas</a>.
Commands and queries over HTTP: <a href="/docs">API</a>.
"""


def routes(names: TopicNames, partitions: int, base_path: str = "") -> list[web.RouteDef]:
    """Return the routes of the page and of the document, built once. They need no token: they hold no order data."""
    source = Source(names, partitions)
    return [
        web.get("/asyncapi", file_handler(built(page(source), base_path).encode(), "text/html")),
        web.get("/asyncapi.json", file_handler(asyncapi.text(source).encode(), JSON)),
    ]


def page(source: Source) -> str:
    """Return the HTML of the page."""
    _, *rest = catalogue.blocks(source)  # the first block is the title
    return PAGE.format(title=words.TITLE, body=HEAD + blocks.html(rest))
