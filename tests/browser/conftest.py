"""One shop and one browser for all tests of a file; each test has orders and a page of its own."""

import pytest

from tests.browser.chromium import running_chromium, visit
from tests.web.shop import running_shop


@pytest.fixture(scope="module")
def shop(bootstrap_servers, tmp_path_factory, users):
    with running_shop(bootstrap_servers, tmp_path_factory.mktemp("shop"), users) as running:
        yield running


@pytest.fixture(scope="module")
def http(shop):
    """A caller of an HTTP server without authentication, on loopback: it may do everything."""
    return shop.serve()[0]


@pytest.fixture(scope="module")
def browser(shop):
    """Start it when the shop runs: while it is there, an event loop seems to run in this thread."""
    with running_chromium() as running:
        yield running


@pytest.fixture
def visited(browser, http):
    with visit(browser, f"http://127.0.0.1:{http.port}") as opened:
        yield opened


@pytest.fixture
def page(visited):
    return visited.page
