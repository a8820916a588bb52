"""Every bound that the contract documents holds on every entrance: HTTP, JSON over Kafka, Avro over Kafka.

A value just at its bound is accepted everywhere, one above it nowhere.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import pytest

from order_service.contracts.source import Source
from order_service.domain.entry import Entry
from order_service.domain.messages import (
    COMMAND_TYPES,
    AmendOrder,
    CancelOrder,
    Command,
    CreateOrder,
    DeliverOrder,
    Event,
    Line,
    PayOrder,
    Rejection,
    ShipOrder,
)
from order_service.errors import DecodeError
from order_service.wire.avro import encode_command
from order_service.wire.commands import decode_command, encode_json_command
from tests.support.copies import two_servers
from tests.support.foreign_ids import ENCODABLE_NO_IDS, FOREIGN_IDS
from tests.support.samples import ORDER_ID, SHOP, but, create, deliver, entry_after, mugs, pay, ship, take
from tests.support.samples import amend as amend_sample
from tests.support.samples import cancel as cancel_sample

ORDERS = "/v1/orders"
CREATE = but(create, actor=SHOP, discount=0, tax=0, shipping=0, lines=(mugs,), correlation_id=None)
AMEND = but(amend_sample, actor=SHOP)
CANCEL = but(cancel_sample, actor=SHOP)
PATHS: dict[type[Any], tuple[str, str]] = {
    CreateOrder: ("POST", ORDERS),
    AmendOrder: ("PATCH", f"{ORDERS}/{ORDER_ID}"),
    PayOrder: ("POST", f"{ORDERS}/{ORDER_ID}/pay"),
    ShipOrder: ("POST", f"{ORDERS}/{ORDER_ID}/ship"),
    DeliverOrder: ("POST", f"{ORDERS}/{ORDER_ID}/deliver"),
    CancelOrder: ("POST", f"{ORDERS}/{ORDER_ID}/cancel"),
}
BEFORE: dict[type[Any], tuple[Command, ...]] = {
    CreateOrder: (),
    AmendOrder: (create,),
    PayOrder: (create,),
    ShipOrder: (create, pay),
    DeliverOrder: (create, pay, ship),
    CancelOrder: (create,),
}
HEAD = ("command_id", "order_id", "actor", "expected_version", "decide_by", "correlation_id")


class Bound(NamedTuple):
    """A command whose `field` is just at its bound, and the same one with a value above it."""

    field: str
    at: Command
    above: Command


def words(count: int) -> str:
    return "w" * count


def lines(count: int) -> tuple[Line, ...]:
    return (but(mugs, unit_price=1, quantity=1),) * count


def of_a_line(**changes: Any) -> dict[str, Any]:
    return {"lines": (but(mugs, **changes),)}


FOREIGN = [
    ("s" * 255, "s" * 256),
    ("😀" * 255, "😀" * 256),
    ("1", ""),
    ("Größe-L", "a\x85b"),
    ("50%", "a\x7f"),
    ("a\\0", "a\0"),
]
"""Ids of other systems, each with a text that cannot be an id; `test_foreign_ids` has more."""
METADATA = [
    ({str(n): "" for n in range(20)}, {str(n): "" for n in range(21)}),
    ({words(40): ""}, {words(41): ""}),
    ({"a": words(500)}, {"a": words(501)}),
]
CONTENTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("lines", {"lines": lines(500)}, {"lines": lines(501)}),
    ("lines", {"lines": lines(1)}, {"lines": ()}),
    *(("lines[].line_id", of_a_line(line_id=at), of_a_line(line_id=above)) for at, above in FOREIGN),
    *(("lines[].sku", of_a_line(sku=at), of_a_line(sku=above)) for at, above in FOREIGN),
    ("lines[].name", of_a_line(name=words(200)), of_a_line(name=words(201))),
    ("lines[].quantity", of_a_line(quantity=10**6, unit_price=1), of_a_line(quantity=10**6 + 1, unit_price=1)),
    ("lines[].quantity", of_a_line(quantity=1), of_a_line(quantity=0)),
    ("lines[].unit_price", of_a_line(unit_price=10**12), of_a_line(unit_price=10**12 + 1)),
    ("lines[].unit_price", of_a_line(unit_price=0), of_a_line(unit_price=-1)),
    ("discount", {"discount": 2500, **of_a_line()}, {"discount": 2501, **of_a_line()}),
    ("discount", {"discount": 0}, {"discount": -1}),
    ("tax", {"tax": 0}, {"tax": -1}),
    ("tax", {"tax": 2**53 - 2500, **of_a_line()}, {"tax": 2**53 - 2499, **of_a_line()}),
    ("shipping", {"shipping": 0}, {"shipping": -1}),
    *(("shipping_address_ref", {"shipping_address_ref": at}, {"shipping_address_ref": above}) for at, above in FOREIGN),
    *(("metadata", {"metadata": at}, {"metadata": above}) for at, above in METADATA),
]


def bounds() -> Iterator[Bound]:
    for field, at, above in CONTENTS:
        yield Bound(field, but(CREATE, **at), but(CREATE, **above))
        amended = {"discount": 0, "tax": 0, "shipping": 0}
        yield Bound(field, but(AMEND, **(amended | at)), but(AMEND, **(amended | above)))
    yield from (Bound("user_id", but(CREATE, user_id=at), but(CREATE, user_id=above)) for at, above in FOREIGN)
    yield Bound("currency", CREATE, but(CREATE, currency="EURO"))
    yield from (Bound("payment_id", but(pay, payment_id=at), but(pay, payment_id=above)) for at, above in FOREIGN)
    yield Bound("amount", pay, but(pay, amount=2**53 + 1))
    yield Bound("currency", pay, but(pay, currency="XXX"))
    for field in ("carrier", "tracking_number"):
        yield from (Bound(field, but(ship, **{field: at}), but(ship, **{field: above})) for at, above in FOREIGN)
    yield Bound("note", but(CANCEL, note=words(200)), but(CANCEL, note=words(201)))
    yield Bound("reason", CANCEL, but(CANCEL, reason="whim"))
    for command in (CREATE, AMEND, pay, ship, deliver, CANCEL):
        for text, no_id in [*FOREIGN, ("a", "a\n")]:
            yield Bound("correlation_id", but(command, correlation_id=text), but(command, correlation_id=no_id))


BOUNDS = [
    pytest.param(bound, id=f"{type(bound.at).__name__}-{bound.field}-{number}") for number, bound in enumerate(bounds())
]


def entry_before(command: Command) -> Entry | None:
    taken = BEFORE[type(command)]
    return entry_after(taken) if taken else None


def is_accepted(value: bytes) -> bool:
    """Return whether a worker accepts the record of a command."""
    try:
        command = decode_command(value)
    except DecodeError:
        return False
    outcome, _ = take(command, entry_before(command))
    if isinstance(outcome, Event):
        return True
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "invalid_order"
    return False


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("encode", [encode_json_command, encode_command], ids=["json", "avro"])
def test_a_bound_holds_over_kafka(bound, encode):
    assert is_accepted(encode(bound.at))
    assert not is_accepted(encode(bound.above))


@pytest.mark.parametrize("field", ["command_id", "order_id"])
@pytest.mark.parametrize("encode", [encode_json_command, encode_command], ids=["json", "avro"])
def test_the_ids_that_http_makes_itself_have_their_bound_over_kafka(field, encode):
    assert decode_command(encode(but(deliver, **{field: words(128)})))
    with pytest.raises(DecodeError, match=field):
        decode_command(encode(but(deliver, **{field: words(129)})))


@pytest.mark.parametrize(
    "command", [CREATE, AMEND, pay, ship, deliver, CANCEL], ids=lambda command: type(command).__name__
)
@pytest.mark.parametrize("encode", [encode_json_command, encode_command], ids=["json", "avro"])
def test_the_id_of_an_actor_has_its_bound_over_kafka(command, encode):
    def reason(actor):
        outcome, _ = take(decode_command(encode(but(command, actor=actor))), entry_before(command))
        return outcome.reason if isinstance(outcome, Rejection) else None

    assert [reason(f"service:{text}") for text in FOREIGN_IDS] == [None] * len(FOREIGN_IDS)
    assert {reason(f"service:{text}") for text in ENCODABLE_NO_IDS.values()} == {"not_allowed"}


@pytest.fixture
async def shop(tmp_path):
    async with two_servers(tmp_path) as (world, http, _):
        yield world, http


async def asked(http, command):
    """Send a command as HTTP takes it; return its status."""
    body = {name: value for name, value in flat(command).items() if name not in HEAD}
    headers = {} if command.correlation_id is None else {"X_Correlation_Id": command.correlation_id}
    answer = await http.ask(*PATHS[type(command)], body, Prefer="respond-async", **headers)
    return answer.status


def flat(command: Command) -> Any:
    sent = msgspec.to_builtins(command)
    return {name: value for name, value in sent.items() if name != "type"}


async def test_every_bound_holds_over_http(shop):
    world, http = shop
    for bound in bounds():
        world.commands.clear()
        assert await asked(http, bound.at) == 202, bound
        (sent,) = world.commands
        assert is_accepted(encode_command(but(sent, order_id=ORDER_ID))), bound
        try:
            status = await asked(http, bound.above)
        except ValueError:  # the client itself sends no such header
            assert bound.field == "correlation_id"
            continue
        if status == 202:  # what only the whole order can tell is the worker's to refuse
            assert not is_accepted(encode_command(but(world.commands[-1], order_id=ORDER_ID))), bound
        else:
            assert status in {400, 422}, bound
            assert world.commands == [sent]


def test_no_documented_bound_is_forgotten():
    documented = {
        (message.__name__, name) for message in COMMAND_TYPES for name in bounded(Source().avro(message)["fields"])
    }
    covered = {(type(bound.at).__name__, bound.field) for bound in bounds()}
    covered |= {(message.__name__, name) for message in COMMAND_TYPES for name in ("command_id", "order_id", "actor")}
    assert documented
    assert documented <= covered


def bounded(fields: Any, before: str = "") -> Iterator[str]:
    """Return the name of the fields whose documentation has a bound."""
    for field in fields:
        name = before + field["name"]
        if re.search(r"at most \d|\d to |ISO 4217|an id,|:<id>|Why:", field.get("doc", "")):
            yield name
        for kind in field["type"] if isinstance(field["type"], list) else [field["type"]]:
            items = kind.get("items") if isinstance(kind, dict) else None
            if isinstance(items, dict):
                yield from bounded(items["fields"], f"{name}[].")
