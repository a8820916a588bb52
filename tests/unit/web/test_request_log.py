"""What the log says about a request: its ids in every line, also of its tasks, and no line of another's."""

import asyncio
import logging

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from structlog.testing import capture_logs

from order_service.errors import KafkaAwayError
from order_service.kafka.command_producer import CommandsTopic
from order_service.local.broker import free_port
from order_service.sdk.testing import samples
from order_service.settings import Settings
from order_service.web.access.key_sources import KeyServer
from order_service.web.server import OPERATION, SITE, Site, _prepare, problems
from tests.support.alone import application_alone

TRACE_ID = samples.TRACEPARENT.split("-")[1]
log = structlog.get_logger()


async def says(request):
    request[OPERATION] = "get_order"
    log.info("In the request.")
    await asyncio.to_thread(log.info, "In its thread.")
    await asyncio.create_task(_says_later())
    return web.Response()


async def _says_later():
    log.info("In its task.")


async def breaks(_request):
    raise RuntimeError("with a payload")


@pytest.fixture
async def client():
    app = web.Application(middlewares=[problems])
    app[SITE] = Site()
    app.on_response_prepare.append(_prepare)
    app.add_routes([web.route("*", "/says/{id}", says), web.get("/breaks", breaks)])
    async with TestClient(TestServer(app)) as client:
        yield client


@pytest.fixture
def logged():
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        yield lines


async def test_every_line_of_a_request_has_its_ids(client, logged, access):
    answer = await client.get("/says/1", headers={"X-Request-Id": "request-1", "traceparent": samples.TRACEPARENT})
    assert answer.headers["X-Request-Id"] == "request-1"
    assert [line["event"] for line in logged] == [
        "In the request.", "In its thread.", "In its task.", "Request served.",
    ]  # fmt: skip
    assert {(line["request_id"], line["trace_id"]) for line in logged} == {("request-1", TRACE_ID)}


async def test_an_error_that_no_handler_expects_has_the_ids_and_no_payload(client, logged):
    answer = await client.get("/breaks", headers={"X-Request-Id": "request-1"})
    [line] = logged
    assert (answer.status, answer.headers["X-Request-Id"]) == (500, "request-1")
    assert (line["request_id"], line["error"]) == ("request-1", "RuntimeError")
    assert "payload" not in repr(line)


async def test_the_ids_of_a_request_end_with_it_also_on_the_same_connection(client, logged):
    await client.get("/says/1", headers={"X-Request-Id": "request-1", "traceparent": samples.TRACEPARENT})
    logged.clear()
    answer = await client.get("/says/2")
    assert {line["request_id"] for line in logged} == {answer.headers["X-Request-Id"]} != {"request-1"}
    assert not [line for line in logged if "trace_id" in line]
    assert structlog.contextvars.get_contextvars() == {}


@pytest.mark.parametrize("sent", [None, "", "a b", "é", "x" * 129])
async def test_a_request_without_a_valid_id_gets_one(client, logged, sent):
    answers = [await client.get("/says/1", headers={} if sent is None else {"X-Request-Id": sent}) for _ in "12"]
    ids = {answer.headers["X-Request-Id"] for answer in answers}
    assert {len(each) for each in ids} == {32}
    assert len(ids) == 2
    assert {line["request_id"] for line in logged} == ids


async def test_without_a_level_for_it_no_request_is_a_line(client, logged):
    await client.get("/says/1")
    assert "Request served." not in [line["event"] for line in logged]


@pytest.mark.parametrize(("method", "shown"), [("GET", "GET"), ("PURGE", "_OTHER")])
async def test_the_line_of_a_request_has_neither_path_nor_query_nor_unknown_methods(
    client, logged, access, method, shown
):
    await client.request(method, "/says/order-7?user_id=dana")
    [line] = [line for line in logged if line["event"] == "Request served."]
    assert isinstance(line.pop("duration_ns"), int)
    assert line == {
        "event": "Request served.",
        "log_level": "info",
        "http_method": shown,
        "http_status": 200,
        "operation": "get_order",
        "request_id": line["request_id"],
    }


async def test_responses_of_the_service_have_an_id_also_pages_and_problems(tmp_path):
    with application_alone(tmp_path) as application:
        async with TestClient(TestServer(application)) as client:
            for path in ("/", "/v1/orders", "/v1/orders/none", "/nothing"):
                assert len((await client.get(path)).headers["X-Request-Id"]) == 32


async def test_the_keys_that_all_requests_use_are_not_fetched_in_the_name_of_one():
    seen = []

    class Client:
        async def request(self, _method, _url):
            seen.append(structlog.contextvars.get_contextvars())
            raise asyncio.CancelledError

    keys = KeyServer("http://127.0.0.1:1/jwks", ["RS256"])
    with structlog.contextvars.bound_contextvars(request_id="request-1"):
        fetching = keys._start_fetch(Client())  # type: ignore[arg-type]
    await asyncio.wait((fetching,))
    await keys.close()
    assert seen == [{}]


async def test_the_producer_that_all_requests_use_does_not_log_in_the_name_of_one(caplog):
    caplog.set_level(logging.INFO, "aiokafka")  # other tests may have set another one
    seen = []

    class Seen(logging.Handler):
        def emit(self, _record):
            seen.append(structlog.contextvars.get_contextvars())

    logger, handler = logging.getLogger("aiokafka"), Seen()
    logger.addHandler(handler)
    topic = CommandsTopic(Settings(kafka_bootstrap_servers=f"127.0.0.1:{free_port()}"))
    try:
        with structlog.contextvars.bound_contextvars(request_id="request-1"), pytest.raises(KafkaAwayError):
            await topic.send(samples.create_order(), [])
    finally:
        logger.removeHandler(handler)
        await topic.stop()
    assert seen
    assert all(ids == {} for ids in seen)
