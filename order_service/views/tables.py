"""The tables: rows to search by, and documents (JSON) of what stands in them. SQLite, or PostgreSQL.

Free text stands in documents alone, where NUL is escaped: PostgreSQL takes none in a column. Times are milliseconds
since 1970 UTC.
"""

from datetime import datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Column,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    inspect,
    select,
)
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import ArgumentError

from order_service.errors import DatabaseError
from order_service.settings import Settings
from order_service.wire.writer import EPOCH, MILLISECOND

FORM: Final = 1
"""The form of these tables and documents. Raise it with every change: views of another form are built again."""

BUSY_S: Final = 30.0
"""How long SQLite waits for another process that writes."""

_metadata: Final = MetaData()

form: Final = Table("view_form", _metadata, Column("form", Integer, primary_key=True, autoincrement=False))

positions: Final = Table(
    "view_positions",
    _metadata,
    Column("topic", String, primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("next_offset", BigInteger, nullable=False),
)

orders: Final = Table(
    "orders",
    _metadata,
    Column("order_id", String, primary_key=True),
    Column("user_id", String, nullable=False),
    Column("status", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("version", Integer, nullable=False),
    Column("head", LargeBinary, nullable=False),
    Column("document", Text, nullable=False),
    Index("orders_by_time", "created_at", "order_id"),
    Index("orders_by_user", "user_id", "created_at", "order_id"),
    Index("orders_by_status", "status", "created_at", "order_id"),
)

order_events: Final = Table(
    "order_events",
    _metadata,
    Column("order_id", String, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("occurred_at", BigInteger, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("command_offset", BigInteger),
    Column("document", Text, nullable=False),
)

commands: Final = Table(
    "commands",
    _metadata,
    Column("order_id", String, primary_key=True),
    Column("command_id", String, primary_key=True),
    Column("command_digest", LargeBinary, primary_key=True),
    Column("is_accepted", Boolean, nullable=False),
    Column("version", Integer, nullable=False),
    Column("document", Text),
)


def database_of(settings: Settings) -> URL:
    """Say where the views are: ORDERS_DATABASE_URL, else a file in the data directory. DatabaseError if it is none."""
    given = settings.database_url.get_secret_value() or f"sqlite:///{settings.data_dir}/views.db"
    try:
        url = make_url(given)
    except ArgumentError as error:
        raise DatabaseError("ORDERS_DATABASE_URL is no URL of a database") from error
    if url.drivername in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise DatabaseError(f"ORDERS_DATABASE_URL is of {url.get_backend_name()}: SQLite and PostgreSQL are known")
    return url


def open_database(url: URL, *, writes: bool = False) -> Engine:
    """Connect to a database; one that `writes` takes SQLite's lock when a transaction begins, not in its middle."""
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True, hide_parameters=True)
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_S}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions begin below, not where Python's driver thinks
        connection.execute("PRAGMA journal_mode = WAL")  # readers do not wait for the projector
        connection.execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def prepare(engine: Engine) -> bool:
    """Make the tables, if they are not there in this form; tell whether they were made, and are empty."""
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7274496, 1)")  # one process at a time
        if inspect(connection).has_table(form.name) and connection.scalar(select(form.c.form)) == FORM:
            return False
        _metadata.drop_all(connection)
        _metadata.create_all(connection)
        connection.execute(form.insert().values(form=FORM))
    return True


def milliseconds(moment: datetime) -> int:
    """Count the milliseconds since 1970 UTC."""
    return (moment - EPOCH) // MILLISECOND
