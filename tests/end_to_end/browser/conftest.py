"""One browser for all tests of a file, beside its shop; each test has orders and a page of its own."""

import pytest

from tests.support.chromium import running_chromium, visit


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
