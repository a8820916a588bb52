"""A service with a worker for all tests of a file, and the command line beside it."""

import pytest

from tests.support.command_line import CommandLine
from tests.support.service import Service, StubThread


@pytest.fixture(scope="module")
def service(bootstrap_servers, tmp_path_factory):
    with StubThread() as users, Service(bootstrap_servers, tmp_path_factory.mktemp("cli"), users) as made:
        made.start_worker().wait_ready()
        yield made


@pytest.fixture(scope="module")
def cli(service):
    return CommandLine(service.environment)
