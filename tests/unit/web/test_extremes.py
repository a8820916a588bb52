"""What the documents allow is accepted, and what they forbid is refused: over HTTP, as JSON and as Avro over Kafka.

The values come from the JSON Schemas of `openapi.json` and of the AsyncAPI document alone.
"""

import json
from typing import Any

import msgspec
import pytest

from order_service.contracts import asyncapi
from order_service.contracts.source import Source
from order_service.domain.decision import reject
from order_service.domain.entry import Entry
from order_service.domain.messages import (
    COMMAND_TYPES,
    AmendOrder,
    CancelOrder,
    Command,
    CreateOrder,
    Event,
    Line,
    Rejection,
)
from order_service.domain.refusals import Reason, Refusal
from order_service.errors import DecodeError
from order_service.kafka.topics import topic_configs, topic_names
from order_service.web.api.operations import OPERATIONS
from order_service.web.docs import openapi
from order_service.web.http.requests import MAX_BODY_BYTES
from order_service.wire import changelog
from order_service.wire.avro import MAX_COMMAND_BYTES, MAX_CONTENT_BYTES, encode_command, encode_event, encode_rejection
from order_service.wire.changelog import WaitingCommand
from order_service.wire.commands import decode_command, encode_json_command
from tests.support.copies import two_servers
from tests.support.extremes import HEAD, Bound, Extremes, body_of, in_every_form, largest_order, with_value
from tests.support.samples import NOW, ORDER_ID, SHOP, but, cancel, create, deliver, entry_after, pay, ship, take

OVERHEAD = 64 * 1024
"""More than the key and the headers of a record have."""

SCHEMAS = asyncapi.document(Source())["components"]["schemas"]
KAFKA = Extremes(SCHEMAS)
BODIES = openapi.document()["components"]["schemas"]
HTTP = Extremes(BODIES)

FREE = {"sku": "a", "quantity": 1, "unit_price": 0}
DEAR = [{**FREE, "line_id": f"{number}", "quantity": 10**6, "unit_price": 10**9} for number in range(10)]
ORDER = {"lines": [FREE], "discount": 0, "tax": 0, "shipping": 0}
SAMPLES: dict[type[Command], dict[str, Any]] = {
    type(sample): {**json.loads(encode_json_command(but(sample, actor=SHOP, correlation_id=None))), **changes}
    for sample, changes in (
        (create, ORDER),
        (but(create, user_id="x"), ORDER),
        (pay, {}),
        (ship, {}),
        (deliver, {}),
        (cancel, {}),
    )
}
SAMPLES[AmendOrder] = {**SAMPLES[CreateOrder], "type": "AmendOrder", "command_id": "amend-1"}
for name in ("user_id", "currency"):
    del SAMPLES[AmendOrder][name]
BEFORE: dict[type[Command], tuple[Command, ...]] = {
    kind: {"CreateOrder": (), "ShipOrder": (create, pay), "DeliverOrder": (create, pay, ship)}.get(
        kind.__name__, (create,)
    )
    for kind in COMMAND_TYPES
}
ROUTES = {
    operation.command: operation for operation in OPERATIONS if operation.command and operation.method != "DELETE"
}


def entry_before(kind: type[Command]) -> Entry | None:
    return entry_after(BEFORE[kind]) if BEFORE[kind] else None


def is_within_bounds(value: bytes) -> bool:
    """Return whether a worker finds all values of a command in bounds."""
    try:
        command = decode_command(value)
    except DecodeError:
        return False
    outcome, _ = take(command, entry_before(type(command)))
    assert isinstance(outcome, Event | Rejection)
    return isinstance(outcome, Event) or outcome.reason == "payment_mismatch"


