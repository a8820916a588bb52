"""What the projector keeps, and that it keeps it once."""

from functools import reduce

import pytest
from aiokafka.structs import TopicPartition
from sqlalchemy import inspect, make_url, select
from sqlalchemy.exc import OperationalError

from order_service.domain.messages import OrderCreated
from order_service.domain.reasons import Status
from order_service.errors import DatabaseError, HistoryError
from order_service.views import heads, state
from order_service.views.projector import Overtaken, Projection
from order_service.views.rows import ROWS_MAX
from order_service.views.tables import FORM, form, open_database, prepare
from tests import samples
from tests.samples import ORDER_ID, but, digest_of, event_of, order_amended, order_created, order_paid, ship_refused
from tests.views.log import EVENTS, REJECTIONS, START, after, order_of, seens

HISTORY = list(samples.events)


def put(projection, messages, before=START, offset=0):
    found = seens(messages, offset)
    projection.positions(START)
    projection.apply(found, before, after(before, found))


def test_the_view_of_an_order_is_the_fold_of_its_events(projection, views):
    put(projection, HISTORY)
    order = order_of(views, ORDER_ID)
    assert order == reduce(state.after, HISTORY, None)
    assert order.status is Status.DELIVERED
    assert projection.positions(START) == {EVENTS: len(HISTORY), REJECTIONS: 0}


@pytest.mark.parametrize("cut", range(1, len(HISTORY)))
def test_wherever_a_log_is_cut_the_views_are_the_same(projection, views, cut):
    put(projection, HISTORY[:cut])
    put(projection, HISTORY[cut:], before={**START, EVENTS: cut}, offset=cut)
    assert order_of(views, ORDER_ID).version == len(HISTORY)
    assert [recorded.event for recorded in views.history(ORDER_ID)] == HISTORY


def test_what_was_applied_is_not_applied_again(projection, views):
    put(projection, HISTORY[:2])
    with pytest.raises(Overtaken, match=f"are where we left them: {EVENTS.topic}-0 at 0"):
        put(projection, HISTORY[:2])
    assert order_of(views, ORDER_ID).version == 2


@pytest.mark.parametrize("wrong", START)
def test_where_one_place_is_elsewhere_none_is_moved(projection, views, wrong):
    projection.positions(START)
    with pytest.raises(Overtaken):
        projection.apply(seens(HISTORY[:1]), START | {wrong: 5}, dict.fromkeys(START, 6))
    assert projection.positions() == START
    assert order_of(views, ORDER_ID) is None


def test_of_what_cannot_be_applied_nothing_stays(projection, views):
    put(projection, [order_created])
    with pytest.raises(HistoryError, match="version 3 of order-1 does not name the event before it"):
        put(projection, [ship_refused, order_paid], before={EVENTS: 1, REJECTIONS: 0}, offset=1)
    assert order_of(views, ORDER_ID).version == 1
    assert views.command(ORDER_ID, ship_refused.command_id) is None
    assert projection.positions(START) == {EVENTS: 1, REJECTIONS: 0}


def test_an_event_that_names_another_before_it_is_refused(projection):
    put(projection, [order_created])
    with pytest.raises(HistoryError, match="does not name the event before it"):
        put(projection, [but(order_amended, previous_digest=bytes(16))], before={**START, EVENTS: 1}, offset=1)


def test_a_command_that_is_accepted_after_all_has_its_event_and_its_refusal_stays_in_the_history(projection, views):
    command_id = samples.ship.command_id
    before = but(ship_refused, command_digest=samples.order_shipped.command_digest)
    put(projection, [order_created, before])
    assert views.command(ORDER_ID, command_id) == before
    put(projection, HISTORY[1:], before={EVENTS: 1, REJECTIONS: 2}, offset=1)
    assert views.command(ORDER_ID, command_id) == samples.order_shipped
    assert views.refusals(ORDER_ID) == (before,)


def test_a_refusal_after_an_acceptance_does_not_take_its_place(projection, views):
    put(projection, HISTORY)
    late = but(ship_refused, command_digest=samples.order_shipped.command_digest)
    put(projection, [late], before={**START, EVENTS: len(HISTORY)}, offset=0)
    assert views.command(ORDER_ID, samples.ship.command_id) == samples.order_shipped


def test_the_same_command_refused_again_has_its_newest_reason(projection, views):
    put(projection, [ship_refused])
    newer = but(ship_refused, reason="deadline_passed", detail="too late")
    put(projection, [newer], before={**START, REJECTIONS: 1}, offset=1)
    assert views.command(ORDER_ID, ship_refused.command_id) == newer


def test_text_with_nul_is_kept(projection, views):
    odd = event_of(but(samples.create, metadata={"a\0b": "\0"}), but(samples.created, metadata={"a\0b": "\0"}))
    put(projection, [odd])
    assert order_of(views, ORDER_ID).metadata == {"a\0b": "\0"}
    assert isinstance(views.history(ORDER_ID)[0].event.fact, OrderCreated)


