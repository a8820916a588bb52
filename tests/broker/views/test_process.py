"""Projectors as processes, on a real Kafka: killed, side by side, started again, the views are the fold of events."""

import signal
from collections import defaultdict
from functools import reduce

import pytest

from order_service.local.broker import free_port
from order_service.views import order_view
from order_service.views.tables import FORM, form, prepare
from tests.support.event_log import order_of
from tests.support.samples import ORDER_ID, SHOP, but, create, ship
from tests.support.service import histories, until

PROJECTOR = ("order_service.cli", "projector")
ORDERS = 60


@pytest.fixture
def start(service, url):
    """Start a projector."""
    shown = url.render_as_string(hide_password=False)
    return lambda: service.start_worker(module=PROJECTOR, ORDERS_DATABASE_URL=shown, ORDERS_LOG="json")


def has_read(views, order_ids, version=5):
    """Return whether all of these orders are in the views at this version."""

    def are_there():
        found = [order_of(views, order_id) for order_id in order_ids]
        return all(order is not None and order.version >= version for order in found)

    return are_there


def told_to_end(projector):
    """Send SIGTERM to a projector, and return its exit code."""
    projector.send(signal.SIGTERM)
    return projector.wait_ended()


def check(service, views):
    """Compare the views with the events and the rejections, of which each is there once."""
    lives = defaultdict(list)
    for event in service.events():
        lives[event.order_id].append(event)
    for order_id, events in lives.items():
        assert order_of(views, order_id) == reduce(order_view.after, events, None)
        assert [recorded.event for recorded in views.history(order_id)] == events
        assert all(views.command(order_id, event.command_id) == event for event in events)
    for rejection in service.rejections():
        assert views.command(rejection.order_id, rejection.command_id) == rejection


def test_whoever_is_killed_the_views_are_the_fold_of_the_events(service, start, views):
    service.start_worker().wait_lanes(4)
    doomed, other = start(), start()
    with service.sending(histories(ORDERS), per_s=150):
        until(has_read(views, ["order-1"], version=1), "the first order is in the views")
        doomed.send(signal.SIGKILL)
        service.send([but(ship, order_id=ORDER_ID + "-none")])
        third = start()
    until(has_read(views, [f"order-{number}" for number in range(1, ORDERS + 1)]), "all are in the views")
    until(lambda: views.command(ORDER_ID + "-none", ship.command_id), "the refusal is in the views")
    check(service, views)
    assert other.is_ready()
    until(third.is_ready, "the third has built what there was")
    for projector in (other, third):
        assert told_to_end(projector) == 0


def test_views_that_are_made_anew_are_built_again_by_whoever_runs(service, start, views, engine):
    service.start_worker().wait_lanes(4)
    service.send(histories(5))
    first = start()
    until(has_read(views, ["order-5"]), "the last order is in the views")
    with engine.begin() as connection:
        connection.execute(form.update().values(form=FORM - 1))
    assert prepare(engine)
    until(has_read(views, ["order-5"]), "the last order is in the views again")
    check(service, views)
    assert told_to_end(first) == 0
    assert "The views are built." in first.log()


def test_a_database_of_another_log_is_refused(service, start, projection, views):
    service.start_worker().wait_lanes(4)
    service.send([but(create, actor=SHOP)])
    first = start()
    until(has_read(views, [ORDER_ID], version=1), "the order is in the views")
    told_to_end(first)
    places = projection.positions([])
    projection.apply([], places, {place: offset + 1000 for place, offset in places.items()})
    second = start()
    assert second.wait_ended() == 1
    assert "the views do not match the log: partition 0 of " in second.log()


def test_a_database_that_is_none_is_one_line(service):
    for url in ("mysql://x/y", f"postgresql://orders:hunter2@127.0.0.1:{free_port()}/none"):
        projector = service.start_worker(module=PROJECTOR, ORDERS_DATABASE_URL=url)
        assert projector.wait_ended() == 1
        assert "ORDERS_DATABASE_URL" in projector.log()
        assert "Traceback" not in projector.log()
        assert "hunter2" not in projector.log()
