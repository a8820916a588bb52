"""How SQLite finds what is asked of it: by an index, however much is there; a newcomer to the tables is not to wait."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import event, make_url

from order_service.domain.refusals import Status
from order_service.kafka.topics import topic_names
from order_service.views.projector import Projection
from order_service.views.queries import Filter, StoredRejection, Views
from order_service.views.tables import open_database, positions, prepare
from tests.support.event_log import EVENTS, START, order_of
from tests.support.samples import ship_refused

NOW = datetime(2026, 11, 24, tzinfo=UTC)
ALL = {(EVENTS.topic, EVENTS.partition): 0}
IN_THE_ORDER_OF_AN_INDEX = "SCAN orders USING INDEX orders_by_time"
"""How a page of all orders is read: from the end of the index, no further than the page."""

SPANS = "SCAN span VIRTUAL TABLE INDEX 1:"
"""How the list of spans is read that is a value of the statement."""


@pytest.fixture
def plans(tmp_path):
    """Provide the views, and a way to tell how the questions to them were answered."""
    engine = open_database(make_url(f"sqlite:///{tmp_path}/views.db"), writes=True)
    prepare(engine)
    Projection(engine, topic_names()).positions(START)
    with engine.begin() as connection:
        connection.execute(positions.update().values(next_offset=100))
    asked = []

    @event.listens_for(engine, "before_cursor_execute")
    def before(_connection, _cursor, statement, parameters, *_):
        if statement.startswith("SELECT") and "view_" not in statement:
            asked.append((statement, parameters))

    def steps():
        with engine.begin() as connection:
            found = [
                [step[3] for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
                for statement, parameters in list(asked)
            ]
        return [step for plan in found for step in plan]

    yield Views(engine, topic_names()), steps
    engine.dispose()


QUESTIONS = {
    "what is new": lambda views: views.changes_since({}),
    "events of all": lambda views: views.events_of(ALL),
    "events of a user": lambda views: views.events_of(ALL, user_id="dana"),
    "an order": lambda views: order_of(views, "order-1"),
    "an order then": lambda views: views.order_at("order-1", at=NOW),
    "a history": lambda views: views.history("order-1"),
    "refusals": lambda views: views.refusals("order-1"),
    "a command": lambda views: views.command("order-1", "command-1"),
    "a copy of a command": lambda views: views.outcome("order-1", "command-1", bytes(16), 7),
    "what an order remembers": lambda views: views._remembers(StoredRejection(ship_refused, 0, 5, 5), 7),
    "all orders": lambda views: views.page(Filter(), 50),
    "orders of a time": lambda views: views.page(Filter(created_from=NOW, created_to=NOW), 50),
    "orders of a user": lambda views: views.page(Filter(user_id="dana"), 50),
    "orders of a status": lambda views: views.page(Filter(status=Status.PAID), 50),
    "orders of both": lambda views: views.page(Filter(user_id="dana", status=Status.PAID, created_from=NOW), 50),
}


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_whatever_is_asked_is_found_by_an_index(plans, question):
    views, steps = plans
    question(views)
    found = steps()
    assert any("USING INDEX" in step for step in found)
    assert not [step for step in found if step.startswith("SCAN") and step not in (IN_THE_ORDER_OF_AN_INDEX, SPANS)]


def test_events_of_a_user_are_found_without_those_of_others(plans):
    views, steps = plans
    views.events_of(ALL, user_id="dana")
    assert [step for step in steps() if "order_events" in step] == [
        "SEARCH order_events USING INDEX order_events_by_user (user_id=? AND partition=? AND offset>? AND offset<?)"
    ]


def test_orders_of_a_user_and_a_status_have_an_index_of_their_own(plans):
    views, steps = plans
    views.page(Filter(user_id="dana", status=Status.PAID), 50)
    assert steps() == ["SEARCH orders USING INDEX orders_by_user_and_status (user_id=? AND status=?)"]
