"""Server-sent events: each once and in order, resumed where they broke off, and nobody is buffered for ever."""

import json
import signal
from http.client import HTTPConnection, IncompleteRead

import pytest
from sqlalchemy import make_url

from order_service.stream.topics import topic_names
from order_service.views.queries import News, Recorded, Views
from order_service.views.tables import open_database
from order_service.web.pulse import Pulse
from order_service.web.streams import QUEUE_MAX, Streams, TooSlow
from tests.samples import events
from tests.service import PATIENCE_S
from tests.web.shop import PAYMENT, SHIPMENT


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


@pytest.mark.parametrize("path", ["/stream", None])
@pytest.mark.parametrize("given", ["-1", "one", "9" * 30, "0-0.x", "99-5"])
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
        assert [stream.response.readline() for _ in range(4)] == [
            b"id: 1\n",
            b"retry: 1000\n",
            b"\n",
            b": still here\n",
        ]


@pytest.fixture
def streams(tmp_path):
    """Streams that nobody feeds but the test."""
    engine = open_database(make_url(f"sqlite:///{tmp_path}/views.db"))
    return Streams(Pulse(Views(engine, topic_names())))


async def test_a_reader_that_is_too_slow_is_cut_off(streams):
    recorded = Recorded(events[0], "dana", 0, 0, 0)
    with streams.subscription() as slow, streams.subscription(events[0].order_id) as quick:
        for _ in range(QUEUE_MAX):
            streams.hear(News((recorded,), (), {}))
            assert await quick.next(1.0) == recorded
        assert await slow.next(1.0) == recorded
        streams.hear(News((recorded, recorded), (), {}))
        with pytest.raises(TooSlow):
            await slow.next(1.0)


async def test_who_has_gone_is_not_waited_for(streams):
    with streams.subscription("order-1"), streams.subscription(is_eager=True):
        assert streams.every_s is not None
    assert streams.every_s is None
