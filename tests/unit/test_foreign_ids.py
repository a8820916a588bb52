"""Ids of other systems go every way unharmed: they are neither trimmed, normalized, nor escaped once too often.

The rules themselves are in `domain/test_content.py`, and the bounds at every entrance in `web/test_bounds.py`.
"""

import asyncio
import json
from urllib.parse import urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator

from order_service.cli.envelope import build_command
from order_service.cli.ordering import _line
from order_service.contracts.__main__ import ROOT
from order_service.domain.decision import UserCheck
from order_service.domain.messages import FOREIGN_ID_MUST_BE, CreateOrder, Event
from order_service.errors import DecodeError
from order_service.sdk import Accepted, Refused, Unreadable
from order_service.sdk.testing import InMemoryOrders
from order_service.users.client import CallPolicy, UserClient
from order_service.users.stub import Stub, running
from order_service.web.docs import openapi
from order_service.wire.avro import decode_event, encode_command, encode_event
from order_service.wire.commands import decode_command, encode_json_command
from tests.support import samples
from tests.support.copies import two_servers
from tests.support.foreign_ids import (
    ENCODABLE_NO_IDS,
    FOREIGN_IDS,
    NINE,
    NO_IDS,
    TABLE,
    foreign_ids,
    ids_in,
    life,
    some,
)
from tests.support.samples import SHOP, but, take


@pytest.mark.parametrize("encode", [encode_json_command, encode_command], ids=["json", "avro"])
@some(40)
@given(ids=NINE)
def test_over_kafka(encode, ids):
    entry, events = None, []
    for command in life(ids):
        decoded = decode_command(encode(command))
        assert decoded == command
        event, entry = take(decoded, entry)
        assert isinstance(event, Event)
        events.append(decode_event(encode_event(event)))
    assert ids_in(events) == ids


OPENAPI = json.loads(openapi.FILE.read_text(encoding="utf-8"))["components"]
ASYNCAPI = json.loads((ROOT / "asyncapi.json").read_text(encoding="utf-8"))["components"]["schemas"]
SCHEMAS = {
    "a body": (OPENAPI["schemas"]["ShipBody"]["properties"]["carrier"], ""),
    "a header": (OPENAPI["parameters"]["X-Correlation-Id"]["schema"], ""),
    "a line": (ASYNCAPI["Line"]["properties"]["sku"], ""),
    "a command": (ASYNCAPI["PayOrder"]["properties"]["correlation_id"], ""),
    "an actor": (ASYNCAPI["PayOrder"]["properties"]["actor"], "service:"),
}


@pytest.mark.parametrize(("schema", "prefix"), SCHEMAS.values(), ids=SCHEMAS)
def test_the_documents_allow_the_same(schema, prefix):
    allowed = Draft202012Validator(schema)
    assert [text for text in FOREIGN_IDS if not allowed.is_valid(prefix + text)] == []
    assert [text for text in ENCODABLE_NO_IDS.values() if allowed.is_valid(prefix + text)] == []


@pytest.mark.parametrize("text", NO_IDS.values(), ids=NO_IDS)
def test_a_correlation_id_that_is_none_is_a_dead_letter(text):
    command = {"type": "DeliverOrder", "command_id": "c", "order_id": "o", "actor": SHOP, "correlation_id": text}
    with pytest.raises(DecodeError):
        decode_command(json.dumps(command).encode())


@pytest.mark.parametrize("encode", [encode_json_command, encode_command], ids=["json", "avro"])
def test_a_command_of_before_with_an_empty_correlation_id_is_still_read(encode):
    value = encode(but(samples.deliver, correlation_id=""))
    assert decode_command(value, is_past=True).correlation_id == ""
    with pytest.raises(DecodeError, match="correlation_id"):
        decode_command(value)
    with pytest.raises(DecodeError, match="correlation_id"):
        decode_command(encode(but(samples.deliver, correlation_id="a\0")), is_past=True)


@some(20)
@given(ids=NINE)
async def test_through_the_sdk(ids):
    asked: list[str] = []

    def check(user_id: str) -> UserCheck:
        asked.append(user_id)
        return UserCheck.ACTIVE

    orders = InMemoryOrders(check_user=check)
    for command in life(ids):
        assert isinstance(await orders.commands().send(command), Accepted)
    orders.end()
    async with orders.projection() as subscriber:
        events = [record.event async for record in subscriber]
    assert ids_in(events) == ids
    assert asked == ids[:1]


@pytest.mark.parametrize("text", ENCODABLE_NO_IDS.values(), ids=ENCODABLE_NO_IDS)
async def test_the_sdk_refuses_what_is_no_id(text):
    orders = InMemoryOrders().commands(SHOP)
    refused = await orders.create("order-1", text, "EUR", [samples.mugs])
    assert isinstance(refused, Refused)
    assert refused.rejection.pointer == "/user_id"
    assert isinstance(await orders.deliver("order-1", correlation_id=text), Unreadable)


