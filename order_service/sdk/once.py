"""Exactly-once processing in the consumer's own database: offsets are stored in the transaction of the results."""

import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final, Protocol

from order_service.errors import OvertakenError, SetupError
from order_service.sdk.events import EventRecord

TABLE: Final = "order_events_applied"
"""The table of positions, with the columns `name`, `partition`, `next_offset`."""
_PLACEHOLDERS: Final = {"qmark": "?", "format": "%s", "pyformat": "%s"}


class Cursor(Protocol):
    """The part of a DB-API cursor (PEP 249) that this module uses."""

    @property
    def rowcount(self) -> int:
        """The number of rows that the last statement changed."""

    def execute(self, statement: Any, values: Sequence[object] = ..., /) -> object:
        """Execute a statement with its parameters."""

    def fetchall(self) -> Sequence[Any]:
        """Return all rows of the result."""

    def close(self) -> None:
        """Close the cursor; it cannot be used afterwards."""


class Connection(Protocol):
    """The part of a DB-API connection (PEP 249) that this module uses; `sqlite3` and `psycopg` provide it."""

    def cursor(self) -> Cursor:
        """Return a new cursor of this connection."""

    def commit(self) -> None:
        """Commit the current transaction."""

    def rollback(self) -> None:
        """Roll back the current transaction."""


class Once:
    """The positions of one consumer in its own database. Create it with `once`."""

    def __init__(self, connection: Connection, name: str) -> None:
        if _commits_by_itself(connection):
            raise SetupError(
                "a connection in autocommit mode cannot commit an event and its position together: turn autocommit off"
            )
        self._connection = connection
        self._name = name
        self._driver = _driver_of(connection)
        self._mark = _PLACEHOLDERS[self._driver.paramstyle]
        self._at = self._load()

    def positions(self) -> dict[int, int]:
        """Return the next offset of each partition, to pass to `OrderEvents.projection(start=…)`."""
        return dict(self._at)

    @contextmanager
    def applying(self, record: EventRecord) -> Iterator[bool]:
        """Run the block and the update of the position in one transaction, which an exception rolls back.

        Yields True for a new event. Yields False if the event was applied before: the database changes of the block are
        then rolled back, so nothing is counted twice even if the block ignores the value.

        The block must not end the transaction: no `commit`, no `rollback`, and nothing that commits implicitly, such as
        `with connection:` and `executescript` of sqlite3. If you catch an SQL error inside the block, use a savepoint
        (`with connection.transaction():` in psycopg): after a failed statement, PostgreSQL refuses all further ones in
        the transaction. If you catch an exception outside the block, end the loop: the next event would be applied
        without this one.

        Raises OvertakenError if another process has applied the event under this name. Stop then, and restart from the
        `positions` of a new `once`. Raises SetupError if the block has rolled back its transaction, and the error of
        the driver if a statement outside a savepoint has failed. Nothing is committed in these cases.
        """
        is_new = record.offset >= self._at.get(record.partition, 0)
        try:
            if is_new:
                self._move(record)
            yield is_new
            if is_new:
                self._check(record)
                self._connection.commit()
                self._at[record.partition] = record.offset + 1
            else:
                self._connection.rollback()
        except BaseException:
            self._connection.rollback()
            raise

    def _load(self) -> dict[int, int]:
        """Return the positions; retry once, because two processes that create the table at once may fail."""
        try:
            return self._create_and_read()
        except self._driver.Error:
            self._connection.rollback()
            return self._create_and_read()

    def _create_and_read(self) -> dict[int, int]:
        """Create the table if it is missing, and return the positions under this name."""
        cursor = self._connection.cursor()
        cursor.execute(
            f"CREATE TABLE IF NOT EXISTS {TABLE} (name VARCHAR(200) NOT NULL, partition INTEGER NOT NULL, "
            "next_offset BIGINT NOT NULL, PRIMARY KEY (name, partition))"
        )
        cursor.execute(*self._statement(f"SELECT partition, next_offset FROM {TABLE} WHERE name = ?", self._name))  # noqa: S608
        positions = dict(cursor.fetchall())
        cursor.close()
        self._connection.commit()
        return positions

    def _move(self, record: EventRecord) -> None:
        """Move the position from its known value. The first writing statement makes concurrent processes wait."""
        partition, before = record.partition, self._at.get(record.partition, 0)
        cursor = self._connection.cursor()
        if not before:
            insert = f"INSERT INTO {TABLE} (name, partition, next_offset) VALUES (?, ?, 0) ON CONFLICT DO NOTHING"  # noqa: S608
            cursor.execute(*self._statement(insert, self._name, partition))
        update = f"UPDATE {TABLE} SET next_offset = ? WHERE name = ? AND partition = ? AND next_offset = ?"  # noqa: S608
        cursor.execute(*self._statement(update, record.offset + 1, self._name, partition, before))
        moved = cursor.rowcount
        cursor.close()
        if moved != 1:
            raise OvertakenError(
                f"{self._name} is no longer at offset {before} of partition {partition}: another process has moved it"
            )

    def _check(self, record: EventRecord) -> None:
        """Raise SetupError if the transaction was rolled back: PostgreSQL rolls back at the commit of a failed one."""
        cursor = self._connection.cursor()
        select = f"SELECT next_offset FROM {TABLE} WHERE name = ? AND partition = ?"  # noqa: S608
        cursor.execute(*self._statement(select, self._name, record.partition))
        offsets = [int(next_offset) for (next_offset,) in cursor.fetchall()]
        cursor.close()
        if offsets != [record.offset + 1]:
            raise SetupError(f"the block for {self._name} has rolled back its transaction: use a savepoint")

    def _statement(self, statement: str, *values: object) -> tuple[str, Sequence[object]]:
        return statement.replace("?", self._mark), values


def once(connection: Connection, name: str) -> Once:
    """Return the positions of the consumer `name` in its own database, where each event is applied exactly once.

    `connection` is a synchronous connection to SQLite (3.24 or newer) or PostgreSQL (`sqlite3`, `psycopg`). It must not
    be in autocommit mode, nor be used for anything else while a block of `applying` runs. The table
    `order_events_applied` is created if it is missing; an open transaction is committed with it. Raises SetupError for
    a connection that cannot be used.

        store = once(connection, "revenue")
        async with OrderEvents.projection(start=store.positions()) as events:
            async for record in events:
                with store.applying(record):
                    connection.execute("UPDATE …")
    """
    return Once(connection, name)


def _commits_by_itself(connection: Connection) -> bool:
    autocommit = getattr(connection, "autocommit", None)
    if isinstance(connection, sqlite3.Connection) and autocommit is not False:
        return autocommit is True or connection.isolation_level is None
    return autocommit is True


def _driver_of(connection: Connection) -> ModuleType:
    """Return the module of the driver, which has its parameter style and its exceptions (PEP 249)."""
    names = [kind.__module__.partition(".")[0] for kind in type(connection).__mro__]
    for driver in (sys.modules[name] for name in names if name in sys.modules):
        if getattr(driver, "paramstyle", None) in _PLACEHOLDERS:
            return driver
    raise SetupError(f"{names[0]} is not a driver with one of the paramstyles {', '.join(_PLACEHOLDERS)}")
