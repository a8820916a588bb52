"""The examples of all contracts: two orders of one user, decided by the rules and encoded as in the worker.

Their names and times are fixed, so that the same code always makes the same bytes.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from order_service.domain.decision import UserCheck, answer
from order_service.domain.entry import Entry, after_event
from order_service.domain.messages import (
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
from order_service.domain.refusals import Status
from order_service.errors import DecodeError
from order_service.kafka.topics import TopicNames
from order_service.wire.avro import digest, encode_command, encode_event, encode_rejection
from order_service.wire.commands import decode_command, encode_json_command, partition_of
from order_service.wire.flat import flat
from order_service.wire.headers import Headers, dead_letter_headers, event_headers, rejection_headers
from order_service.wire.schemas.catalogue import Message

NOW: Final = datetime(2026, 11, 24, 9, tzinfo=UTC)
ORDER_ID: Final = "order-1"
USER_ID: Final = "dana"
DANA: Final = f"user:{USER_ID}"
SHOP: Final = "service:shop"
TRACE: Final = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OFFSET: Final = 1840
"""The offset of the first command of an example; later commands have the offsets after it."""

MUGS: Final = Line(sku="mug-blue", name="Blue mug", quantity=2, unit_price=1250)
POSTER: Final = Line(line_id="wall", sku="poster-a2", quantity=1, unit_price=900)

CREATE: Final = CreateOrder(
    command_id="create-1",
    order_id=ORDER_ID,
    actor=DANA,
    expected_version=0,
    decide_by=NOW + timedelta(days=1),
    correlation_id="visit-7",
    user_id=USER_ID,
    currency="EUR",
    lines=(MUGS, POSTER),
    discount=400,
    tax=300,
    shipping=500,
    shipping_address_ref="home",
    metadata={"channel": "web"},
)
AMEND: Final = AmendOrder(
    command_id="amend-1", order_id=ORDER_ID, actor=DANA, expected_version=1, shipping=0, shipping_address_ref="office"
)
PAY: Final = PayOrder(
    command_id="pay-1", order_id=ORDER_ID, actor=SHOP, payment_id="payment-7", amount=3300, currency="EUR"
)
SHIP: Final = ShipOrder(
    command_id="ship-1", order_id=ORDER_ID, actor=SHOP, carrier="DHL", tracking_number="JD014600000001"
)
DELIVER: Final = DeliverOrder(command_id="deliver-1", order_id=ORDER_ID, actor=SHOP)
CANCEL: Final = CancelOrder(
    command_id="cancel-1", order_id="order-2", actor=DANA, reason="customer_request", note="Two were enough."
)
LIFE: Final = (CREATE, AMEND, PAY, SHIP, DELIVER)
"""The commands of the order that is delivered. The other one is cancelled after its payment, so a refund is due."""
COMMANDS: Final[dict[type[Message], Command]] = {type(command): command for command in (*LIFE, CANCEL)}
TOO_EARLY: Final = structs.replace(SHIP, command_id="ship-0")
UNREADABLE: Final = b'{"type": "PayOrder", "order_id": "order-1"'
"""A command that its sender cut short."""


class Example(Struct, frozen=True):
    """One record, with its value as readable JSON; `status` is the status of the order after an event."""

    key: str
    headers: Headers
    value: bytes
    json: dict[str, Any]
    status: Status | None = None


class DeadLetter(Struct, frozen=True):
    """A dead letter: the original key and value, and the headers with the reason."""

    key: str
    headers: Headers
    value: bytes


def command(message: type[Message]) -> Example:
    """Return the example of a command, as Avro and as JSON."""
    sent = COMMANDS[message]
    readable: dict[str, Any] = msgspec.json.decode(encode_json_command(sent))
    return Example(sent.order_id, [("traceparent", TRACE)], encode_command(sent), readable)


@cache
def events() -> dict[type[Message], Example]:
    """Return an example of each event type."""
    paid = [structs.replace(sent, order_id=CANCEL.order_id) for sent in (CREATE, AMEND, PAY)]
    *_, (cancelled, entry) = _decided(*paid, CANCEL)
    return {type(event.fact): _event(event, entry) for event, entry in (*_decided(*LIFE), (cancelled, entry))}


def rejection() -> Example:
    """Return the rejection of a command that ships an unpaid order."""
    [(_, entry)] = _decided(CREATE)
    refused = answer(TOO_EARLY, entry, NOW + timedelta(minutes=30))
    if not isinstance(refused, Rejection):
        raise TypeError(f"the example of a rejection is not a Rejection: {refused}")
    headers = rejection_headers(refused, TRACE, OFFSET + 1)
    return Example(refused.order_id, headers, encode_rejection(refused), _read(refused))


def dead_letter(names: TopicNames, partitions: int) -> DeadLetter:
    """Return the dead letter of a command that was cut short."""
    try:
        decode_command(UNREADABLE)
    except DecodeError as error:
        origin = names.commands, partition_of(ORDER_ID.encode(), partitions), OFFSET, round(NOW.timestamp() * 1000)
        return DeadLetter(ORDER_ID, dead_letter_headers(error, *origin, [("traceparent", TRACE)]), UNREADABLE)
    raise TypeError("the example of a dead letter can be decoded as a command")


def texts(headers: Headers) -> dict[str, str]:
    """Return headers as text: every value that we write is UTF-8."""
    return {name: value.decode() for name, value in headers}


def _decided(*commands: Command) -> Iterator[tuple[Event, Entry]]:
    """Decide commands an hour apart, all of them accepted; yield each event and the table entry after it."""
    entry: Entry | None = None
    for hours, sent in enumerate(commands):
        event = answer(sent, entry, NOW + timedelta(hours=hours), UserCheck.ACTIVE)
        if not isinstance(event, Event):
            raise TypeError(f"the example is not accepted: {event}")
        entry = after_event(entry, event, digest(encode_event(event)))
        yield event, entry


def _event(event: Event, entry: Entry) -> Example:
    headers = event_headers(event, TRACE, OFFSET + event.version)
    return Example(event.order_id, headers, encode_event(event), _read(event), entry.order.status)


def _read(message: Event | Rejection) -> dict[str, Any]:
    """Return a message as HTTP and the command line show it."""
    readable: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(flat(message)))
    return readable
