"""The command line in this process, and a service with a worker that all tests of this folder share."""

import json
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from order_service.cli import app
from tests.service import Service, StubThread


class CommandLine:
    """Runs `order-service` with an environment of its own; `json` gives the objects that it printed."""

    def __init__(self, environment):
        self.environment = environment

    def __call__(self, *arguments, code=0, stdin=None):
        words = [str(part) for part in arguments]
        with patch("order_service.runtime.logs.configure"):  # the log of this process is that of all tests
            result = CliRunner().invoke(app, words, env=self.environment, prog_name="cli", input=stdin)
        assert result.exit_code == code, result.output
        return result

    def json(self, *arguments, code=0):
        return [json.loads(line) for line in self(*arguments, "--json", code=code).stdout.splitlines()]


@pytest.fixture(scope="module")
def service(bootstrap_servers, tmp_path_factory):
    with StubThread() as users, Service(bootstrap_servers, tmp_path_factory.mktemp("cli"), users) as made:
        made.start_worker().wait_ready()
        yield made


@pytest.fixture(scope="module")
def cli(service):
    return CommandLine(service.environment)


@pytest.fixture
def clean_environment(monkeypatch):
    """Without the settings of whoever runs the tests."""
    for name in ("KAFKA_BOOTSTRAP_SERVERS", "USER_SERVICE_URL", "ORDERS_KAFKA", "ORDERS_PARTITIONS"):
        monkeypatch.delenv(name, raising=False)
