"""One shop for all tests of a file: each test has orders of its own."""

import pytest

from tests.web.shop import running_shop


@pytest.fixture(scope="module")
def shop(bootstrap_servers, tmp_path_factory, users):
    with running_shop(bootstrap_servers, tmp_path_factory.mktemp("shop"), users) as running:
        yield running


@pytest.fixture(scope="module")
def http(shop):
    """A caller of an HTTP server without authentication, on loopback: it may do everything."""
    return shop.serve()[0]
