"""The page of the contracts: ours alone, without any script, and with all that the catalogue has."""

from html.parser import HTMLParser

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from order_service.contracts import asyncapi, blocks
from order_service.contracts.blocks import Bullets, Code, Heading, Table, Text
from order_service.contracts.source import Source
from order_service.kafka.topics import topic_names
from order_service.web.docs import event_catalogue, pages
from tests.unit.contracts.written import sections

NAMES = topic_names("t.")


class Page(HTMLParser):
    """What a browser would find on a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)

    def all(self, *names):
        return [value for name, value in self.attributes if name in names]


@pytest.fixture
async def http():
    application = web.Application()
    application.add_routes([*pages.routes(""), *event_catalogue.routes(NAMES, 4)])
    async with TestClient(TestServer(application)) as client:
        yield client


async def test_the_page_is_served_under_a_policy_that_allows_no_script_of_its_own(http):
    answer = await http.get("/asyncapi")
    assert (answer.status, answer.content_type) == (200, "text/html")
    assert answer.headers["Content-Security-Policy"] == pages.CSP
    page = Page(await answer.text())
    assert page.tags.isdisjoint({"script", "style", "iframe", "object", "base", "form"})
    assert [name for name, _ in page.attributes if name == "style" or name.startswith("on")] == []


async def test_the_page_leads_nowhere_else_and_all_that_it_loads_is_there(http):
    page = Page(await (await http.get("/asyncapi")).text())
    addresses = page.all("href", "src")
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert {address.removeprefix("#") for address in addresses if address.startswith("#")} <= set(ids)
    elsewhere = {address for address in addresses if not address.startswith("#")}
    assert elsewhere == {
        "/",
        "/operations",
        "/docs",
        "/asyncapi",
        "/problems",
        "/static/icon.svg",
        "/static/frame.css",
        "/static/documents.css",
        "/asyncapi.json",
        "/schema-registry/subjects",
    }
    for address in elsewhere - {"/schema-registry/subjects"}:
        assert (await http.get(address)).status == 200


async def test_the_page_has_every_section_of_the_catalogue_and_its_examples(http):
    text = "".join(Page(await (await http.get("/asyncapi")).text()).text)
    for title, section in sections().items():
        assert title in text
        assert all(block in text for block in section.code.get("text", []))


async def test_the_document_is_served_with_the_topics_of_this_service(http):
    answer = await http.get("/asyncapi.json")
    assert answer.content_type == "application/json"
    assert await answer.text() == asyncapi.text(Source(NAMES, 4))
    events = (await answer.json())["channels"]["events"]
    assert (events["address"], events["bindings"]["kafka"]["partitions"]) == ("t.orders.events.v1", 4)


@pytest.mark.parametrize("path", ["/asyncapi", "/asyncapi.json"])
async def test_who_has_it_is_told_so_and_not_sent_it_again(http, path):
    tag = (await http.get(path)).headers["ETag"]
    again = await http.get(path, headers={"If-None-Match": tag})
    assert (again.status, await again.read(), again.headers["ETag"]) == (304, b"", tag)


HOSTILE = "<b>&|"


@pytest.mark.parametrize("block", [Heading(2, HOSTILE), Text(HOSTILE), Bullets([HOSTILE]), Code("text", HOSTILE)])
def test_text_is_never_markup(block):
    assert "&lt;b&gt;&amp;|" in blocks.html([block])


def test_code_and_links_are_escaped_within_a_cell():
    table = Table(["a|b"], [["`<b>|` [<i>](/x?a&b)"]])
    assert blocks.html([table]) == (
        '<table>\n<tr><th>a|b\n<tr><td><code>&lt;b&gt;|</code> <a href="/x?a&amp;b">&lt;i&gt;</a>\n</table>'
    )
    assert blocks.markdown([table]) == "| a\\|b |\n| --- |\n| `<b>\\|` [&lt;i>](/x?a&b) |\n"
