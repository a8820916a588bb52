"""Databases, all real: a SQLite file, and a PostgreSQL from the package registry, also behind a PgBouncer."""

import importlib.util
import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import make_url, text

from order_service.kafka.topics import topic_names
from order_service.views.projector import Projection
from order_service.views.queries import Views
from order_service.views.tables import open_database, prepare
from tests.support.postgresql import POSTGRESQL_BIN, PostgreSQL
from tests.support.proxies import running_pgbouncer


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory):
    """Provide the URL of a PostgreSQL of our own."""
    with running_postgresql(tmp_path_factory) as server:
        yield make_url(server.get_uri()).set(drivername="postgresql+psycopg")


@pytest.fixture(scope="session")
def pgbouncer(postgresql):
    """Provide the URL of the same PostgreSQL behind a PgBouncer that pools transactions."""
    with running_pgbouncer(postgresql) as url:
        yield url


@pytest.fixture
def postgresql_server(tmp_path_factory):
    """Provide a PostgreSQL that a test may kill."""
    with running_postgresql(tmp_path_factory) as server:
        yield server


@contextmanager
def running_postgresql(tmp_path_factory):
    """Run the PostgreSQL of `POSTGRESQL_BIN` if it is set, and else that of the package pgserver."""
    with TemporaryDirectory(prefix="orders-postgresql-") as place:  # another pytest locks others out of its directories
        if programs := os.environ.get(POSTGRESQL_BIN):
            server = PostgreSQL(Path(programs), Path(place))
        else:
            server = _packaged(Path(place), tmp_path_factory)
        yield server
        server.cleanup()


def _packaged(place, tmp_path_factory):
    if importlib.util.find_spec("pgserver") is None:
        pytest.fail(f"pgserver does not support this Python: set {POSTGRESQL_BIN} to the folder of another PostgreSQL")
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))  # where pgserver keeps its lock
    from pgserver.postgres_server import get_server  # noqa: PLC0415 - it looks for that place when imported

    return get_server(place, cleanup_mode="stop")


@pytest.fixture(params=["sqlite", "postgresql", "pgbouncer"])
def url(request, tmp_path):
    """Return the URL of a database in which nothing is."""
    if request.param == "sqlite":
        return make_url(f"sqlite:///{tmp_path}/views.db")
    admin = open_database(request.getfixturevalue("postgresql"))
    with admin.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    admin.dispose()
    return request.getfixturevalue(request.param)


@pytest.fixture
def engine(url):
    engine = open_database(url, writes=True)
    prepare(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def projection(engine):
    return Projection(engine, topic_names())


@pytest.fixture
def views(url, engine):
    reading = open_database(url)
    yield Views(reading, topic_names())
    reading.dispose()
