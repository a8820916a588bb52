"""The examples of all contracts: two sample orders, decided by the rules and encoded as in the worker.

Their ids and times are fixed, so that the same code always makes the same bytes.
"""

from datetime import timedelta
from functools import cache
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from order_service.domain.decision import answer
from order_service.domain.entry import Entry
from order_service.domain.messages import Command, Event, Rejection
from order_service.domain.refusals import Status
from order_service.errors import DecodeError
from order_service.kafka.topics import TopicNames
from order_service.sdk.testing import samples
from order_service.sdk.testing.samples import BEGIN, ORDER_ID, decided
from order_service.wire.avro import encode_command, encode_event, encode_rejection
from order_service.wire.commands import decode_command, encode_json_command, partition_of
from order_service.wire.flat import flat
from order_service.wire.headers import Headers, dead_letter_headers, event_headers, rejection_headers
from order_service.wire.schemas.catalogue import Message
from order_service.wire.trace_context import TraceContext

TRACE: Final = TraceContext(samples.TRACEPARENT.encode(), samples.TRACESTATE.encode())
OFFSET: Final = 1840
"""The offset of the first command of an example; later commands have the offsets after it."""

CREATE: Final = samples.create_order(expected_version=0, decide_by=BEGIN + timedelta(days=1))
AMEND: Final = samples.amend_order(expected_version=1, shipping=0)
PAY: Final = samples.pay_order(amount=samples.PAY.amount - samples.CREATE.shipping)  # the amended order is shipped free
SHIP: Final = samples.SHIP
DELIVER: Final = samples.DELIVER
CANCEL: Final = samples.cancel_order("order-2", command_id="cancel-1")
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
    return Example(sent.order_id, TRACE.headers(), encode_command(sent), readable)


@cache
def events() -> dict[type[Message], Example]:
    """Return an example of each event type."""
    paid = [structs.replace(sent, order_id=CANCEL.order_id) for sent in (CREATE, AMEND, PAY)]
    *_, (cancelled, entry) = decided(*paid, CANCEL)
    return {type(event.fact): _event(event, entry) for event, entry in (*decided(*LIFE), (cancelled, entry))}


def rejection() -> Example:
    """Return the rejection of a command that ships an unpaid order."""
    [(_, entry)] = decided(CREATE)
    refused = answer(TOO_EARLY, entry, BEGIN + timedelta(minutes=30))
    if not isinstance(refused, Rejection):
        raise TypeError(f"the example of a rejection is not a Rejection: {refused}")
    headers = rejection_headers(refused, TRACE, OFFSET + 1)
    return Example(refused.order_id, headers, encode_rejection(refused), _read(refused))


def dead_letter(names: TopicNames, partitions: int) -> DeadLetter:
    """Return the dead letter of a command that was cut short."""
    try:
        decode_command(UNREADABLE)
    except DecodeError as error:
        origin = names.commands, partition_of(ORDER_ID.encode(), partitions), OFFSET, round(BEGIN.timestamp() * 1000)
        return DeadLetter(ORDER_ID, dead_letter_headers(error, *origin, TRACE.headers()), UNREADABLE)
    raise TypeError("the example of a dead letter can be decoded as a command")


def texts(headers: Headers) -> dict[str, str]:
    """Return headers as text: every value that we write is UTF-8."""
    return {name: value.decode() for name, value in headers}


def _event(event: Event, entry: Entry) -> Example:
    headers = event_headers(event, TRACE, OFFSET + event.version)
    return Example(event.order_id, headers, encode_event(event), _read(event), entry.order.status)


def _read(message: Event | Rejection) -> dict[str, Any]:
    """Return a message as HTTP and the command line show it."""
    readable: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(flat(message)))
    return readable
