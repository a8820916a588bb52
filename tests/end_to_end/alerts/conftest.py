"""A service whose alerts a test fires."""

from typing import Any

import pytest

from tests.support.databases import postgresql
from tests.support.prometheus import LIMITS, Watch
from tests.support.service import Service

__all__ = ["postgresql", "watch"]


@pytest.fixture
def watch(request, bootstrap_servers, tmp_path, users):
    """Watch a service with the settings that the test declares; views are in a file."""
    settings: dict[str, Any] = request.function.settings
    views: dict[str, Any] = {"ORDERS_DATABASE_URL": f"sqlite:///{tmp_path}/views.db", "ORDERS_LOG": "json"}
    with Service(bootstrap_servers, tmp_path, users, **views, **settings) as service:
        yield Watch(service, {name: settings[name] for name in LIMITS}, tmp_path)
