"""Server-sent events: each once and in order, resumed where they broke off, and no reader is buffered for ever."""

import json
import signal
import sqlite3
from contextlib import closing
from http.client import HTTPConnection, IncompleteRead

import pytest
from sqlalchemy import make_url

from order_service.kafka.topics import topic_names
from order_service.views.projector import Projection
from order_service.views.queries import StoredEvent, ViewChanges, Views
from order_service.views.tables import open_database, prepare
from order_service.web.live.positions import LogPosition
from order_service.web.live.subscriptions import QUEUE_MAX, Streams, Subject
from order_service.web.live.view_poller import ViewPoller
from tests.support.event_log import EVENTS, START, after, seens
from tests.support.samples import events
from tests.support.service import PATIENCE_S
from tests.support.shop import PAYMENT, SHIPMENT


class Stream:
    """An open stream; `next` gives id, type and data of the next event."""

    def __init__(self, port, path, last_event_id=None):
        self.connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        self.connection.request("GET", path, headers=headers)
        self.response = self.connection.getresponse()
        assert self.response.status == 200, self.response.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.response.close()
        self.connection.close()

    def next(self):
        fields: dict[str, str] = {}
        while line := self.response.readline().decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if not name and fields.get("data"):
                return fields["id"], fields["event"], json.loads(fields["data"])
            fields |= {name: value}
        raise EOFError


@pytest.fixture
def here(http):
    """Place an order; give where it is."""
    return http.create().headers["location"]


def test_an_order_is_followed_from_its_beginning(http, here):
    with Stream(http.port, f"{here}/stream") as stream:
        assert stream.next()[:2] == ("1", "OrderCreated")
        http.ask("POST", f"{here}/pay", PAYMENT)
        version, kind, event = stream.next()
        assert (version, kind, event["version"]) == ("2", "OrderPaid", 2)
        assert event in http.get(f"{here}/events").body["events"]


def test_a_stream_goes_on_behind_what_was_seen(http, here):
    http.ask("POST", f"{here}/pay", PAYMENT)
    with Stream(http.port, f"{here}/stream", "1") as stream:
        assert stream.next()[:2] == ("2", "OrderPaid")
        http.ask("POST", f"{here}/ship", SHIPMENT)
        assert stream.next()[:2] == ("3", "OrderShipped")


def test_all_orders_are_followed_from_now_on_and_resumed_at_another_server(shop, http):
    other, process = shop.serve()
    http.create()
    with Stream(http.port, "/v1/events") as stream:
        first = http.create().body["order_id"]
        place, _, event = stream.next()
        assert event["order_id"] == first
    missed = [http.create().body["order_id"] for _ in range(5)]
    with Stream(other.port, "/v1/events", place) as stream:
        found = [stream.next() for _ in missed]
        assert sorted(event["order_id"] for _, _, event in found) == sorted(missed)
        process.send(signal.SIGTERM)
        with pytest.raises((EOFError, ConnectionError, IncompleteRead)):
            stream.next()
    assert process.wait_ended() == 0


def test_a_stream_is_resumed_at_a_server_whose_views_are_behind(shop, http, here, tmp_path):
    url = f"sqlite:///{tmp_path}/late.db"
    views = str(make_url(shop.service.environment["ORDERS_DATABASE_URL"]).database)
    with closing(sqlite3.connect(views)) as source, closing(sqlite3.connect(tmp_path / "late.db")) as target:
        source.backup(target)
    late, server = shop.serve(ORDERS_DATABASE_URL=url)
    with Stream(http.port, f"{here}/stream", "1") as stream, Stream(http.port, "/v1/events") as all_events:
        http.ask("POST", f"{here}/pay", PAYMENT)
        assert stream.next()[0] == "2"
        place = all_events.next()[0]
    unknown = http.create().headers["location"]
    assert late.get(here).body["version"] == 1
    with (
        Stream(late.port, f"{here}/stream", "2") as stream,
        Stream(late.port, "/v1/events", place) as all_events,
        Stream(late.port, f"{unknown}/stream", "1") as unseen,
    ):
        http.ask("POST", f"{here}/ship", SHIPMENT)
        http.ask("POST", f"{unknown}/pay", PAYMENT)
        projector = shop.service.start_worker(None, module=("order_service.cli", "projector"), ORDERS_DATABASE_URL=url)
        assert stream.next()[:2] == ("3", "OrderShipped")
        assert {all_events.next()[1] for _ in range(3)} == {"OrderCreated", "OrderShipped", "OrderPaid"}
        assert unseen.next()[:2] == ("2", "OrderPaid")
    for process in (server, projector):
        process.send(signal.SIGTERM)
        assert process.wait_ended() == 0


