"""A service with a worker that all tests of this folder share, and databases of a consumer's own."""

import psycopg
import pytest

from tests.support.databases import postgresql
from tests.support.service import Service

__all__ = ["postgresql"]


@pytest.fixture(scope="package")
def working(bootstrap_servers, tmp_path_factory, users):
    """Provide a service whose worker runs; each test has orders of its own."""
    with Service(bootstrap_servers, tmp_path_factory.mktemp("sdk"), users) as made:
        made.start_worker().wait_ready()
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    """Return the place of a database in which nothing is."""
    if request.param == "sqlite":
        return f"{tmp_path}/consumer.db"
    url = request.getfixturevalue("postgresql").set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return url


@pytest.fixture
def group(service):
    """Return the name of a group that no other test has."""
    return f"{service.app_id}.mailer"
