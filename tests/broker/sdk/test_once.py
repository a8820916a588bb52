"""Position and work in one transaction, in SQLite and PostgreSQL, also where the process is killed in it."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from order_service.errors import SetupError
from order_service.sdk import EventRecord, OvertakenError, once
from order_service.sdk.testing import order_paid, sample_life
from tests.broker.sdk.database import connect
from tests.broker.sdk.writing import write
from tests.support.service import ROOT

LIFE = [EventRecord(event, 0, offset, b"", is_replay=True) for offset, event in enumerate(sample_life(), 10)]


@pytest.fixture
def connection(database):
    connection = connect(database)
    connection.execute("CREATE TABLE seen (version INTEGER)")
    connection.commit()
    yield connection
    connection.close()


@pytest.fixture
def store(connection):
    return once(connection, "seen")


def apply(store, connection, happened):
    with store.applying(happened) as is_new:
        connection.execute(f"INSERT INTO seen VALUES ({happened.event.version})")
    return is_new


def versions(connection):
    return [version for (version,) in connection.execute("SELECT version FROM seen ORDER BY version").fetchall()]


def test_position_and_work_move_together(store, connection, database):
    assert store.positions() == {}
    assert all(apply(store, connection, happened) for happened in LIFE)
    assert store.positions() == {0: 15}
    other = connect(database)
    assert versions(other) == [1, 2, 3, 4, 5]
    assert once(other, "seen").positions() == {0: 15}
    assert once(other, "another name").positions() == {}
    other.close()


def test_a_repeat_leaves_nothing_even_where_nobody_asks(store, connection):
    assert apply(store, connection, LIFE[0])
    assert not apply(store, connection, LIFE[0])
    assert versions(connection) == [1]
    assert store.positions() == {0: 11}


def test_an_error_undoes_the_work_and_the_position(store, connection, database):
    apply(store, connection, LIFE[0])
    with pytest.raises(ZeroDivisionError), store.applying(LIFE[1]):
        assert 1 / connection.execute("INSERT INTO seen VALUES (2)").rowcount == 1 / 0
    assert versions(connection) == [1]
    other = connect(database)
    assert once(other, "seen").positions() == store.positions() == {0: 11}
    other.close()
    assert apply(store, connection, LIFE[1])
    assert versions(connection) == [1, 2]


@pytest.mark.parametrize("already", [0, 1], ids=["at the first event", "later"])
def test_a_twin_that_was_first_is_noticed_and_nothing_is_kept(store, connection, database, already):
    for happened in LIFE[:already]:
        apply(store, connection, happened)
    other = connect(database)
    apply(once(other, "seen"), other, LIFE[already])
    with pytest.raises(OvertakenError, match="seen is no longer at offset"):
        apply(store, connection, LIFE[already])
    assert versions(connection) == list(range(1, already + 2))
    assert once(connection, "seen").positions() == {0: 11 + already}
    other.close()


on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@on_postgresql
def test_an_error_that_was_swallowed_is_not_taken_for_a_commit(store, connection, database):
    def swallow():
        with store.applying(LIFE[0]), contextlib.suppress(psycopg.errors.UndefinedTable):
            connection.execute("INSERT INTO nowhere VALUES (1)")

    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        swallow()
    assert store.positions() == once(connection, "seen").positions() == {}
    with store.applying(LIFE[0]), contextlib.suppress(psycopg.errors.UndefinedTable), connection.transaction():
        connection.execute("INSERT INTO nowhere VALUES (1)")
    assert apply(store, connection, LIFE[1])
    other = connect(database)
    assert once(other, "seen").positions() == store.positions() == {0: 12}
    other.close()


def test_a_block_that_rolls_back_is_noticed(store, connection):
    with pytest.raises(SetupError, match="has rolled back its transaction"), store.applying(LIFE[0]):
        connection.rollback()
    assert versions(connection) == []
    assert apply(store, connection, LIFE[0])


@on_postgresql
def test_twins_that_begin_together_make_the_table_once(database):
    count, rounds = 4, 10
    connections = [connect(database) for _ in range(count)]
    together = threading.Barrier(count)

    def begin(connection):
        together.wait(10)
        return once(connection, "seen").positions()

    with ThreadPoolExecutor(count) as pool:
        for _ in range(rounds):
            assert list(pool.map(begin, connections)) == [{}] * count
            connections[0].execute("DROP TABLE order_events_applied")
            connections[0].commit()
    for connection in connections:
        connection.close()


def test_a_connection_of_a_kind_of_ones_own_will_do(tmp_path):
    class Own(sqlite3.Connection):
        pass

    connection = sqlite3.connect(tmp_path / "own.db", factory=Own)
    assert once(connection, "seen").positions() == {}
    connection.close()


def test_a_connection_that_commits_by_itself_will_not_do(connection, database):
    connection.rollback()
    if isinstance(connection, psycopg.Connection):
        connection.autocommit = True
    else:
        connection.isolation_level = None
    with pytest.raises(SetupError, match="autocommit"):
        once(connection, "seen")


def test_a_driver_that_writes_values_in_another_way_is_named():
    class Unknown:
        autocommit = False

    with pytest.raises(SetupError, match="tests is not a driver with one of the paramstyles"):
        once(Unknown(), "seen")  # type: ignore[arg-type]


def test_a_process_that_is_killed_counts_everything_once(service, database):
    amounts = [1, 10, 100, 0]
    write(service, *[order_paid(version=version, amount=amount) for version, amount in enumerate(amounts, 1)])
    for count, code in [(2, -signal.SIGKILL), (1, -signal.SIGKILL), (0, 0)]:
        command = [sys.executable, "-m", "tests.broker.sdk.tally", database, str(count)]
        ended = subprocess.run(command, check=False, cwd=ROOT, env=service.environment, timeout=60)
        assert ended.returncode == code
    connection = connect(database)
    assert connection.execute("SELECT SUM(total), COUNT(total) FROM revenue").fetchone() == (111, len(amounts))
    connection.close()
