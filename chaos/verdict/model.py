"""The rules of an order once more, written from the contract alone, to check what the service made of its commands.

Nothing here is shared with the service, so a mistake must be made twice, in two ways, to go unseen. Where the contract
is silent (the words of a detail, say) nothing is claimed.
"""

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct, structs

from chaos.verdict.decoding import Command, Entry, Event, command_digest, id_of, is_foreign_id

MAX_REMEMBERED_REFUSALS: Final = 16
MAX_AMENDMENTS: Final = 50
MAX_WAITING: Final = 32
MAX_TOTAL: Final = 2**53
NEVER_REMEMBERED: Final = frozenset({"deadline_passed", "user_check_timed_out", "too_many_waiting"})
CANCEL_REASONS: Final = frozenset(
    {"customer_request", "payment_failed", "payment_timeout", "out_of_stock", "fraud", "other"}
)
CURRENCIES: Final = frozenset(
    """
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF
    CHW CLF CLP CNY COP COU CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD
    HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD
    MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN
    PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD
    TWD TZS UAH UGX USD USN UYI UYU UYW UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG
    """.split()  # noqa: SIM905, a block of codes reads better than as many quoted strings
)
"""The active codes of ISO 4217 for money; no metals, no test codes."""

CONTENT_FIELDS: Final = (
    "user_id",
    "currency",
    "lines",
    "discount",
    "tax",
    "shipping",
    "total",
    "shipping_address_ref",
    "metadata",
)
SERVICE_ACTOR: Final = "service:order-service"
UNKNOWN_TIME: Final = -1
UNKNOWN_DIGEST: Final = b""
"""Of an order whose newest event is not in the log, the time and digest of that event cannot be told."""

Known = tuple[str, bytes]
"""A remembered command: its id and its digest."""


class Order(Struct, frozen=True, gc=False):
    """All that is to know of an order; one that does not exist is None. `contents` is complete while it is created."""

    status: str
    version: int
    user_id: str
    total: int
    contents: dict[str, Any]
    created_at: int
    changed_at: int
    head: bytes
    accepted: tuple[Known, ...]
    refused: tuple[Known, ...] = ()


class Happens(Struct, frozen=True):
    """The command is accepted: this event, with this fact."""

    type: str
    fact: dict[str, Any]


class Refused(Struct, frozen=True):
    """The command is refused, with the reason, and the status and version that its sender is told."""

    reason: str
    status: str
    version: int


class Repeated(Struct, frozen=True):
    """The order remembers this very command: nothing new comes of it."""


Answer = Happens | Refused | Repeated
REPEATED: Final = Repeated()


def answer(command: Command, order: Order | None, now_ms: int | None, user: str) -> Answer:
    """Return the outcome that a command must have.

    `now_ms` is the time of the decision, None where it was certainly in time; `user` is what there is to say of the
    user of a create: active, unknown, inactive or timed_out.
    """
    if is_repeat(command, order):
        return REPEATED
    reason = (
        _reused(command, order)
        or _too_late(command, now_ms)
        or _not_allowed(command)
        or _not_there(command, order)
        or _stale(command, order)
        or _bad_content(command)
    )
    outcome: str | Happens = reason or _by_the_table(command, order, user)
    return outcome if isinstance(outcome, Happens) else Refused(outcome, *seen_by(command.actor, order))


def is_repeat(command: Command, order: Order | None) -> bool:
    """Return whether an order remembers this very command."""
    known = (command.command_id, command.digest)
    return order is not None and (known in order.accepted or known in order.refused)


def seen_by(actor: str, order: Order | None) -> tuple[str, int]:
    """Return status and version of an order as this actor may see it: only services and its user may."""
    if order is None or not _may_see(actor, order):
        return "absent", 0
    return order.status, order.version


def _may_see(actor: str, order: Order) -> bool:
    return actor.startswith("service:") or actor == f"user:{order.user_id}"


# Answers, in their order


def _reused(command: Command, order: Order | None) -> str | None:
    if order is None:
        return None
    used = any(command.command_id == known for known, _ in (*order.accepted, *order.refused))
    return "command_id_reused" if used else None


def _too_late(command: Command, now_ms: int | None) -> str | None:
    late = now_ms is not None and command.decide_by_ms is not None and now_ms > command.decide_by_ms
    return "deadline_passed" if late else None


def _not_allowed(command: Command) -> str | None:
    kind, _, name = command.actor.partition(":")
    if not is_foreign_id(name) or kind not in {"user", "service"}:
        return "not_allowed"
    if kind == "service" or command.type in {"AmendOrder", "CancelOrder"}:
        return None
    return None if command.type == "CreateOrder" and command.body["user_id"] == name else "not_allowed"


