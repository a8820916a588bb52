"""The tables: rows to search by, and documents (JSON) of what stands in them. SQLite, or PostgreSQL.

Free text stands in documents alone, where NUL is escaped: PostgreSQL takes none in a column. Times are milliseconds
since 1970 UTC.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import stamina
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
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from order_service.errors import DatabaseError, NoViewsError
from order_service.settings import Settings
from order_service.wire.avro_writer import EPOCH, MILLISECOND

FORM: Final = 7
"""The form of these tables and documents. Raise it with every change: views of another form are built again."""

FORMER: Final = ("commands",)
"""Tables of older forms, which this one does not have any more."""

BUSY_S: Final = 10.0
"""How long a statement waits for another process that writes, and how long a server may take to let us in."""

DRIVERS: Final = {
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
"""What the URL of a database may begin with, and whom it means."""

_metadata: Final = MetaData()

form: Final = Table(
    "view_form",
    _metadata,
    Column("form", Integer, primary_key=True, autoincrement=False),
    Column("is_built", Boolean, nullable=False),
)

_FORM_OF: Final = select(form.c.form)

positions: Final = Table(
    "view_positions",
    _metadata,
    Column("topic", String, primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("next_offset", BigInteger, nullable=False),
    Column("complete_offset", BigInteger, nullable=False),
    Column("fault", Text),
    Column("is_lost", Boolean, nullable=False),
)
"""How far the views have read each partition. `fault` says why they do not take the record at `next_offset`; if it
`is_lost`, the log does not hold what follows, and the partition is not tried again by itself.

Of the rejections, `complete_offset` is an offset of the same partition of the events: all refusals that were committed
before or with an event below it are in the views."""

orders: Final = Table(
    "orders",
    _metadata,
    Column("order_id", String, primary_key=True),
    Column("user_id", String, nullable=False),
    Column("status", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("head", LargeBinary, nullable=False),
    Column("document", Text, nullable=False),
    Index("orders_by_time", "created_at", "order_id"),
    Index("orders_by_user", "user_id", "created_at", "order_id"),
    Index("orders_by_user_and_status", "user_id", "status", "created_at", "order_id"),
    Index("orders_by_status", "status", "created_at", "order_id"),
)

order_events: Final = Table(
    "order_events",
    _metadata,
    Column("order_id", String, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("user_id", String, nullable=False),
    Column("command_id", String, nullable=False),
    Column("occurred_at", BigInteger, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("command_offset", BigInteger),
    Column("document", Text, nullable=False),
    Index("order_events_by_place", "partition", "offset", unique=True),
    Index("order_events_by_user", "user_id", "partition", "offset"),
)

refusals: Final = Table(
    "refusals",
    _metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    Column("order_id", String, nullable=False),
    Column("command_id", String, nullable=False),
    Column("command_digest", LargeBinary, nullable=False),
    Column("command_offset", BigInteger),
    Column("is_momentary", Boolean, nullable=False),
    Column("document", Text, nullable=False),
    Index("refusals_by_command", "order_id", "command_id", "offset"),
    Index("refusals_by_order", "order_id", "offset"),
)
"""Every refusal. A command may have several, one for each copy of it, and may have been accepted before or after.

One that `is_momentary` has a reason that no order remembers (`NEVER_REMEMBERED`).

