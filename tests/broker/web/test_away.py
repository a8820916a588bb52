"""HTTP while something is away: Kafka, the projector, the HTTP server itself. A repeat with the same key is safe."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.kafka import running_broker
from tests.support.samples import SHOP, but, create
from tests.support.service import until
from tests.support.shop import ORDER, running_shop


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with running_broker(tmp_path_factory.mktemp("own-kafka")) as own:
        yield own


@pytest.fixture(scope="module")
def shop(broker, tmp_path_factory, users):
    with running_shop(broker.bootstrap_servers, tmp_path_factory.mktemp("away"), users) as running:
        yield running


def history(http, answer):
    """Return the events of the order that was placed."""
    return http.get(f"/v1/orders/{answer.body['order_id']}/events").body["events"]


def test_a_server_killed_before_it_answers_has_lost_nothing(shop, http):
    doomed, process = shop.serve()
    shop.projector.send(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(doomed.ask, "POST", "/v1/orders", ORDER, Idempotency_Key="killed", Prefer="wait=30")
        until(lambda: len(shop.service.events()) == 1, "it is decided, and the caller has no answer")
        process.send(signal.SIGKILL)
        shop.projector.send(signal.SIGCONT)
        assert isinstance(asking.exception(40), ConnectionError)
    again = http.create("killed")
    assert again.status == 201
    assert [event["type"] for event in history(http, again)] == ["OrderCreated"]
    assert len(shop.service.events()) == 1


def test_a_projector_that_stands_still_is_waited_for(shop, http):
    shop.projector.send(signal.SIGSTOP)
    waiting = http.ask("POST", "/v1/orders", ORDER, Prefer="wait=1")
    assert waiting.status == 202
    shop.projector.send(signal.SIGCONT)
    until(lambda: http.get(waiting.headers["location"]).status == 200, "the outcome is in the views")


def test_a_payment_sent_again_to_another_server_gets_the_accepted_copys_outcome(shop, http):
    other, process = shop.serve()
    service, pay = shop.service, {"payment_id": "payment-1", "amount": 3800, "currency": "EUR"}
    events, rejections = len(service.events()), len(service.rejections())
    shop.projector.send(signal.SIGSTOP)
    early = http.ask("POST", "/v1/orders/early/pay", pay, Idempotency_Key="early", Prefer="respond-async")
    assert early.status == 202
    until(lambda: len(service.rejections()) > rejections, "the first copy is refused: there is no such order")
    service.send([but(create, order_id="early", actor=SHOP)])
    until(lambda: len(service.events()) > events, "the order is there")
    with ThreadPoolExecutor(1) as pool:
        headers = {"Idempotency_Key": "early", "Prefer": "wait=30"}
        asking = pool.submit(other.ask, "POST", "/v1/orders/early/pay", pay, **headers)
        until(lambda: len(service.events()) > events + 1 or asking.done(), "the second copy is accepted")
        shop.projector.send(signal.SIGCONT)
        answer = asking.result()
    assert (answer.status, answer.body["status"]) == (200, "paid")
    location = early.headers["location"]  # of the first copy, and without its query of the command
    assert [server.get(location).body["outcome"] for server in (http, other)] == ["rejected"] * 2
    command = location.partition("?")[0]
    assert [server.get(command).body["outcome"] for server in (http, other)] == ["accepted"] * 2
    process.send(signal.SIGTERM)
    assert process.wait_ended() == 0


def test_a_server_that_is_told_to_end_answers_those_who_wait(shop, users):
    leaving, process = shop.serve()
    with ThreadPoolExecutor(1) as pool:
        shop.projector.send(signal.SIGSTOP)
        asking = pool.submit(leaving.ask, "POST", "/v1/orders", ORDER, Prefer="wait=30")
        count = len(shop.service.events())
        until(lambda: len(shop.service.events()) > count or asking.done(), "it is decided")
        process.send(signal.SIGTERM)
        answer = asking.result(20)
    shop.projector.send(signal.SIGCONT)
    assert answer.status == 202
    assert process.wait_ended() == 0


def test_while_kafka_is_away_a_command_gets_503_and_then_happens_once(shop, http, broker):
    placed = http.create("before")
    broker.stop()
    refused = http.create("meanwhile")
    assert (refused.status, refused.body["type"]) == (503, "/problems/service_unavailable")
    assert refused.headers["retry-after"] == "1"
    assert http.get(placed.headers["location"]).status == 200
    until(lambda: not shop.projector.is_ready(), "the projector says that its views are not updated", within_s=40)
    broker.start()
    worker = shop.service.start_worker()  # the first one has ended, or goes on
    worker.wait_ready()
    answer = until(
        lambda: (again := http.create("meanwhile")).status in (200, 201) and again, "Kafka takes commands again"
    )
    assert [event["version"] for event in history(http, answer)] == [1]
    until(shop.projector.is_ready, "the projector hears of Kafka again", within_s=40)
    until(lambda: "orders_views_lag_offsets 0.0" in shop.projector.admin("/metrics")[1], "the views have all there is")
