"""The views with a thousand partitions, on every kind of database."""

import pytest
from aiokafka.structs import TopicPartition
from sqlalchemy import event

from order_service.kafka.reader import OutcomeRecord
from order_service.kafka.topics import topic_names
from order_service.views.projector import Projection
from order_service.views.queries import CHANGES_MAX
from tests.support.event_log import EVENTS, REJECTIONS
from tests.support.samples import but, digest_of, order_created, ship_refused

PARTITIONS = 1000
START = {TopicPartition(topic, number): 0 for topic in (EVENTS[0], REJECTIONS[0]) for number in range(PARTITIONS)}


def outcome(number, at, message):
    return OutcomeRecord(message, number, at, digest_of(message), at)


def write(projection, before, numbers, count=1):
    """Write `count` events and a rejection to each of these partitions; return the positions after them."""
    after = dict(before)
    read = []
    for number in numbers:
        events, rejections = TopicPartition(EVENTS.topic, number), TopicPartition(REJECTIONS.topic, number)
        read += [
            outcome(number, at, but(order_created, order_id=f"order-{number}-{at}"))
            for at in range(before[events], before[events] + count)
        ]
        read.append(outcome(number, before[rejections], ship_refused))
        after |= {events: before[events] + count, rejections: before[rejections] + 1}
    moved = {each: offset for each, offset in after.items() if offset != before[each]}
    assert projection.apply(read, before, moved) == []
    return after


def news(views, since):
    """Ask until all has come; return the places of the events and of the refusals, and the positions then."""
    events, refusals = [], []
    while True:
        changes = views.changes_since(since)
        assert len(changes.events) + len(changes.refusals) <= max(CHANGES_MAX, 2 * PARTITIONS)
        events += [(each.partition, each.offset) for each in changes.events]
        refusals += [(each.partition, each.offset) for each in changes.refusals]
        since = changes.offsets
        if changes.is_all:
            return events, refusals, since


@pytest.fixture
def at(engine):
    """Return the positions of a log with a thousand partitions, of which nothing has been read."""
    return Projection(engine, topic_names()).positions(START)


def test_news_of_a_thousand_partitions_is_found(projection, views, at):
    since = views.offsets()
    assert news(views, since) == ([], [], since)
    at = write(projection, at, range(PARTITIONS), count=3)
    events, refusals, since = news(views, since)
    assert sorted(events) == [(number, offset) for number in range(PARTITIONS) for offset in range(3)]
    assert sorted(refusals) == [(number, 0) for number in range(PARTITIONS)]
    assert since == {tuple(each): offset for each, offset in at.items()}
    write(projection, at, [7])
    assert news(views, since)[:2] == ([(7, 3)], [(7, 1)])


def test_news_is_looked_up_by_an_index_also_before_there_are_statistics(projection, views, at, url):
    if url.get_backend_name() == "sqlite":
        return  # tests/unit/views/test_plans.py
    asked = []

    @event.listens_for(views._engine, "before_cursor_execute")
    def before(_connection, _cursor, statement, parameters, *_):
        asked.append((statement, parameters))

    since = views.offsets()
    at = write(projection, at, range(PARTITIONS), count=3)
    asked.clear()
    news(views, since)
    found = [(statement, parameters) for statement, parameters in asked if "unnest" in statement]
    assert len(found) > 2
    for statement, parameters in found:
        with views._engine.begin() as connection:
            plan = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters))
        assert "Index Scan using" in plan
        assert "Seq Scan" not in plan
