"""Each event once in the consumer's own database: its position moves in the transaction of what is made of it."""

import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final, Protocol

from order_service.errors import SetupError
from order_service.sdk.errors import OvertakenError
from order_service.sdk.events import EventRecord

TABLE: Final = "order_events_applied"
"""Where positions are kept: `name`, `partition`, `next_offset`."""
_PLACEHOLDERS: Final = {"qmark": "?", "format": "%s", "pyformat": "%s"}


class Cursor(Protocol):
    """What we need of a cursor of the DB-API (PEP 249)."""

    @property
    def rowcount(self) -> int:
        """How many rows the last statement changed."""

    def execute(self, statement: Any, values: Sequence[object] = ..., /) -> object:
        """Run a statement."""

    def fetchall(self) -> Sequence[Any]:
        """Give all rows."""

    def close(self) -> None:
        """End it."""


class Connection(Protocol):
    """What we need of a connection of the DB-API (PEP 249): `sqlite3` and `psycopg` have it."""

    def cursor(self) -> Cursor:
        """Make a cursor."""

    def commit(self) -> None:
        """Keep what was done."""

    def rollback(self) -> None:
        """Undo what was done."""


class Once:
    """The position of one consumer, in its own database; `once` makes it."""

    def __init__(self, connection: Connection, name: str) -> None:
        if _commits_by_itself(connection):
            raise SetupError("a connection that commits by itself (autocommit) cannot keep an event and its position")
        self._connection = connection
        self._name = name
        self._driver = _driver_of(connection)
        self._mark = _PLACEHOLDERS[self._driver.paramstyle]
        self._at = self._begun()

    def positions(self) -> dict[int, int]:
        """Give the next offset of each partition: what `OrderEvents.projection(start=…)` begins with."""
        return dict(self._at)

    @contextmanager
    def applying(self, happened: EventRecord) -> Iterator[bool]:
        """Make one transaction of the block and the position behind this event; an error undoes both.

        Gives True for an event that is new. False says that it was applied before: then all that the block does in the
        database is undone, so nothing is counted twice even where the answer is not looked at.

        The block must not end the transaction: no `commit`, no `rollback`, and nothing that commits for you, as
        `with connection:` and `executescript` of sqlite3 do. An error of SQL that you catch in it belongs in a
        savepoint (`with connection.transaction():` in psycopg), for PostgreSQL does nothing more in a transaction in
        which a statement failed. An error that you catch around it must end the loop: the next event would be applied
        without this one.

        Raises OvertakenError, and keeps nothing, if another process of this name was first: end, and begin anew at
        what `positions` of a new `once` says. Raises SetupError, and keeps nothing, if the block has rolled back; the
        driver's own error where a statement failed in it that was not in a savepoint.
        """
        is_new = happened.offset >= self._at.get(happened.partition, 0)
        try:
            if is_new:
                self._move(happened)
            yield is_new
            if is_new:
                self._check(happened)
                self._connection.commit()
                self._at[happened.partition] = happened.offset + 1
            else:
                self._connection.rollback()
        except BaseException:
            self._connection.rollback()
            raise

    def _begun(self) -> dict[int, int]:
        """Prepare; once more where it fails, for twins that make the table at the same time hinder each other."""
        try:
            return self._prepared()
        except self._driver.Error:
            self._connection.rollback()
            return self._prepared()

    def _prepared(self) -> dict[int, int]:
        """Make the table if it is missing, and read our rows."""
        cursor = self._connection.cursor()
        cursor.execute(
            f"CREATE TABLE IF NOT EXISTS {TABLE} (name VARCHAR(200) NOT NULL, partition INTEGER NOT NULL, "
            "next_offset BIGINT NOT NULL, PRIMARY KEY (name, partition))"
        )
        cursor.execute(*self._said(f"SELECT partition, next_offset FROM {TABLE} WHERE name = ?", self._name))  # noqa: S608
        found = dict(cursor.fetchall())
        cursor.close()
        self._connection.commit()
        return found

    def _move(self, happened: EventRecord) -> None:
        """Move the position from where we know it to be; the statement that writes first makes twins wait here."""
        partition, before = happened.partition, self._at.get(happened.partition, 0)
        cursor = self._connection.cursor()
        if not before:
            insert = f"INSERT INTO {TABLE} (name, partition, next_offset) VALUES (?, ?, 0) ON CONFLICT DO NOTHING"  # noqa: S608
            cursor.execute(*self._said(insert, self._name, partition))
        update = f"UPDATE {TABLE} SET next_offset = ? WHERE name = ? AND partition = ? AND next_offset = ?"  # noqa: S608
        cursor.execute(*self._said(update, happened.offset + 1, self._name, partition, before))
        moved = cursor.rowcount
        cursor.close()
        if moved != 1:
            raise OvertakenError(f"{self._name} is not at offset {before} of partition {partition} any more")

    def _check(self, happened: EventRecord) -> None:
        """See that the transaction still stands: PostgreSQL turns the commit of a failed one into a rollback."""
        cursor = self._connection.cursor()
        select = f"SELECT next_offset FROM {TABLE} WHERE name = ? AND partition = ?"  # noqa: S608
        cursor.execute(*self._said(select, self._name, happened.partition))
        found = [int(next_offset) for (next_offset,) in cursor.fetchall()]
        cursor.close()
        if found != [happened.offset + 1]:
            raise SetupError(f"the block for {self._name} has rolled back its transaction: use a savepoint")

    def _said(self, statement: str, *values: object) -> tuple[str, Sequence[object]]:
        return statement.replace("?", self._mark), values


def once(connection: Connection, name: str) -> Once:
    """Keep, under `name`, how far a consumer is in its own database: each event is applied exactly once there.

    `connection` is a synchronous one of SQLite (3.24 or newer) or PostgreSQL (`sqlite3`, `psycopg`), not in autocommit,
    and used for nothing else while a block of `applying` runs. The table `order_events_applied` is made if it is
    missing; what you have left open in a transaction is committed with it. Raises SetupError for a connection that will
    not do.

        store = once(connection, "revenue")
        async with OrderEvents.projection(start=store.positions()) as events:
            async for happened in events:
                with store.applying(happened):
                    connection.execute("UPDATE …")
    """
    return Once(connection, name)


def _commits_by_itself(connection: Connection) -> bool:
    autocommit = getattr(connection, "autocommit", None)
    if isinstance(connection, sqlite3.Connection) and autocommit is not False:
        return autocommit is True or connection.isolation_level is None
    return autocommit is True


def _driver_of(connection: Connection) -> ModuleType:
    """Find the driver's module, which says how it writes a value and which errors it raises (PEP 249)."""
    names = [kind.__module__.partition(".")[0] for kind in type(connection).__mro__]
    for driver in (sys.modules[name] for name in names if name in sys.modules):
        if getattr(driver, "paramstyle", None) in _PLACEHOLDERS:
            return driver
    raise SetupError(f"{names[0]} is no driver with one of the paramstyles {', '.join(_PLACEHOLDERS)}")
