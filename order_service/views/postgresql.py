"""PostgreSQL, also through a pooler that may run each transaction in another session: PgBouncer, RDS Proxy, Neon.

Nothing relies on a session: there are no start-up options and no prepared statements, and every transaction and every
query sends its settings along, in the round trip that it needs anyway.
Source: PgBouncer, "SQL feature map for pooling modes".
"""

from typing import Any, Final, Self

from psycopg import ClientCursor, Error, OperationalError, ProgrammingError
from psycopg.abc import Params, Query
from sqlalchemy import URL, Engine, create_engine, event, inspect
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from order_service.errors import DatabaseError

BUSY_S: Final = 10.0
"""How long a statement may take or wait for a lock, and how long connecting may take."""

IDLE_S: Final = BUSY_S
"""How long a transaction of a projector may be open without a statement. PostgreSQL then ends its session: a projector
that hangs there must not keep its locks."""

PERMISSION_DENIED: Final = "42501"
NO_SCHEMA: Final = "3F000"

TELLING_CLASSES: Final = frozenset({"08", "0A", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "XX"})
"""The classes of SQLSTATE whose messages name objects, settings and limits; those of others may quote values of rows.
Source: PostgreSQL, "Error Codes"."""
SYNTAX_ERROR: Final = "42601"
"""Its message quotes the statement, which holds values."""


def open_postgresql(url: URL, schema: str, *, writes: bool) -> Engine:
    """Return an engine. Without `writes`, a query is one round trip, without a transaction of its own."""
    limit_ms = round(BUSY_S * 1000)
    preamble = f"SET LOCAL statement_timeout = {limit_ms}; SET LOCAL lock_timeout = {limit_ms}; "
    if schema:
        preamble += f"SET LOCAL search_path = {quoted(schema)}; "
    arguments: dict[str, Any] = {
        "autocommit": True,  # transactions begin below
        "prepare_threshold": None,
        "client_encoding": "utf8",  # whatever PGCLIENTENCODING is
        "connect_timeout": round(BUSY_S),
        "tcp_user_timeout": limit_ms,
        "keepalives_idle": round(BUSY_S / 2),  # for a lost host
        "keepalives_interval": round(BUSY_S / 2),
    }
    if not writes:
        arguments["cursor_factory"] = _reading_cursor(preamble)
    engine = create_engine(
        url, hide_parameters=True, connect_args=arguments, pool_pre_ping=writes, use_native_hstore=False
    )
    if writes:
        idle = f"SET LOCAL idle_in_transaction_session_timeout = {round(IDLE_S * 1000)}; "
        begin = f"BEGIN; SET LOCAL synchronous_commit = off; {idle}{preamble}"  # rows lost in a crash are folded again

        @event.listens_for(engine, "begin")
        def begun(connection: Connection) -> None:
            connection.exec_driver_sql(begin, execution_options={"no_parameters": True})

    return engine


def _reading_cursor(preamble: str) -> type[ClientCursor[Any]]:
    """Return the class of cursors that send this preamble with every query.

    PostgreSQL runs the statements of one message in one transaction, to which `SET LOCAL` applies.
    Source: PostgreSQL, "Multiple Statements in a Simple Query".
    """

    class ReadingCursor(ClientCursor[Any]):
        def execute(
            self, query: Query, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
        ) -> Self:
            super().execute(preamble + self.mogrify(query, params), prepare=prepare, binary=binary)
            while self.nextset():
                pass
            return self

    return ReadingCursor


def create_schema(connection: Connection, schema: str) -> None:
    """Create a schema if it does not exist. Raises DatabaseError if the role may not create it."""
    if inspect(connection).has_schema(schema):
        return
    name = quoted(schema)
    try:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}", execution_options={"no_parameters": True})
    except DBAPIError as error:
        if sqlstate(error) != PERMISSION_DENIED:
            raise
        how = f'create it: CREATE SCHEMA {name} AUTHORIZATION "<role>"'
        raise DatabaseError(f"ORDERS_DATABASE_SCHEMA: {name} does not exist, and the role may not {how}") from error


def quoted(identifier: str) -> str:
    """Return an identifier in double quotes."""
    return '"' + identifier.replace('"', '""') + '"'


def sqlstate(error: DBAPIError) -> str:
    """Return the SQLSTATE of a PostgreSQL error, or an empty text for one of the connection or of SQLite."""
    return (error.orig.sqlstate or "") if isinstance(error.orig, Error) else ""


def message(error: DBAPIError) -> str:
    """Return what the server or the connection said, on one line; an empty text if it may hold values of rows."""
    cause = error.orig
    if not isinstance(cause, Error):
        return ""
    if cause.sqlstate is None:  # the connection, or a parameter of the URL: the client library's text has no values
        return " ".join(str(cause).split()) if isinstance(cause, (OperationalError, ProgrammingError)) else ""
    if cause.sqlstate[:2] not in TELLING_CLASSES or cause.sqlstate == SYNTAX_ERROR:
        return ""
    return " ".join((cause.diag.message_primary or "").split())
