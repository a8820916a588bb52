"""Records of a later version without its schema: read if key, headers and value agree, refused if not."""

import json

import pytest

from order_service.domain.messages import Event
from order_service.sdk.testing import order_cancelled, order_delivered
from order_service.sdk.testing.samples import UNKNOWN_ID, as_unknown
from order_service.wire import avro
from order_service.wire.headers import event_headers, rejection_headers
from order_service.wire.later_versions import UnknownEvent, decode_later
from order_service.wire.schemas.catalogue import EVERY_EVENT, SCHEMAS, load, prefix_of
from tests.support import samples

EVENT = order_delivered(version=4)
VALUE, HEADERS = as_unknown(EVENT, "OrderReturned")
KEY = b"order-1"
EVENTS = [*samples.events, samples.order_cancelled]
NEW_FIELDS = [b"", b"\0", b"\2\x0ca note", b"\2\x0ca note\2\x0e"]


def header(name, value):
    """Return the headers with another value of one of them, or without it."""
    return [(each, value if each == name else old) for each, old in HEADERS if each != name or value is not None]


def test_every_event_begins_with_the_same_fields():
    names = [field["name"] for field in EVERY_EVENT["fields"]]
    assert names == [name for name in Event.__struct_fields__ if name != "fact"]


def test_an_event_of_an_unknown_type_has_the_fields_of_every_event():
    event = decode_later(KEY, VALUE, HEADERS)
    assert isinstance(event, UnknownEvent)
    common = {name: getattr(event, name) for name in Event.__struct_fields__ if name != "fact"}
    assert Event(**common, fact=EVENT.fact) == EVENT
    assert (event.type, event.value, event.digest) == ("OrderReturned", VALUE, avro.digest(VALUE))


@pytest.mark.parametrize("new_fields", NEW_FIELDS)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event.fact).__name__)
def test_the_new_fields_of_a_known_type_are_left_out(event, new_fields):
    value = prefix_of(UNKNOWN_ID) + avro.encode_event(event)[5:] + new_fields
    assert decode_later(event.order_id.encode(), value, event_headers(event, None, 7)) == event


@pytest.mark.parametrize("new_fields", NEW_FIELDS)
def test_the_new_fields_of_a_rejection_are_left_out(new_fields):
    rejection = samples.ship_refused
    value = prefix_of(UNKNOWN_ID) + avro.encode_rejection(rejection)[5:] + new_fields
    assert decode_later(rejection.order_id.encode(), value, rejection_headers(rejection, None, 7)) == rejection


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        pytest.param(KEY, VALUE, [], id="no headers"),
        pytest.param(KEY, VALUE, header("ce_type", None), id="no type"),
        pytest.param(KEY, VALUE, header("ce_type", b"OrderReturned"), id="a type without its namespace"),
        pytest.param(KEY, VALUE, header("ce_type", b"orders.v1.Order Returned"), id="a type that is no name"),
        pytest.param(KEY, VALUE, header("ce_type", b"orders.v2.OrderReturned"), id="another contract"),
        pytest.param(KEY, VALUE, header("ce_type", b"orders.v1.\xff"), id="a type that is not UTF-8"),
        pytest.param(KEY, VALUE, header("ce_type", b"orders.v1.PayOrder"), id="the type of a command"),
        pytest.param(KEY, VALUE, header("ce_type", b"orders.v1.OrderPaid"), id="a known type with other fields"),
        pytest.param(KEY, VALUE, header("ce_id", None), id="no id"),
        pytest.param(KEY, VALUE, header("ce_id", b"another"), id="another id"),
        pytest.param(b"order-2", VALUE, HEADERS, id="another key"),
        pytest.param(None, VALUE, HEADERS, id="no key"),
        pytest.param(KEY, b"", HEADERS, id="no value"),
        pytest.param(KEY, b"\1" + VALUE[1:], HEADERS, id="another format"),
        pytest.param(KEY, avro.encode_event(EVENT), HEADERS, id="a known schema"),
        pytest.param(KEY, *as_unknown(order_delivered(version=4, event_id="x"), "OrderReturned"), id="an id by chance"),
        pytest.param(KEY, VALUE[:5] + b"\x02" + VALUE[5:], HEADERS, id="other fields first"),
    ],
)
def test_a_record_that_contradicts_the_contract_is_not_read(key, value, headers):
    assert decode_later(key, value, headers) is None


@pytest.mark.parametrize("event", [EVENT, order_cancelled(version=2)], ids=["of an unknown type", "of a known type"])
def test_no_truncated_record_is_read(event):
    if event is EVENT:
        value, headers = VALUE[: -len(b"\x0ebecause")], HEADERS
    else:
        value, headers = prefix_of(UNKNOWN_ID) + avro.encode_event(event)[5:], event_headers(event, None, 7)
    assert decode_later(KEY, value, headers) is not None
    for end in range(len(value)):
        assert decode_later(KEY, value[:end], headers) is None


def test_a_registry_s_schema_that_keeps_the_contract_is_a_new_type():
    catalogue = load()
    record = {"type": "record", "name": "OrderReturned", "namespace": "orders.v1"}
    fields = [*EVERY_EVENT["fields"], {"name": "reason", "type": "string"}]
    assert not catalogue.learn(7, json.dumps(record | {"fields": fields}))
    assert (catalogue.new_types, catalogue.refused) == ({7}, set())
    for number, wrong in enumerate([fields[1:], fields[:8], [fields[-1], *fields[:-1]], []], 8):
        assert not catalogue.learn(number, json.dumps(record | {"fields": wrong}))
    assert not catalogue.learn(12, "[]")
    assert not catalogue.learn(13, catalogue.of_file("OrderPaid.v1.avsc").text.replace('"amount"', '"sum"'))
    assert (catalogue.new_types, catalogue.refused) == ({7}, {8, 9, 10, 11, 12, 13})


def test_a_record_whose_schema_breaks_the_contract_is_not_read():
    schema_id = UNKNOWN_ID - 1
    value, headers = as_unknown(EVENT, "OrderReturned", schema_id)
    assert decode_later(KEY, value, headers) is not None
    assert not SCHEMAS.learn(schema_id, '"string"')
    assert decode_later(KEY, value, headers) is None
