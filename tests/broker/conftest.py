"""A broker that a test may stop, kill, start again or damage."""

import pytest

from tests.support.kafka import running_broker


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    """Provide a broker of its own to each file that asks for one."""
    with running_broker(tmp_path_factory.mktemp("own-kafka")) as own:
        yield own
