"""Which databases the views can be in, and what is said of all others."""

import os
import signal
from functools import reduce

import pytest
from sqlalchemy import func, make_url, select

from order_service.errors import DatabaseError
from order_service.settings import Settings
from order_service.stream.topics import topic_names
from order_service.views import state
from order_service.views.process import Building
from order_service.views.projector import Projection
from order_service.views.queries import Views
from order_service.views.tables import database_of, open_database, order_events, prepare
from tests.samples import but, events
from tests.views.log import EVENTS, START, after, order_of, seens


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
        ("nonsense", "is no URL of a database"),
        ("postgresql://orders:hun@ter:2@localhost/db", "is no URL of a database"),
        ("mysql://db/orders", "is of mysql, not one of sqlite, postgresql"),
        ("postgresql+asyncpg://db/orders", "is of postgresql"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_any_other_is_refused_without_its_password(given, why):
    with pytest.raises(DatabaseError, match=why) as caught:
        database_of(Settings(database_url=given))
    assert "ter" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_views_are_ready_when_they_have_what_the_log_held_at_the_start():
    building = Building()
    assert building.faults() == ["the views are being opened"]
    building.tell(1200)
    assert building.faults() == ["the views are being built: 1,200 offsets are left"]
    building.tell(0)
    assert building.faults() == []


def test_what_a_crash_of_postgresql_takes_is_taken_whole_and_folded_again(postgresql_server):
    """Commits of the projector do not wait for the disk: the newest may be lost, never rows or a position alone.

    Whoever reads finds the server again, and its callers do not hear of it.
    """
    url = make_url(postgresql_server.get_uri()).set(drivername="postgresql+psycopg")
    engine, readers = open_database(url, writes=True), open_database(url)
    views = Views(readers, topic_names())
    prepare(engine)
    projection = Projection(engine)
    projection.positions(START)
    log = seens([but(event, order_id=f"order-{number}") for number in range(60) for event in events[:1]])
    for seen in log:
        projection.apply([seen], {EVENTS: seen.offset}, {EVENTS: seen.offset + 1})
    assert order_of(views, log[-1].order_id) is not None
    os.kill(postgresql_server.get_pid(), signal.SIGQUIT)
    postgresql_server.get_postmaster_info().process.wait(20)
    engine.dispose()
    postgresql_server.ensure_postgres_running()
    order_of(views, log[0].order_id)  # on a connection of before
    at = Projection(engine).positions(START)
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "off"
        assert connection.scalar(select(func.count()).select_from(order_events)) == at[EVENTS]
    rest = log[at[EVENTS] :]
    Projection(engine).apply(rest, at, after(at, rest))
    assert [order_of(views, seen.order_id) for seen in log] == [
        reduce(state.after, [seen.message], None) for seen in log
    ]
    engine.dispose()
    readers.dispose()