@pytest.mark.parametrize("path", ["/stream", None])
@pytest.mark.parametrize("given", ["-1", "one", "9" * 30, "0-0.x", "99-5", "0-999999999", "999999999"])
def test_an_id_of_no_event_is_refused(http, here, path, given):
    answer = http.ask("GET", "/v1/events" if path is None else here + path, Last_Event_ID=given)
    assert (answer.status, answer.body["type"]) == (400, "/problems/invalid_parameter")
    assert answer.body["errors"][0]["pointer"] == "Last-Event-ID"


def test_a_stream_that_breaks_before_its_first_event_is_resumed(http):
    with Stream(http.port, "/v1/events") as stream:
        place = stream.response.readline().decode().removeprefix("id: ").strip()
    missed = http.create().body["order_id"]
    with Stream(http.port, "/v1/events", place) as stream:
        assert stream.next()[2]["order_id"] == missed


def test_a_stream_of_nothing_is_not_found(http):
    assert http.get("/v1/orders/no-such-order/stream").status == 404


def test_a_quiet_stream_says_that_it_is_still_there(http, here):
    with Stream(http.port, f"{here}/stream", "1") as stream:
        assert [stream.response.readline() for _ in range(5)] == [
            b"id: 1\n",
            b"retry: 1000\n",
            b"\n",
            b": still here\n",
            b"id: 1\n",
        ]


@pytest.fixture
def streams(tmp_path):
    """Provide streams that only the test feeds."""
    engine = open_database(make_url(f"sqlite:///{tmp_path}/views.db"))
    return Streams(ViewPoller(Views(engine, topic_names())))


async def test_a_reader_whose_queue_is_full_reads_on_in_the_views(streams):
    recorded = StoredEvent(events[0], "dana", 0, 0, 0)
    order = Subject(order_id=events[0].order_id)
    with streams.subscription(Subject()) as slow, streams.subscription(order) as quick:
        for reader in (slow, quick):
            assert reader.is_behind
            reader.restart()
        for _ in range(QUEUE_MAX):
            streams.on_changes(ViewChanges((recorded,), (), {}))
            assert await quick.next(1.0) == recorded
        assert not slow.is_behind
        streams.on_changes(ViewChanges((recorded,), (), {}))
        assert slow.is_behind
        assert quick.is_drained is False
        slow.restart()
        assert slow.is_drained


async def test_a_user_is_not_handed_what_others_order(streams):
    with streams.subscription(Subject(user_id="erin")) as erins, streams.subscription(Subject(user_id="dana")) as danas:
        for reader in (erins, danas):
            reader.restart()
        streams.on_changes(ViewChanges((StoredEvent(events[0], "dana", 0, 7, 0),), (), {("events", 0): 8}))
        assert danas.is_drained is False
        assert erins.is_drained
    assert streams.reached == {("events", 0): 8}


async def test_who_has_gone_is_not_waited_for(streams):
    with streams.subscription(Subject(order_id="order-1")), streams.subscription(Subject()):
        assert streams.poll_interval_s is not None
    assert streams.poll_interval_s is None


async def test_who_waits_is_woken_when_the_server_ends(streams):
    with streams.subscription(Subject()) as waiting:
        streams.stop()
        assert await waiting.next(PATIENCE_S) is None


@pytest.fixture
def in_all(tmp_path):
    """Make readers of all events of views in which `events` are."""
    engine = open_database(make_url(f"sqlite:///{tmp_path}/all.db"), writes=True)
    prepare(engine)
    projection = Projection(engine, topic_names())
    projection.positions(START)
    found = seens(events)
    projection.apply(found, START, after(START, found))
    views = Views(engine, topic_names())
    yield lambda user_id: LogPosition(views, EVENTS.topic, user_id, {(EVENTS.topic, 0): 0})
    engine.dispose()


@pytest.mark.parametrize("user_id", ["dana", None])
async def test_a_reader_takes_each_event_once(in_all, user_id):
    position = in_all(user_id)
    page = await position.page()
    assert [recorded.event for recorded in page] == list(events)
    assert [position.advance(recorded) for recorded in (*page, *page)] == [True] * len(page) + [False] * len(page)
    assert position.id == f"0-{len(events)}"


async def test_a_user_who_has_none_of_the_events_does_not_read_them_again(in_all):
    position = in_all("erin")
    assert await position.page() == ()
    assert position.id == f"0-{len(events)}"
    position.advance_to({(EVENTS.topic, 0): 40, ("other", 1): 3})
    assert position.id == "0-40"
    position.advance_to({(EVENTS.topic, 0): 30})
    assert position.id == "0-40"