def _not_there(command: Command, order: Order | None) -> str | None:
    if command.type == "CreateOrder":
        return None if order is None else "order_exists"
    return None if order is not None and _may_see(command.actor, order) else "order_not_found"


def _stale(command: Command, order: Order | None) -> str | None:
    version = 0 if order is None else order.version
    return None if command.expected_version in {None, version} else "version_conflict"


def _by_the_table(command: Command, order: Order | None, user: str) -> str | Happens:
    if order is None:
        return _create(command, user)
    refusal = _TABLE[command.type].get(order.status)
    return refusal or _ACCEPTED[command.type](command, order)


_TABLE: Final[Mapping[str, Mapping[str, str]]] = {
    "AmendOrder": {
        "paid": "already_paid",
        "shipped": "already_shipped",
        "delivered": "already_delivered",
        "cancelled": "order_cancelled",
    },
    "PayOrder": {
        "paid": "already_paid",
        "shipped": "already_paid",
        "delivered": "already_paid",
        "cancelled": "order_cancelled",
    },
    "ShipOrder": {
        "created": "not_paid",
        "shipped": "already_shipped",
        "delivered": "already_delivered",
        "cancelled": "order_cancelled",
    },
    "DeliverOrder": {
        "created": "not_paid",
        "paid": "not_shipped",
        "delivered": "already_delivered",
        "cancelled": "order_cancelled",
    },
    "CancelOrder": {
        "shipped": "already_shipped",
        "delivered": "already_delivered",
        "cancelled": "order_cancelled",
    },
}
"""Who is refused where; a status that is not named accepts. A create meets only orders that do not exist."""


# What is accepted


def _create(command: Command, user: str) -> str | Happens:
    contents = with_total({field: command.body.get(field) for field in CONTENT_FIELDS})
    if contents is None:
        return "invalid_order"
    if user != "active":
        return _USER_REASONS[user]
    return Happens("OrderCreated", contents)


_USER_REASONS: Final = {
    "unknown": "user_not_found",
    "inactive": "user_not_active",
    "timed_out": "user_check_timed_out",
}


def _amend(command: Command, order: Order) -> str | Happens:
    changes = {field: value for field, value in command.body.items() if value is not None}
    contents = with_total(order.contents | changes)
    if contents is None:
        return "invalid_order"
    # Until an order is paid, all but its first version are amendments.
    return "too_many_changes" if order.version > MAX_AMENDMENTS else Happens("OrderAmended", contents)


def _pay(command: Command, order: Order) -> str | Happens:
    if (command.body["amount"], command.body["currency"]) != (order.total, order.contents["currency"]):
        return "payment_mismatch"
    return Happens("OrderPaid", command.body)


def _ship(command: Command, _: Order) -> Happens:
    return Happens("OrderShipped", command.body)


def _deliver(_: Command, __: Order) -> Happens:
    return Happens("OrderDelivered", {})


def _cancel(command: Command, order: Order) -> Happens:
    return Happens("OrderCancelled", command.body | {"refund_due": order.total if order.status == "paid" else 0})


_ACCEPTED: Final = {
    "AmendOrder": _amend,
    "PayOrder": _pay,
    "ShipOrder": _ship,
    "DeliverOrder": _deliver,
    "CancelOrder": _cancel,
}


# Content


def with_total(contents: dict[str, Any]) -> dict[str, Any] | None:
    """Number the lines and add the total; None if the discount is more than the subtotal, or the total too much."""
    lines = _numbered(contents["lines"])
    subtotal = sum(line["quantity"] * line["unit_price"] for line in lines)
    if contents["discount"] > subtotal:
        return None
    total = subtotal - contents["discount"] + contents["tax"] + contents["shipping"]
    return None if total > MAX_TOTAL else contents | {"lines": lines, "total": total}


def _numbered(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        line if line["line_id"] is not None else line | {"line_id": str(place)} for place, line in enumerate(lines, 1)
    ]


def _bad_content(command: Command) -> str | None:
    return None if _CONTENT[command.type](command.body) else "invalid_order"


def _create_fits(body: dict[str, Any]) -> bool:
    return is_foreign_id(body["user_id"]) and body["currency"] in CURRENCIES and _contents_fit(body)


def _amend_fits(body: dict[str, Any]) -> bool:
    return any(value is not None for value in body.values()) and _contents_fit(body)


def _contents_fit(body: dict[str, Any]) -> bool:
    """Check each field that is given by itself."""
    lines, reference, metadata = body["lines"], body["shipping_address_ref"], body["metadata"]
    return (
        (lines is None or _lines_fit(lines))
        and all(body[field] is None or body[field] >= 0 for field in ("discount", "tax", "shipping"))
        and (reference is None or is_foreign_id(reference))
        and (metadata is None or _metadata_fits(metadata))
    )


