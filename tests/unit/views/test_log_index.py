"""The views as an index of the log: what they answer, and when they do not."""

import socket

import pytest
from aiokafka.structs import TopicPartition

from order_service.kafka.topics import topic_names
from order_service.sdk.log_index import IndexEntries
from order_service.settings import Settings
from order_service.views.log_index import QUERIES_MAX, ViewsIndex
from order_service.views.stopped import BadRecord
from tests.support import samples
from tests.support.event_log import EVENTS, REJECTIONS, START, after, seens
from tests.support.samples import ORDER_ID, but

NAMES = topic_names()


@pytest.fixture
def index(url):
    return ViewsIndex(Settings(database_url=url.render_as_string(hide_password=False)))


async def test_the_offsets_of_all_records_of_orders_are_found(projection, index):
    messages = [*samples.events, samples.ship_refused, but(samples.order_created, order_id="other")]
    projection.positions(START)
    found = seens(messages)
    projection.apply(found, START, after(START, found))
    count = len(samples.events)
    positions = {EVENTS: count + 2, REJECTIONS: count + 1}
    assert await index.find([ORDER_ID]) == IndexEntries({EVENTS: [*range(count)], REJECTIONS: [count]}, positions)
    assert await index.find(["other"]) == IndexEntries({EVENTS: [count + 1]}, positions)
    assert await index.find(["nobody"]) == IndexEntries({}, positions)


async def test_a_partition_in_which_a_record_was_skipped_is_read_from_its_start(projection, index):
    projection.positions(START)
    found = seens([samples.order_created])
    projection.apply(found, START, after(START, found))
    projection.apply([BadRecord(EVENTS, 1, "not Avro")], {**START, EVENTS: 1}, {EVENTS: 2})
    ends = {EVENTS: 2, REJECTIONS: 0}
    entries = await index.find([ORDER_ID])
    assert entries is not None
    assert entries.ranges(ends) == {EVENTS: [(0, 2)], REJECTIONS: []}
    assert entries.positions[EVENTS] == 1
    projection.skip(EVENTS, 1)
    entries = await index.find([ORDER_ID])
    assert entries is not None
    assert entries.ranges(ends) == {EVENTS: [(0, 2)], REJECTIONS: []}
    assert EVENTS not in entries.positions
    assert entries.positions[REJECTIONS] == 0


async def test_a_database_that_never_answers_delays_a_search_but_does_not_hold_it_up(caplog):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        index = ViewsIndex(Settings(database_url=f"postgresql://orders:secret@{address}/orders"), within_s=0.1)
        for _ in range(QUERIES_MAX):
            assert await index.find([ORDER_ID]) is None
        assert f"has not answered {QUERIES_MAX} queries yet" not in caplog.text
        assert await index.find([ORDER_ID]) is None
    assert caplog.text.count("does not answer within 0.1 s") == QUERIES_MAX
    assert f"has not answered {QUERIES_MAX} queries yet" in caplog.text
    assert "secret" not in caplog.text


async def test_views_of_other_topics_are_no_index_of_these(projection, url):
    projection.positions(START)
    shown = url.render_as_string(hide_password=False)
    entries = await ViewsIndex(Settings(database_url=shown, topic_prefix="eu.")).find([ORDER_ID])
    assert entries is not None
    assert entries.ranges({TopicPartition(f"eu.{NAMES.events}", 0): 7}) == {
        TopicPartition(f"eu.{NAMES.events}", 0): [(0, 7)]
    }
