"""What can be asked: each question, its empty answer, and its edges."""

from datetime import timedelta
from itertools import count

import msgspec
import pytest
from hypothesis import given

from order_service.domain.refusals import Status
from order_service.kafka.topics import topic_names
from order_service.views import queries
from order_service.views.queries import Filter, Offsets, Views
from order_service.views.tables import FORM, form, positions, refusals
from tests.support import samples
from tests.support.event_log import EVENTS, REJECTIONS, START, after, order_of, seens
from tests.support.foreign_ids import NINE, TABLE, ids_in, life, some
from tests.support.samples import NOW, ORDER_ID, but, event_of, take

HISTORY = list(samples.events)
EVENTS_TOPIC = topic_names().events
MINUTE = timedelta(minutes=1)
TICK = timedelta(microseconds=1)


def put(projection, messages):
    projection.positions(START)
    found = seens(messages)
    projection.apply(found, START, after(START, found))


def created(number, user_id="dana", minute=0):
    """Place an order with a number, at a minute."""
    order_id = f"order-{number:02}"
    command = but(samples.create, order_id=order_id, command_id=f"create-{number}", user_id=user_id)
    event = event_of(command, but(samples.created, user_id=user_id))
    return but(event, order_id=order_id, occurred_at=NOW + minute * MINUTE)


def ids(page):
    return [order.order_id for order in page.orders]


def test_who_reads_does_not_wait_for_who_writes(views, engine, projection):
    put(projection, HISTORY)
    with engine.begin() as writing:
        writing.execute(positions.update().values(is_built=True))
        assert order_of(views, ORDER_ID).version == len(HISTORY)
        assert views.faults() == ["the views are being built"]


def test_of_what_is_not_there_nothing_is_known(views, projection):
    assert order_of(views, "nobody") is None
    assert views.order_at("nobody", version=1) is None
    assert views.history("nobody") == ()
    assert views.command("nobody", "nothing") is None
    assert views.page(Filter(), 10).orders == ()


@pytest.mark.parametrize("version", range(1, len(HISTORY) + 1))
def test_an_order_as_it_was_at_a_version(projection, views, version):
    put(projection, HISTORY)
    then = views.order_at(ORDER_ID, version=version)
    assert (then.version, then.changed_at) == (version, HISTORY[version - 1].occurred_at)


def test_a_version_that_is_not_there_is_none(projection, views):
    put(projection, HISTORY)
    assert views.order_at(ORDER_ID, version=len(HISTORY) + 1) is None
    assert views.order_at(ORDER_ID, version=0) is None


def test_an_order_as_it_was_at_a_time(projection, views):
    put(projection, HISTORY)
    for event in HISTORY:
        assert views.order_at(ORDER_ID, at=event.occurred_at).version >= event.version
    before = HISTORY[0].occurred_at - timedelta(milliseconds=1)
    assert views.order_at(ORDER_ID, at=before) is None


def test_a_history_goes_on_behind_a_version(projection, views):
    put(projection, HISTORY)
    assert [recorded.event for recorded in views.history(ORDER_ID, after_version=2, limit=2)] == HISTORY[2:4]


