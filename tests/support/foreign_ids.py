"""Ids as other systems have them, what no id can be, and the strategy for both ends of every way that ids take."""

from collections.abc import Sequence
from typing import Any, Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from order_service.domain.messages import Command, Event, OrderCreated, OrderPaid, OrderShipped
from order_service.sdk import UnknownEvent
from tests.support import samples
from tests.support.samples import but

FOREIGN_IDS: Final = (
    "1",
    "mug-blue",
    "_old-17",
    "MUSIC/CD/1234578",
    "ELEVATOR_HEADS-5/0 1oz-Orange",
    "ABCD (20-B)",
    "Größe-L",
    "test-M\N{FULLWIDTH AMPERSAND}L",
    "A+B",
    "50%",
    "%2F",
    "a:2:1250",
    "{id}",
    ".",
    "..",
    "'; DROP TABLE orders; --",
    '<b title="&amp;">',
    "gid://shopify/Customer/7",
    "VXNlcjox==",
    "dana@example.com",
    "auth0|5f7c8ec7c33c6c004bbafe82",
    "google-oauth2|106229018294",
    "-7mXb-_z",
    "system:serviceaccount:shop:web",
    "cGF5XzEyMw==",
    " a  b ",
    "é",
    "e\N{COMBINING ACUTE ACCENT}",
    "É",
    "٣",
    "\N{RIGHT-TO-LEFT OVERRIDE}l33t",
    "\N{LINE SEPARATOR}",
    "\N{ZERO WIDTH NO-BREAK SPACE}",
    "\uffff",
    "s" * 255,
    "😀" * 255,
)
"""No two of them are equal, although some look or sort alike."""

NO_IDS: Final = {
    "empty": "",
    "too long": "s" * 256,
    "too many characters of two UTF-16 units": "😀" * 256,
    "NUL": "a\0",
    "a line feed at the end": "a\n",
    "a tab": "a\tb",
    "DEL": "a\x7f",
    "NEL, a control character of Latin-1": "a\x85b",
    "a lone surrogate": "a\ud800",
}
ENCODABLE_NO_IDS: Final = {name: text for name, text in NO_IDS.items() if name != "a lone surrogate"}
"""Those that UTF-8 can hold, so that they reach the rules of the service."""

foreign_ids = st.sampled_from(FOREIGN_IDS) | st.text(
    st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=255
)

NINE = st.lists(foreign_ids, min_size=9, max_size=9, unique=True)
TABLE = [list(FOREIGN_IDS[start : start + 9]) for start in range(0, len(FOREIGN_IDS), 9)]
"""All ids of the table, nine at a time."""


def some(max_examples: int) -> Any:
    shared_fixture = HealthCheck.function_scoped_fixture
    return settings(max_examples=max_examples, deadline=None, suppress_health_check=[shared_fixture])


def life(ids: list[str], order_id: str = "order-1") -> tuple[Command, Command, Command]:
    """Return commands that create, pay and ship an order, with these ids in all fields for ids of other systems."""
    user, sku, line, address, payment, carrier, number, correlation, service = ids
    lines = (but(samples.mugs, sku=sku, line_id=line), but(samples.poster, line_id=f"wall {line[:250]}"))
    changes = {"user_id": user, "actor": f"user:{user}", "shipping_address_ref": address, "lines": lines}
    head = {"order_id": order_id, "correlation_id": correlation}
    return (
        but(samples.create, **head, **changes),
        but(samples.pay, **head, actor=f"service:{service}", payment_id=payment),
        but(samples.ship, **head, actor=f"service:{service}", carrier=carrier, tracking_number=number),
    )


def ids_in(events: Sequence[Event | UnknownEvent]) -> list[str | None]:
    """Return the ids of `life` from the events that it led to."""
    created, paid, shipped = [event.fact for event in events]
    assert isinstance(created, OrderCreated)
    assert isinstance(paid, OrderPaid)
    assert isinstance(shipped, OrderShipped)
    [correlation] = {event.correlation_id for event in events}
    first, address = created.lines[0], created.shipping_address_ref
    assert events[0].actor == f"user:{created.user_id}"
    service = events[1].actor.removeprefix("service:")
    parcel = [shipped.carrier, shipped.tracking_number]
    assert first.line_id is not None
    return [created.user_id, first.sku, first.line_id, address, paid.payment_id, *parcel, correlation, service]