def test_two_projectors_apply_everything_once(url, engine, views):
    first, second = Projection(engine), Projection(open_database(url, writes=True))
    found = seens(HISTORY)
    first.positions(START)
    second.positions(START)
    for number in range(len(HISTORY)):
        before = {EVENTS: number}
        one = [found[number]]
        first.apply(one, before, {EVENTS: number + 1})
        with pytest.raises(Overtaken):
            second.apply(one, before, {EVENTS: number + 1})
        first, second = second, first
    assert [recorded.event for recorded in views.history(ORDER_ID)] == HISTORY
    for projection in (first, second):
        projection._engine.dispose()


def test_views_of_other_topics_are_left_alone(projection):
    projection.positions(START)
    others = [TopicPartition(f"other.{place.topic}", place.partition) for place in START]
    with pytest.raises(DatabaseError, match=f"the database holds views of other topics: {EVENTS.topic}"):
        projection.positions(others)
    assert projection.positions() == START


def test_a_batch_may_be_of_more_orders_than_a_statement_takes(projection, views):
    many = [but(order_created, order_id=f"order-{number}") for number in range(2 * ROWS_MAX + 1)]
    put(projection, many)
    projection._heads.keep({}, {EVENTS: 0})  # it left them elsewhere, so it asks the tables for all
    paid = [but(HISTORY[1], order_id=event.order_id, previous_digest=digest_of(event)) for event in many]
    put(projection, paid, before={**START, EVENTS: len(many)}, offset=len(many))
    assert {order_of(views, event.order_id).version for event in (many[0], many[ROWS_MAX], many[-1])} == {2}
    assert len(views.events_of({(EVENTS.topic, 0): 0}, limit=10_000)) == 2 * len(many)


def test_of_large_orders_fewer_are_remembered(projection, views, monkeypatch):
    put(projection, HISTORY)
    monkeypatch.setattr(heads, "KEPT_MAX", 0)
    more = [but(event, order_id="order-2") for event in HISTORY]
    chained = [but(more[0], previous_digest=None)]
    for one in more[1:]:
        chained.append(but(one, previous_digest=digest_of(chained[-1])))
    put(projection, chained, before={**START, EVENTS: len(HISTORY)}, offset=len(HISTORY))
    assert not projection._heads._remembered
    assert projection._heads._kept == 0
    assert order_of(views, "order-2").version == len(HISTORY)


def test_views_of_an_older_form_are_built_again(engine, projection, views):
    put(projection, HISTORY)
    assert not prepare(engine)
    with engine.begin() as connection:
        connection.execute(form.update().values(form=FORM - 1))
    assert prepare(engine)
    assert order_of(views, ORDER_ID) is None
    assert projection.positions(START) == START
    with engine.begin() as connection:
        assert connection.scalar(select(form.c.form)) == FORM
    put(projection, HISTORY)
    assert order_of(views, ORDER_ID).version == len(HISTORY)


def test_what_an_older_form_had_and_this_one_has_not_is_removed(engine, projection, views):
    with engine.begin() as connection:
        for index in ("refusals_by_place", "refusals_by_order"):
            connection.exec_driver_sql(f"DROP INDEX {index}")
        connection.exec_driver_sql("CREATE TABLE commands (order_id TEXT)")
        connection.exec_driver_sql("CREATE INDEX refusals_by_place ON commands (order_id)")
        connection.exec_driver_sql("CREATE INDEX refusals_by_order ON commands (order_id)")
        connection.execute(form.update().values(form=3))
    assert prepare(engine)
    assert "commands" not in inspect(engine).get_table_names()
    put(projection, [ship_refused])
    assert views.refusals(ORDER_ID) == (ship_refused,)


def test_a_projector_leaves_views_of_a_newer_form_alone(engine, projection, views):
    put(projection, HISTORY[:1])
    with engine.begin() as connection:
        connection.execute(form.update().values(form=FORM + 1))
    with pytest.raises(DatabaseError, match="it is too old"):
        prepare(engine)
    with pytest.raises(DatabaseError, match=f"the views have form {FORM + 1} by now"):
        projection.positions(START)
    with pytest.raises(DatabaseError, match=f"the views have form {FORM + 1} by now"):
        projection.apply(seens(HISTORY[1:2], 1), {EVENTS: 1}, {EVENTS: 2})
    assert order_of(views, ORDER_ID).version == 1


def test_tables_that_are_not_ours_are_left_alone(url):
    engine = open_database(url, writes=True)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (theirs INTEGER)")
    with pytest.raises(DatabaseError, match="not ours: orders"):
        prepare(engine)
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT * FROM orders").all() == []
    engine.dispose()


def test_a_file_that_was_removed_is_not_written_on(tmp_path):
    file = tmp_path / "views.db"
    engine = open_database(make_url(f"sqlite:///{file}"), writes=True)
    prepare(engine)
    file.unlink()
    with pytest.raises(OperationalError, match="no such table"):
        Projection(engine).positions(START)
    assert prepare(engine)
    assert Projection(engine).positions(START) == START
    engine.dispose()