async def test_the_sdk_raises_for_a_text_that_utf_8_cannot_hold():
    with pytest.raises(UnicodeEncodeError):
        await InMemoryOrders().commands(SHOP).create("order-1", "\ud800", "EUR", [samples.mugs])


CARRIED = foreign_ids.filter(lambda text: text not in {".", ".."})


@some(30)
@given(user_id=CARRIED)
async def test_in_the_path_of_the_user_service(user_id):
    stub = Stub()
    async with running(stub) as address, UserClient(CallPolicy(url=address)) as users:
        await users.check(user_id)
    assert list(stub.requests) == [user_id]


async def test_in_the_path_of_the_user_service_for_the_whole_table():
    stub = Stub()
    carried = [user_id for user_id in FOREIGN_IDS if user_id not in {".", ".."}]
    async with running(stub) as address, UserClient(CallPolicy(url=address)) as users:
        assert [await users.check(user_id) for user_id in carried] == [UserCheck.ACTIVE] * len(carried)
    assert list(stub.requests) == carried


NUMBERS = st.integers(0, 10**6)


@given(sku=foreign_ids, quantity=NUMBERS, unit_price=NUMBERS, name=st.none() | foreign_ids)
@example(sku="a:2:1250", quantity=1, unit_price=5, name=None)
@example(sku="gid://shopify/Product/7", quantity=2, unit_price=1250, name="at 10:30: a mug")
def test_on_the_command_line(sku, quantity, unit_price, name):
    fields = {"sku": sku, "quantity": quantity, "unit_price": unit_price}
    assert _line(f"{sku}:{quantity}:{unit_price}") == fields
    if name is not None and not (":" in name or name.lstrip("+-").isdecimal()):
        assert _line(f"{sku}:{quantity}:{unit_price}:{name}") == fields | {"name": name}
    body = {"user_id": sku, "currency": "EUR", "lines": [fields]}
    command = build_command(CreateOrder, "order-1", body, {"actor": f"user:{sku}", "correlation_id": sku})
    assert isinstance(command, CreateOrder)
    assert [command.user_id, command.lines[0].sku, command.actor, command.correlation_id] == [
        sku,
        sku,
        f"user:{sku}",
        sku,
    ]


@pytest.fixture
async def shop(tmp_path):
    async with two_servers(tmp_path) as (world, http, _):
        yield world, http


@some(8)
@given(ids=NINE)
@example(ids=TABLE[0])
@example(ids=TABLE[1])
@example(ids=TABLE[2])
@example(ids=TABLE[3])
async def test_over_http_and_in_a_stream(shop, ids):
    world, http = shop
    user, sku, line, address, *_, correlation, _ = ids
    correlation = correlation.strip(" ") or "only blanks"  # HTTP takes them off the ends of a header
    body = {
        "user_id": user,
        "currency": "EUR",
        "lines": [{"sku": sku, "line_id": line, "quantity": 2, "unit_price": 1250}],
        "shipping_address_ref": address,
    }
    creating = http.asking("POST", "/v1/orders", body, X_Correlation_Id=correlation)
    await world.sent(len(world.commands) + 1)
    world.decide()
    world.project()
    created = await creating
    assert created.status == 201
    assert {name: created.body[name] for name in body} == body

    listed = await http.ask("GET", f"/v1/orders?{urlencode({'user_id': user, 'limit': 200})}")
    assert created.body in listed.body["orders"]
    assert {order["user_id"] for order in listed.body["orders"]} == {user}

    event = await first_event(http, f"/v1/orders/{created.body['order_id']}/stream")
    assert {name: event[name] for name in body} == body
    assert event["correlation_id"] == correlation


async def first_event(http, path):
    """Read a stream until its first event, line by line: only CR and LF end a line."""
    async with http._client.get(path) as response:
        async for text in response.content:
            if text.startswith(b"data:"):
                return json.loads(text.removeprefix(b"data:"))
    raise AssertionError("the stream ended")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("Größe".encode("latin-1"), id="Latin-1"),
        pytest.param(b"a\xed\xa0\x80", id="a surrogate in UTF-8"),
        pytest.param(b"", id="empty"),
        pytest.param(b"s" * 256, id="too long"),
    ],
)
async def test_a_correlation_id_in_a_header_is_utf_8(shop, value):
    _, http = shop
    body = b'{"currency": "EUR", "lines": [{"sku": "mug-blue", "quantity": 1, "unit_price": 1}]}'
    head = b"POST /v1/orders HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", http._client.port)
    writer.write(head + b"X-Correlation-Id: %b\r\nContent-Length: %d\r\n\r\n%b" % (value, len(body), body))
    answered, _, answer = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert answered.startswith(b"HTTP/1.1 400 ")
    [fault] = json.loads(answer)["errors"]
    assert (fault["pointer"], fault["detail"]) == ("X-Correlation-Id", f"must be {FOREIGN_ID_MUST_BE}, in UTF-8")