All refusals of an order lie in one partition, so their offsets say which came first; clocks of workers do not.
"""


def database_of(settings: Settings) -> URL:
    """Say where the views are: ORDERS_DATABASE_URL, else a file in the data directory. DatabaseError if it is none."""
    given = settings.database_url.get_secret_value() or f"sqlite:///{settings.data_dir}/views.db"
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        raise DatabaseError("ORDERS_DATABASE_URL is no URL of a database") from None  # its cause may hold a password
    if url.drivername not in DRIVERS:
        raise DatabaseError(f"ORDERS_DATABASE_URL is of {url.drivername}, not one of {', '.join(DRIVERS)}")
    if url.drivername == "sqlite" and url.database in {None, "", ":memory:"}:
        raise DatabaseError("ORDERS_DATABASE_URL names no file: several processes read it")
    return url.set(drivername=DRIVERS[url.drivername])


def open_database(url: URL, *, writes: bool = False) -> Engine:
    """Connect to a database.

    For one that `writes`, SQLite's lock is taken when a transaction begins, not in its middle; who only reads has no
    transactions: each statement sees what is committed, and is one round trip to PostgreSQL, not four.
    """
    if url.get_backend_name() == "postgresql":
        within_ms = round(BUSY_S * 1000)
        options = f"-c synchronous_commit=off {url.query.get('options', '')}"  # what a crash takes is folded again
        options += f" -c statement_timeout={within_ms} -c lock_timeout={within_ms}"
        given = {"connect_timeout": round(BUSY_S), "tcp_user_timeout": within_ms, "options": options}
        given |= {"keepalives_idle": round(BUSY_S / 2), "keepalives_interval": round(BUSY_S / 2)}  # a host may be gone
        how: dict[str, Any] = {"pool_pre_ping": True} if writes else {"isolation_level": "AUTOCOMMIT"}
        return create_engine(url, hide_parameters=True, connect_args=given, **how)
    file = Path(str(url.database))
    file.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # a transaction begins below, if at all, not where Python's driver thinks
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        record.info["file"] = _identity(file)

    @event.listens_for(engine, "checkout")
    def checked_out(_connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        if record.info["file"] != _identity(file):
            raise DisconnectionError("the file of the views was removed: SQLite would write on where nobody reads")

    if writes:

        @event.listens_for(engine, "begin")
        def begun(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def prepare(engine: Engine) -> bool:
    """Make the tables, if they are not there in this form, on an engine that `writes`; tell whether they were made.

    Raises DatabaseError for tables of a newer form, and for tables of these names that are not ours.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7274496, 1)")  # one process at a time
        there = _metadata.tables.keys() & set(inspect(connection).get_table_names())
        if there and form.name not in there:
            raise DatabaseError(f"the database has tables of these names that are not ours: {', '.join(sorted(there))}")
        found = form_of(connection) if there else 0
        if found > FORM:
            raise DatabaseError(f"the views have form {found}, this version makes form {FORM}: it is too old")
        if found == FORM:
            return False
        _metadata.drop_all(connection)
        if found > 0:  # else they are not ours
            for name in FORMER:
                connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}")
        _metadata.create_all(connection)
        connection.execute(form.insert().values(form=FORM, is_built=False))
    return True


@contextmanager
def views_there(url: URL, *, writes: bool = False) -> Iterator[Engine]:
    """Open a database that holds views of this form. Raises NoViewsError if it does not, and makes no file then."""
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        raise NoViewsError("there are no views here yet: no projector has made them")
    engine = open_database(url, writes=writes)
    try:
        with said_in_one_line():
            with engine.begin() as connection:
                is_there = inspect(connection).has_table(form.name)
                found = form_of(connection) if is_there else 0
            if not is_there:
                raise NoViewsError("there are no views here yet: no projector has made them")
            if found != FORM:
                raise NoViewsError(f"the views have form {found}, this version reads form {FORM}")
            yield engine
    finally:
        engine.dispose()


def form_of(connection: Connection) -> int:
    """Read which form the tables have."""
    return connection.scalar(_FORM_OF) or 0


@contextmanager
def said_in_one_line() -> Iterator[None]:
    """Raise DatabaseError for what a database raises; not its message, for a driver's may hold values of rows."""
    try:
        yield
    except SQLAlchemyError as error:
        kind = type(error.orig if isinstance(error, DBAPIError) else error).__name__
        raise DatabaseError(f"the database of ORDERS_DATABASE_URL does not serve us: {kind}") from error


def _is_locked(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


@stamina.retry(on=_is_locked, timeout=BUSY_S, attempts=None, wait_initial=0.01, wait_max=0.2)
def _write_ahead(connection: Any) -> None:
    """Let readers read while the projector writes. SQLite does not wait here while others open the file."""
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        connection.execute("PRAGMA journal_mode = WAL")


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def milliseconds(moment: datetime) -> int:
    """Count the milliseconds since 1970 UTC."""
    return (moment - EPOCH) // MILLISECOND


def milliseconds_from(moment: datetime) -> int:
    """Count them, rounded up: what is not before a moment is not before these."""
    return -((EPOCH - moment) // MILLISECOND)