def _lines_fit(lines: list[dict[str, Any]]) -> bool:
    names = {line["line_id"] for line in _numbered(lines)}
    return 1 <= len(lines) <= 500 and len(names) == len(lines) and all(map(_line_fits, lines))


def _line_fits(line: dict[str, Any]) -> bool:
    return (
        is_foreign_id(line["sku"])
        and (line["line_id"] is None or is_foreign_id(line["line_id"]))
        and (line["name"] is None or len(line["name"]) <= 200)
        and 1 <= line["quantity"] <= 10**6
        and 0 <= line["unit_price"] <= 10**12
    )


def _metadata_fits(metadata: dict[str, str]) -> bool:
    return len(metadata) <= 20 and all(len(key) <= 40 and len(value) <= 500 for key, value in metadata.items())


def _payment_fits(body: dict[str, Any]) -> bool:
    return is_foreign_id(body["payment_id"]) and body["currency"] in CURRENCIES and 0 <= body["amount"] <= MAX_TOTAL


def _shipment_fits(body: dict[str, Any]) -> bool:
    return is_foreign_id(body["carrier"]) and is_foreign_id(body["tracking_number"])


def _cancellation_fits(body: dict[str, Any]) -> bool:
    return body["reason"] in CANCEL_REASONS and (body["note"] is None or len(body["note"]) <= 200)


_CONTENT: Final = {
    "CreateOrder": _create_fits,
    "AmendOrder": _amend_fits,
    "PayOrder": _payment_fits,
    "ShipOrder": _shipment_fits,
    "DeliverOrder": lambda _: True,
    "CancelOrder": _cancellation_fits,
}


# What an order is after it


def after_event(order: Order | None, happened: Happens, known: Known, at_ms: int, head: bytes) -> Order:
    """Apply an event, the newest of its order; `head` is the digest of its value, `known` its command."""
    fact = happened.fact
    status = _STATUS[happened.type]
    if happened.type == "OrderCreated" or order is None:
        return Order(
            status=status,
            version=1,
            user_id=fact.get("user_id", ""),
            total=fact.get("total", 0),
            contents=fact,
            created_at=at_ms,
            changed_at=at_ms,
            head=head,
            accepted=(known,),
        )
    return structs.replace(
        order,
        status=status,
        version=order.version + 1,
        total=fact.get("total", order.total),
        contents=fact if happened.type == "OrderAmended" else order.contents,
        changed_at=at_ms,
        head=head,
        accepted=(*order.accepted, known),
    )


_STATUS: Final = {
    "OrderCreated": "created",
    "OrderAmended": "created",
    "OrderPaid": "paid",
    "OrderShipped": "shipped",
    "OrderDelivered": "delivered",
    "OrderCancelled": "cancelled",
}


def after_refusal(order: Order | None, command: Command, reason: str) -> Order | None:
    """Remember a refusal, as one of the last sixteen, where there is an order to remember it."""
    if order is None or reason in NEVER_REMEMBERED:
        return order
    refused = (*order.refused, (command.command_id, command.digest))
    return structs.replace(order, refused=refused[-MAX_REMEMBERED_REFUSALS:])


def is_in_table(order: Order | None, entry: Entry | None) -> bool:
    """Return whether the table's record says all of an order that it must say, and nothing else."""
    if order is None or entry is None:
        return order is None and entry is None
    return (
        (order.status, order.accepted, order.refused) == (entry.status, entry.accepted, entry.refused)
        and _kept_of(order) == entry.state
        and order.created_at in {UNKNOWN_TIME, entry.created_at}
        and order.changed_at in {UNKNOWN_TIME, entry.changed_at}
        and order.head in {UNKNOWN_DIGEST, entry.head}
    )


def _kept_of(order: Order) -> dict[str, Any]:
    """Return what the table keeps beside the status: all while the order can be changed, then less and less."""
    match order.status:
        case "created":
            return order.contents
        case "paid":
            return {"user_id": order.user_id, "total": order.total}
    return {"user_id": order.user_id}


# The service's own command


def is_payment_timeout(event: Event) -> bool:
    """Return whether an event is the cancellation that a lane makes by itself when a payment is overdue."""
    name = id_of(event.order_id, "payment_timeout")
    return (
        event.type == "OrderCancelled"
        and event.fact == {"reason": "payment_timeout", "note": None, "refund_due": 0}
        and (event.command_id, event.actor, event.correlation_id) == (name, SERVICE_ACTOR, None)
        and event.command_digest == timeout_digest(event.order_id)
        and event.event_id == id_of(event.order_id, str(event.version))
    )


def timeout_digest(order_id: str) -> bytes:
    """Digest the command that cancels an order by itself."""
    body = {"reason": "payment_timeout", "note": None}
    return command_digest("CancelOrder", id_of(order_id, "payment_timeout"), order_id, SERVICE_ACTOR, body, {})