def documents(sample: dict[str, Any], bound: Bound) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a command with a value at a bound, and one past it. A discount needs an order that is worth as much."""
    if bound.path == ("discount",) and bound.keyword == "maximum":
        sample = {**sample, "lines": DEAR}
    if bound.path == ("lines",):
        number_lines(bound)
    return with_value(sample, bound.path, bound.at), with_value(sample, bound.path, bound.above)


def number_lines(bound: Bound) -> None:
    for lines in (bound.at, bound.above):
        lines[:] = [{**line, "line_id": str(number)} for number, line in enumerate(lines)]


BOUNDS = [
    pytest.param(kind, bound, id=f"{kind.__name__}-{'.'.join(map(str, bound.path))}-{bound.keyword}-{number}")
    for kind in COMMAND_TYPES
    for number, bound in enumerate(KAFKA.bounds(SCHEMAS[kind.__name__]))
    if bound.path != ("type",)
]


@pytest.mark.parametrize(("kind", "bound"), BOUNDS)
def test_a_bound_of_the_asyncapi_document_holds_as_json_and_as_avro(kind, bound):
    at, above = map(json.dumps, documents(SAMPLES[kind], bound))
    assert is_within_bounds(at.encode())
    assert not is_within_bounds(above.encode())
    as_type = msgspec.json.Decoder(kind).decode
    assert is_within_bounds(encode_command(as_type(at)))
    assert not is_within_bounds(encode_command(as_type(above)))


@pytest.fixture
async def shop(tmp_path):
    async with two_servers(tmp_path) as (world, http, _):
        yield world, http


def body_schema(kind: type[Command]) -> dict[str, Any]:
    body = ROUTES[kind].body
    assert body is not None
    schema: dict[str, Any] = BODIES[body.__name__]
    return schema


@pytest.mark.parametrize("kind", COMMAND_TYPES)
async def test_every_bound_of_the_openapi_document_holds_over_http(shop, kind):
    world, http = shop
    operation = ROUTES[kind]
    path = operation.path.replace("{order_id}", ORDER_ID)
    for bound in HTTP.bounds(body_schema(kind)):
        at, above = map(body_of, documents(SAMPLES[kind], bound))
        world.commands.clear()
        assert (await http.ask(operation.method, path, at, Prefer="respond-async")).status == 202, bound
        assert is_within_bounds(encode_command(but(world.commands.pop(), order_id=ORDER_ID))), bound
        answer = await http.ask(operation.method, path, above, Prefer="respond-async")
        assert answer.status == 422, bound
        assert not world.commands


@pytest.mark.parametrize("kind", COMMAND_TYPES)
def test_both_documents_have_the_same_bounds(kind):
    def listed(extremes, schema):
        return {
            (bound.path, bound.keyword, json.dumps(bound.at), json.dumps(bound.above))
            for bound in extremes.bounds(schema)
            if bound.path[0] not in HEAD and bound.path[-1] != "minProperties"
        }

    assert listed(HTTP, body_schema(kind)) == listed(KAFKA, SCHEMAS[kind.__name__])


LARGEST = largest_order()
WRITTEN = in_every_form(LARGEST)


def test_the_largest_order_is_what_the_documents_say():
    assert len(LARGEST["lines"]) == 500
    assert len(LARGEST["metadata"]) == 20
    assert {len(line["name"]) for line in LARGEST["lines"]} == {200}
    assert len({line["line_id"] for line in LARGEST["lines"]}) == 500
    assert len(LARGEST["lines"][7]["name"].encode()) == 800
    assert LARGEST.keys() == SCHEMAS["CreateOrder"]["properties"].keys()


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
def test_the_largest_order_is_accepted_over_kafka(written):
    assert len(written) <= MAX_COMMAND_BYTES
    outcome, _ = take(decode_command(written), None)
    assert isinstance(outcome, Event)


@pytest.mark.parametrize("form", ["UTF-8", "escaped"])
async def test_the_largest_order_is_accepted_over_http(shop, form):
    world, http = shop
    body = json.dumps(body_of(LARGEST), ensure_ascii=form == "escaped").encode()
    assert len(body) <= MAX_BODY_BYTES
    answer = await http.ask("POST", "/v1/orders", body, Prefer="respond-async", Content_Type="application/json")
    assert answer.status == 202
    assert list(msgspec.to_builtins(world.commands[0].lines)) == LARGEST["lines"]


def test_the_limits_follow_from_the_largest_order():
    """They leave room for white space and headers, and no more than that."""
    longest = max(map(len, WRITTEN.values()))
    assert longest <= MAX_COMMAND_BYTES < 1.5 * longest
    command = decode_command(WRITTEN["Avro"])
    event, entry = take(command, None)
    assert isinstance(event, Event)
    assert isinstance(entry, Entry)
    names = topic_names()
    records = {
        names.commands: longest,
        names.events: len(encode_event(event)),
        names.table: len(changelog.encode(entry)),
        names.waiting: len(changelog.encode(WaitingCommand(command, 1, NOW, None, None, 7))),
        names.dead_letters: int(topic_configs(names)[names.commands]["max.message.bytes"]),
    }
    for topic, size in records.items():
        assert size + OVERHEAD <= int(topic_configs(names)[topic]["max.message.bytes"]), topic


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(lambda size: {"actor": "user:" + "a" * size}, id="an actor, which its rejection repeats"),
        pytest.param(lambda size: {"note": "ж" * (size // 2)}, id="a note, which waits for the user of its order"),
    ],
)
def test_contents_that_are_accepted_fit_the_topics_and_larger_ones_are_a_dead_letter(changes):
    """Kafka would refuse the turn that writes a larger record, and its lane would be parked."""
    command = CancelOrder(command_id="c", order_id="o", actor=SHOP, reason="other")
    fits = but(command, **changes(MAX_CONTENT_BYTES - 200))
    fitting = decode_command(encode_json_command(fits))
    refused = encode_rejection(reject(fitting, None, NOW, Refusal(Reason.NOT_ALLOWED)))
    waiting = changelog.encode(WaitingCommand(fitting, 1, NOW, None, None, 7))
    names, configs = topic_names(), topic_configs(topic_names())
    for topic, size in ((names.rejections, len(refused)), (names.waiting, len(waiting))):
        assert size + OVERHEAD <= int(configs[topic]["max.message.bytes"]), topic
    with pytest.raises(DecodeError, match=f"at most {MAX_CONTENT_BYTES}"):
        decode_command(encode_json_command(but(command, **changes(MAX_CONTENT_BYTES))))


@pytest.mark.parametrize(("count", "is_accepted"), [(60_000, True), (100_000, False)])
def test_many_small_lines_in_avro_count_as_large_as_they_are_stored(count, is_accepted):
    line = Line(sku="", quantity=-33, unit_price=-33)
    value = encode_command(AmendOrder(command_id="c", order_id="o", actor=SHOP, lines=(line,) * count))
    if is_accepted:
        assert len(changelog.encode(WaitingCommand(decode_command(value), 1, NOW, None, None, 7))) <= MAX_CONTENT_BYTES
    else:
        with pytest.raises(DecodeError, match="too_large"):
            decode_command(value)


def test_a_byte_more_than_the_largest_command_is_a_dead_letter():
    spaces = WRITTEN["escaped"][:-1].ljust(MAX_COMMAND_BYTES - 1) + b"}"
    assert decode_command(spaces)
    with pytest.raises(DecodeError, match="at most"):
        decode_command(spaces[:-1] + b" }")


async def test_a_byte_more_than_the_largest_body_is_too_large(shop):
    _, http = shop
    body = json.dumps(body_of(LARGEST)).encode()
    for size, status in ((MAX_BODY_BYTES, 202), (MAX_BODY_BYTES + 1, 413)):
        padded = body[:-1].ljust(size - 1) + b"}"
        answer = await http.ask("POST", "/v1/orders", padded, Prefer="respond-async", Content_Type="application/json")
        assert answer.status == status


@pytest.mark.parametrize("kind", COMMAND_TYPES)
def test_no_other_command_is_larger(kind):
    assert len(json.dumps(KAFKA.largest(SCHEMAS[kind.__name__]))) <= MAX_COMMAND_BYTES
