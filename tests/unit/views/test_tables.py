"""Which databases the views can be in, and what is said of all others."""

import os
import signal
from contextlib import nullcontext
from functools import reduce

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import func, make_url, select
from structlog.testing import capture_logs

from order_service.errors import DatabaseError
from order_service.kafka.topics import topic_names
from order_service.settings import Settings
from order_service.views import order_view
from order_service.views.process import BuildProgress
from order_service.views.projector import Projection
from order_service.views.queries import Views
from order_service.views.tables import database_of, open_database, order_events, prepare
from tests.support.event_log import EVENTS, START, after, order_of, seens
from tests.support.process_tree import has_ended
from tests.support.samples import but, events
from tests.support.service import until


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("", "sqlite:///.data/views.db"),
        ("sqlite:////var/views.db", "sqlite:////var/views.db"),
        ("postgresql://db/orders", "postgresql+psycopg://db/orders"),
        ("postgres://db/orders", "postgresql+psycopg://db/orders"),
        ("postgresql+psycopg://db/orders", "postgresql+psycopg://db/orders"),
    ],
)
def test_which_database_is_meant(given, meant):
    assert str(database_of(Settings(database_url=given))) == meant


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("nonsense", "is not a database URL"),
        ("postgresql://orders:hun@ter:2@localhost/db", "is not a database URL"),
        ("mysql://db/orders", "has driver mysql, expected one of sqlite, postgresql"),
        ("postgresql+asyncpg://db/orders", "has driver postgresql"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("postgresql://orders:hun@t@er@db/orders", "write an @ in the user name or the password as %40"),
    ],
)
def test_any_other_is_refused_without_its_password(given, why):
    with pytest.raises(DatabaseError, match=why) as caught:
        database_of(Settings(database_url=given))
    assert "ter" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_views_are_ready_when_they_have_what_the_log_held_at_the_start():
    progress = BuildProgress()
    assert progress.faults() == ["the views are being opened"]
    progress.report_left(1200)
    assert progress.faults() == ["the views are being built: 1,200 offsets are left"]
    progress.report_left(0)
    assert progress.faults() == []


def test_a_partition_without_a_leader_is_named_in_readiness_and_logged_once():
    progress = BuildProgress()
    progress.report_left(0)
    with capture_logs() as lines:
        for partitions in ([EVENTS], [EVENTS], [], []):
            progress.report_leaderless(partitions)
            fault = f"partition 0 of {EVENTS.topic} has no leader: its views are not updated"
            assert progress.faults() == [fault for _ in partitions]
    assert [line["event"] for line in lines] == [
        "A partition has no leader: its views are not updated.",
        "A partition has a leader again.",
    ]


@pytest.mark.parametrize(("encoding", "is_refused"), [("UTF8", False), ("LATIN1", True), ("SQL_ASCII", True)])
def test_a_database_that_cannot_hold_every_character_is_refused(postgresql, encoding, is_refused):
    server = postgresql.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {encoding.lower()}")
        connection.execute(f"CREATE DATABASE {encoding.lower()} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
    engine = open_database(postgresql.set(database=encoding.lower()), writes=True)
    with pytest.raises(DatabaseError, match=f"encoding {encoding}, expected UTF8") if is_refused else nullcontext():
        prepare(engine)
    engine.dispose()


ASKED = [Views.faults, Views.offsets, lambda views: views.orders(["order-1"])]
OFTEN = 6
"""After so many times, psycopg prepares a statement by default."""


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("ask", ASKED)
def test_a_connection_that_was_ended_is_replaced_before_anybody_hears_of_it(engine, views, ask):
    first = ask(views)
    others = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
    others += " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    with engine.begin() as connection:
        assert connection.exec_driver_sql(others).scalar() >= 1
    assert ask(views) == first


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("ask", ASKED)
def test_a_session_that_a_pooler_resets_serves_the_next_query(views, ask):
    first = [ask(views) for _ in range(OFTEN)][-1]
    with views._engine.begin() as connection:
        # As a proxy between us may do, of which the driver does not hear.
        connection.connection.driver_connection.pgconn.exec_(b"DISCARD ALL")
    assert ask(views) == first


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_reading_opens_no_transaction(views):
    with views._engine.begin() as connection:
        connection.exec_driver_sql("SELECT 1")
        assert connection.connection.driver_connection.info.transaction_status is TransactionStatus.IDLE


def test_what_a_crash_of_postgresql_takes_is_taken_whole_and_folded_again(postgresql_server):
    """Commits of the projector do not wait for the disk: the newest may be lost, never rows or a position alone.

    Whoever reads finds the server again, and its callers do not hear of it.
    """
    url = make_url(postgresql_server.get_uri()).set(drivername="postgresql+psycopg")
    engine, readers = open_database(url, writes=True), open_database(url)
    views = Views(readers, topic_names())
    prepare(engine)
    projection = Projection(engine, topic_names())
    projection.positions(START)
    log = seens([but(event, order_id=f"order-{number}") for number in range(60) for event in events[:1]])
    for seen in log:
        projection.apply([seen], {EVENTS: seen.offset}, {EVENTS: seen.offset + 1})
    assert order_of(views, log[-1].order_id) is not None
    first = postgresql_server.get_pid()
    os.kill(first, signal.SIGQUIT)
    until(lambda: has_ended(first), "PostgreSQL has ended")
    engine.dispose()
    postgresql_server.ensure_postgres_running()
    order_of(views, log[0].order_id)  # on a connection of before
    at = Projection(engine, topic_names()).positions(START)
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "off"
        assert connection.scalar(select(func.count()).select_from(order_events)) == at[EVENTS]
    rest = log[at[EVENTS] :]
    Projection(engine, topic_names()).apply(rest, at, after(at, rest))
    assert [order_of(views, seen.order_id) for seen in log] == [
        reduce(order_view.after, [seen.message], None) for seen in log
    ]
    engine.dispose()
    readers.dispose()