def test_pages_are_the_newest_first_and_stay_while_orders_come_in(projection, views):
    put(projection, [created(number, minute=number // 2) for number in range(7)])
    first = views.page(Filter(), 3)
    assert ids(first) == ["order-06", "order-05", "order-04"]
    newer = seens([created(8, minute=9)], 7)
    before = projection.positions(START)
    projection.apply(newer, before, after(before, newer))
    second = views.page(Filter(), 3, first.next)
    assert ids(second) == ["order-03", "order-02", "order-01"]
    last = views.page(Filter(), 3, second.next)
    assert (ids(last), last.next) == (["order-00"], None)


def test_a_command_that_was_refused_says_why_it_was_first(projection, views):
    twin = but(
        samples.ship_refused,
        command_digest=bytes(16),
        reason="command_id_reused",
        rejected_at=samples.ship_refused.rejected_at + MINUTE,
    )
    put(projection, [samples.ship_refused, twin])
    assert views.command(twin.order_id, twin.command_id) == samples.ship_refused


def test_a_page_of_just_all_has_no_next(projection, views):
    put(projection, [created(number) for number in range(3)])
    assert views.page(Filter(), 3).next is None


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        pytest.param(Filter(user_id="eve"), ["order-03", "order-01"], id="of a user"),
        pytest.param(Filter(status=Status.PAID), [], id="of a status that none has"),
        pytest.param(Filter(status=Status.CREATED, user_id="dana"), ["order-02", "order-00"], id="of both"),
        pytest.param(Filter(created_from=NOW + 2 * MINUTE), ["order-03", "order-02"], id="from a time, included"),
        pytest.param(Filter(created_from=NOW + 3 * MINUTE + TICK), [], id="from a time within its millisecond"),
        pytest.param(Filter(created_to=NOW + TICK), ["order-00"], id="to a time within its millisecond"),
        pytest.param(Filter(created_to=NOW + 2 * MINUTE), ["order-01", "order-00"], id="to a time, not included"),
    ],
)
def test_orders_are_found_by_user_status_and_time(projection, views, wanted, found):
    put(projection, [created(number, user_id=("dana", "eve")[number % 2], minute=number) for number in range(4)])
    assert ids(views.page(wanted, 10)) == found


def test_each_user_has_their_own_orders_although_their_ids_look_or_sort_alike(projection, views):
    numbers = count()
    owners: dict[str, set[str]] = {}
    positions = dict(START)

    @some(25)
    @given(ids=NINE)
    def put_and_find(ids):
        order_id, entry, events = f"order-{next(numbers)}", None, []
        for command in life(ids, order_id):
            event, entry = take(command, entry)
            events.append(event)
        read = seens(events, positions[EVENTS])
        moved = after(positions, read)
        projection.apply(read, positions, moved)
        positions.update(moved)
        owners.setdefault(ids[0], set()).add(order_id)
        assert ids_in([stored.event for stored in views.history(order_id)]) == ids
        found = {order.order_id for order in views.page(Filter(user_id=ids[0]), 200).orders}
        assert found == owners[ids[0]]

    projection.positions(START)
    for ids in TABLE:
        put_and_find.hypothesis.inner_test(ids)
    put_and_find()
    assert {user: len(views.page(Filter(user_id=user), 200).orders) for user in owners} == {
        user: len(orders) for user, orders in owners.items()
    }


def test_what_is_new_is_told_once(projection, views):
    before = views.offsets()
    put(projection, [*HISTORY[:2], samples.ship_refused])
    news = views.changes_since(before)
    assert [recorded.event for recorded in news.events] == HISTORY[:2]
    assert [refused.rejection for refused in news.refusals] == [samples.ship_refused]
    assert news.offsets == views.offsets()
    nothing = views.changes_since(news.offsets)
    assert (nothing.events, nothing.refusals) == ((), ())


def test_much_that_is_new_is_told_in_parts(projection, views, monkeypatch):
    refusal = but(samples.ship_refused, command_id="again")
    put(projection, [*HISTORY, refusal])
    monkeypatch.setattr(queries, "CHANGES_MAX", 4)  # two of each topic
    since: Offsets = {}
    told, refused = [], []
    while not (news := views.changes_since(since)).is_all:
        assert len(news.events) <= 4
        told += news.events
        refused += news.refusals
        assert news.offsets != since
        since = news.offsets
    assert [recorded.event for recorded in (*told, *news.events)] == HISTORY
    assert [one.rejection for one in (*refused, *news.refusals)] == [refusal]


def test_a_topic_that_begins_anew_is_no_news(projection, views):
    put(projection, HISTORY)
    far = {place: offset + 100 for place, offset in views.offsets().items()}
    assert views.changes_since(far).events == ()


def test_events_behind_a_place_are_those_of_a_user_or_of_all(projection, views):
    put(projection, [created(1), created(2, "erin"), created(3)])
    start = {(EVENTS_TOPIC, 0): 0}
    assert [one.event.order_id for one in views.events_of(start)] == ["order-01", "order-02", "order-03"]
    assert [one.event.order_id for one in views.events_of(start, user_id="dana", limit=1)] == ["order-01"]
    assert [one.offset for one in views.events_of({(EVENTS_TOPIC, 0): 1}, user_id="dana")] == [2]
    assert views.events_of({}) == ()


def test_refusals_of_an_order_come_in_log_order_despite_the_workers_clocks(projection, views):
    later = but(
        samples.ship_refused,
        command_id="again",
        rejection_id="again",
        rejected_at=samples.ship_refused.rejected_at - MINUTE,
    )
    put(projection, [samples.ship_refused, later])
    assert views.refusals(ORDER_ID) == (samples.ship_refused, later)
    assert views.refusals(ORDER_ID, limit=1) == (later,)
    assert views.refusals("nobody") == ()


def test_a_refusal_that_an_older_projector_stored_has_no_pointer(engine, projection, views):
    put(projection, [but(samples.ship_refused, pointer="/carrier")])
    [stored] = views.refusals(ORDER_ID)
    assert stored.pointer == "/carrier"
    document = msgspec.json.decode(msgspec.json.encode(stored))
    del document["pointer"]
    with engine.begin() as connection:
        connection.execute(refusals.update().values(document=msgspec.json.encode(document).decode()))
    assert views.refusals(ORDER_ID) == (samples.ship_refused,)


def test_views_that_are_not_there_or_not_built_are_not_to_be_read(engine, projection):
    views = Views(engine, topic_names())
    assert views.faults() == ["the views are being built"]
    projection.positions(START)
    assert views.faults() == ["the views are being built"]
    projection.mark_built([EVENTS])
    assert views.faults() == ["the views are being built"], "another projector still builds the rejections"
    projection.mark_built([REJECTIONS])
    assert views.faults() == []
    with engine.begin() as connection:
        connection.execute(form.update().values(form=FORM + 1))
    assert views.faults() == [f"the views have schema version {FORM + 1}, this program supports {FORM}"]
    with engine.begin() as connection:
        connection.execute(form.delete())
        form.drop(connection)
    assert views.faults() == ["there are no views yet: no projector has created them"]
