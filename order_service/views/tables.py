"""The tables of the views, on SQLite or PostgreSQL: columns to search by, and JSON documents with the contents.

Free text is only in documents, where NUL is escaped: PostgreSQL does not accept NUL in a text column. Ids are compared
and sorted code point by code point. Times are milliseconds since 1970 UTC.
"""

import sqlite3
from collections.abc import Collection, Iterator
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
    ColumnElement,
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
    literal_column,
    select,
)
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from order_service.errors import DatabaseError, NoViewsError
from order_service.settings import Settings
from order_service.views.postgresql import (
    BUSY_S,
    NO_SCHEMA,
    PERMISSION_DENIED,
    create_schema,
    message,
    open_postgresql,
    sqlstate,
)
from order_service.wire.avro_codegen import EPOCH, MILLISECOND

FORM: Final = 11
"""The version of these tables and documents. Raise it with every change: views of an older form are rebuilt."""

FORMER: Final = ("commands",)
"""Tables of older forms that no longer exist."""

DRIVERS: Final = {
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
"""The scheme of a database URL, and the SQLAlchemy driver for it."""

IdText: Final = String().with_variant(String(collation="C"), "postgresql")
"""The type of an id: compared by bytes of UTF-8, as SQLite does by itself. A locale's collation changes with the
operating system, which damages the indexes."""

_metadata: Final = MetaData()

_kept: Final = MetaData()
"""The tables that outlive a rebuild of the views, because the offsets of the log stay valid. Their columns cannot
change with `FORM`: a new layout needs a new name, and the old one in `FORMER`."""

form: Final = Table(
    "view_form",
    _metadata,
    Column("form", Integer, primary_key=True, autoincrement=False),
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
    Column("is_built", Boolean, nullable=False),
    Column("has_skipped", Boolean, nullable=False),
)
"""The position of the views in each partition. `fault` is the reason why the record at `next_offset` cannot be applied.
If the partition `is_lost`, its log lacks the records that should follow, and it is not retried automatically. It
`is_built` once the views hold what its log held when its projector started. It `has_skipped` if an operator has skipped
a record of it: the views lack rows below the position.

For the rejections, `complete_offset` is an offset of the same partition of the events. All rejections that were
committed before or with an event below that offset are in the views."""

projectors: Final = Table(
    "view_projectors",
    _metadata,
    Column("projector_count", Integer, primary_key=True, autoincrement=False),
    Column("projector_index", Integer, primary_key=True, autoincrement=False),
    Column("seen_at_s", BigInteger, nullable=False),
)
"""The projectors that run or ran, each with the seconds since 1970 UTC, by the database's clock, when it was last seen.
No two projectors write to one row, except where one replaces another."""

orders: Final = Table(
    "orders",
    _metadata,
    Column("order_id", IdText, primary_key=True),
    Column("user_id", IdText, nullable=False),
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
    Column("order_id", IdText, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("user_id", IdText, nullable=False),
    Column("command_id", IdText, nullable=False),
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
    Column("order_id", IdText, nullable=False),
    Column("command_id", IdText, nullable=False),
    Column("command_digest", LargeBinary, nullable=False),
    Column("command_offset", BigInteger),
    Column("is_momentary", Boolean, nullable=False),
    Column("document", Text, nullable=False),
    Index("refusals_by_command", "order_id", "command_id", "offset"),
    Index("refusals_by_order", "order_id", "offset"),
)
"""All rejections. A command may have several, one for each copy, and a copy may have been accepted before or after.

A rejection that `is_momentary` has a reason that orders do not remember (`NEVER_REMEMBERED`).

All rejections of an order are in one partition, so their offsets give their order; the clocks of workers do not.
"""


checkpoints: Final = Table(
    "view_checkpoints",
    _kept,
    Column("total", BigInteger, primary_key=True, autoincrement=False),
    Column("checkpoint_id", String, nullable=False),
    Column("anchor_id", String, nullable=False),
    Column("stored_at_s", BigInteger, nullable=False),
    Column("is_hourly", Boolean, nullable=False),
    Column("offsets", LargeBinary, nullable=False),
    Index("view_checkpoints_by_id", "checkpoint_id", unique=True),
    Index("view_checkpoints_by_age", "is_hourly", "stored_at_s"),
)
"""Positions of the views in all partitions of the events (`checkpoints.py`): the next offsets as MessagePack, and their
sum. `stored_at_s` is by the database's clock, and only decides how long a checkpoint is kept."""

LOCK_ORDER: Final = (positions, projectors, form)
"""The order in which each transaction of a projector uses these tables, before all others that it uses. Who drops them
locks them in the same order, so that PostgreSQL finds no deadlock."""


def database_of(settings: Settings) -> URL:
    """Return ORDERS_DATABASE_URL, or a file in the data directory without it. Raises DatabaseError if it is invalid."""
    configured = settings.database_url.get_secret_value() or f"sqlite:///{settings.data_dir}/views.db"
    try:
        url = make_url(configured)
    except (ArgumentError, ValueError):
        raise DatabaseError("ORDERS_DATABASE_URL is not a database URL") from None  # its cause may hold a password
    if url.drivername not in DRIVERS:
        raise DatabaseError(f"ORDERS_DATABASE_URL has driver {url.drivername}, expected one of {', '.join(DRIVERS)}")
    if "@" in (url.host or ""):  # the text before it would be the end of a password, and be logged as a host
        raise DatabaseError("ORDERS_DATABASE_URL: write an @ in the user name or the password as %40")
    if url.drivername == "sqlite" and settings.database_schema:
        raise DatabaseError("ORDERS_DATABASE_SCHEMA needs PostgreSQL, but ORDERS_DATABASE_URL leads to SQLite")
    if url.drivername == "sqlite" and url.database in {None, "", ":memory:"}:
        raise DatabaseError("ORDERS_DATABASE_URL must name a file, because several processes read it")
    return url.set(drivername=DRIVERS[url.drivername])


def open_database(url: URL, schema: str = "", *, writes: bool = False) -> Engine:
    """Return an engine for a database; `schema` is that of the tables in PostgreSQL, by default the first one there.

    With `writes`, a transaction takes SQLite's lock at its beginning, not at its first write. Without `writes` there
    are no transactions: each statement sees what is committed, and costs one round trip to PostgreSQL, not four.
    """
    if url.get_backend_name() == "postgresql":
        return open_postgresql(url, schema, writes=writes)
    file = Path(str(url.database))
    file.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # transactions begin below, not where Python's driver would begin them
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        record.info["file"] = _identity(file)

    @event.listens_for(engine, "checkout")
    def checked_out(_connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        if record.info["file"] != _identity(file):
            raise DisconnectionError("the file of the views was removed: SQLite would continue in the deleted file")

    if writes:

        @event.listens_for(engine, "begin")
        def begun(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def prepare(engine: Engine, schema: str = "") -> bool:
    """Create the tables, and their schema, if they do not exist in this form. Return whether they were created.

    The checkpoints outlive tables of an older form. An operator who removes the tables removes these, too, because the
    log may be another one.

    Raises DatabaseError for tables of a newer form, for tables of these names that this service did not create, and for
    a PostgreSQL database that cannot hold every character. The engine must have been opened with `writes`.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            _check_encoding(connection)
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7274496, 1)")  # one process at a time
            if schema:
                create_schema(connection, schema)
        ours = _metadata.tables.keys() | _kept.tables.keys()
        existing = ours & set(inspect(connection).get_table_names())
        if existing and form.name not in existing:
            names = ", ".join(sorted(existing))
            raise DatabaseError(f"the database has tables that this service did not create: {names}")
        actual = form_of(connection) if existing else 0
        if actual > FORM:
            reason = f"the views have schema version {actual}, this program supports {FORM}: install a newer release"
            raise DatabaseError(reason)
        if actual == FORM:
            return False
        if existing:
            _drop(connection, existing, has_former=actual > 0)
        try:
            _metadata.create_all(connection)
            _kept.create_all(connection)  # those that do not exist
        except DBAPIError as error:
            if sqlstate(error) not in {PERMISSION_DENIED, NO_SCHEMA}:
                raise
            why = f"{describe(error)}; set ORDERS_DATABASE_SCHEMA to a schema where the role may create tables"
            raise DatabaseError(f"the tables of the views cannot be created: {why}") from error
        connection.execute(form.insert().values(form=FORM))
    return True


def _drop(connection: Connection, existing: Collection[str], *, has_former: bool) -> None:
    """Drop the `existing` tables of an older form, which a projector may be writing to.

    `has_former` means that tables with the FORMER names are ours; another program may have created them.
    """
    if connection.dialect.name == "postgresql":
        for table in LOCK_ORDER:
            if table.name in existing:
                connection.exec_driver_sql(f"LOCK TABLE {table.name} IN ACCESS EXCLUSIVE MODE")
    _metadata.drop_all(connection)
    for name in FORMER if has_former else ():
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}")


def _check_encoding(connection: Connection) -> None:
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()  # not every pooler reports it by itself
    if encoding != "UTF8":
        raise DatabaseError(f"the database has the encoding {encoding}, expected UTF8: create it with ENCODING 'UTF8'")


@contextmanager
def open_views(url: URL, schema: str = "", *, writes: bool = False) -> Iterator[Engine]:
    """Open a database that holds views of this form. Raises NoViewsError if it does not; no file is created then."""
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        raise NoViewsError("there are no views here yet: no projector has created them")
    engine = open_database(url, schema, writes=writes)
    try:
        with translate_errors():
            with engine.begin() as connection:
                exists = inspect(connection).has_table(form.name)
                actual = form_of(connection) if exists else 0
            if not exists:
                raise NoViewsError("there are no views here yet: no projector has created them")
            if actual != FORM:
                raise NoViewsError(f"the views have schema version {actual}, this program supports {FORM}")
            yield engine
    finally:
        engine.dispose()


def database_time_s(engine: Engine) -> ColumnElement[int]:
    """Return the expression for the seconds since 1970 UTC by the clock of the database."""
    if engine.dialect.name == "postgresql":
        return literal_column("CAST(extract(epoch FROM clock_timestamp()) AS bigint)", BigInteger())
    return literal_column("CAST(strftime('%s', 'now') AS INTEGER)", BigInteger())


def form_of(connection: Connection) -> int:
    """Return the form of the tables, or 0 if none is recorded."""
    return connection.scalar(_FORM_OF) or 0


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise DatabaseError for an error of the database, with what it said."""
    try:
        yield
    except SQLAlchemyError as error:
        raise DatabaseError(f"the database of ORDERS_DATABASE_URL cannot be used: {describe(error)}") from error


def describe(error: SQLAlchemyError) -> str:
    """Return the kind of an error, its code, and the message of the server unless that may hold values of rows."""
    if not isinstance(error, DBAPIError):
        return type(error).__name__
    code = error.orig.sqlite_errorname if isinstance(error.orig, sqlite3.Error) else sqlstate(error)
    kind = f"{type(error.orig).__name__} ({code})" if code else type(error.orig).__name__
    said = message(error)
    return f"{kind}: {said}" if said else kind


def _is_locked(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


@stamina.retry(on=_is_locked, timeout=BUSY_S, attempts=None, wait_initial=0.01, wait_max=0.2)
def _write_ahead(connection: Any) -> None:
    """Enable write-ahead logging for concurrent readers. SQLite does not wait here for others that open the file."""
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        connection.execute("PRAGMA journal_mode = WAL")


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino


def milliseconds(moment: datetime) -> int:
    """Return the milliseconds since 1970 UTC, rounded down."""
    return (moment - EPOCH) // MILLISECOND


def milliseconds_from(moment: datetime) -> int:
    """Return the milliseconds since 1970 UTC, rounded up: a time that is not before `moment` is not before these."""
    return -((EPOCH - moment) // MILLISECOND)
