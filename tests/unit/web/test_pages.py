"""Pages and their files come once: who has a file already is told so."""

import re

import pytest

from order_service.web.docs.pages import SHORT
from tests.support.alone import server_alone
from tests.support.shop import Http

BUNDLE = "/static/docs/swagger-ui-bundle.js"


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    with server_alone(tmp_path_factory.mktemp("alone")) as port:
        yield Http(port)


@pytest.mark.parametrize("path", [*SHORT, BUNDLE, "/static/orders.css"])
def test_who_has_a_file_is_told_so_and_not_sent_it_again(http, path):
    first = http.get(path)
    tag = first.headers["etag"]
    assert first.status == 200
    assert int(first.headers["content-length"]) > 0
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = http.ask("GET", path, If_None_Match=known)
        assert (again.status, again.body) == (304, b"")
        assert again.headers["etag"] == tag
        assert again.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("known", ['"other"', "other", "", '"'])
def test_who_has_another_file_is_sent_this_one(http, known):
    first = http.get(BUNDLE)
    again = http.ask("GET", BUNDLE, If_None_Match=known)
    assert again.status == 200
    assert again.body == first.body


def test_head_tells_of_a_file_what_get_does(http):
    given, told = http.get(BUNDLE), http.ask("HEAD", BUNDLE)
    for name in ("etag", "content-length", "content-type"):
        assert told.headers[name] == given.headers[name]
    assert told.body == b""


def test_files_differ_in_their_tags(http):
    assert len({http.get(path).headers["etag"] for path in SHORT}) == len(SHORT)


@pytest.mark.parametrize("path", ["/", "/operations", "/docs", "/asyncapi", "/problems", "/problems/not_paid"])
def test_every_page_has_the_same_header_and_leads_to_the_others(http, path):
    page = http.get(path).body.decode()
    [nav] = re.findall('<nav aria-label="Documents">(.*?)</nav>', page, re.DOTALL)
    assert re.findall('href="(.*?)">(.*?)<', nav) == [
        ("/operations", "Operations"),
        ("/docs", "API"),
        ("/asyncapi", "Events"),
        ("/problems", "Problems"),
    ]
    assert re.search('<a class="brand" href="(#?/)"><img src="/static/icon.svg" .*?>Orders</a>', page)
    for sheet in re.findall('<link rel="stylesheet" href="(.*?)">', page):
        assert http.get(sheet).status == 200
    assert '<link rel="stylesheet" href="/static/frame.css">' in page


def test_the_api_and_the_events_name_each_other(http):
    assert "(/asyncapi)" in http.get("/openapi.json").body["info"]["description"]
    assert 'over HTTP: <a href="/docs">API</a>' in http.get("/asyncapi").body.decode()
