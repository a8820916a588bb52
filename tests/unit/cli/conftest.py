"""The environment of the command line."""

import pytest


@pytest.fixture
def clean_environment(monkeypatch):
    """Remove the settings of the shell that runs the tests."""
    for name in ("KAFKA_BOOTSTRAP_SERVERS", "USER_SERVICE_URL", "ORDERS_KAFKA", "ORDERS_PARTITIONS"):
        monkeypatch.delenv(name, raising=False)
