"""A service of its own for each test, on the broker that all share."""

import pytest

from tests.service import Service, StubThread


@pytest.fixture(scope="session")
def users():
    with StubThread() as stub:
        yield stub


@pytest.fixture
def service(bootstrap_servers, tmp_path, users):
    with Service(bootstrap_servers, tmp_path, users) as made:
        yield made
