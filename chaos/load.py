"""The load: commands of all kinds on many orders, and among them repeats, stale versions, wrong users and poison.

An order is walked from one command to the next by what would have become of it; what the service makes of it is for
the checker to say. Nothing here reads a clock: the same seed makes the same records.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import Struct, structs

from chaos.plan import Sizes
from chaos.verdict.decoding import digest_of
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
    ShipOrder,
)
from order_service.wire import changelog
from order_service.wire.avro import encode_command as encode_avro
from order_service.wire.avro import encode_event
from order_service.wire.commands import encode_json_command as encode_json
from tests.support import samples

SHOP: Final = "service:shop"
LONG_AGO: Final = datetime(2020, 1, 1, tzinfo=UTC)
FAR_AWAY: Final = datetime(2100, 1, 1, tzinfo=UTC)
NEVER_ANSWERED: Final = "slow-30000-"
"""How the ids of users begin whose answer takes the stub longer than any worker waits for it."""
USER_SHARES: Final = {
    "user-{}": 84,
    "unknown-{}": 5,
    "inactive-{}": 3,
    "flaky-{}": 3,
    "slow-400-{}": 3,
    f"{NEVER_ANSWERED}{{}}": 2,
}
OTHER_SHARES: Final = {
    "next": 74,
    "repeat": 7,
    "stale": 4,
    "early": 4,
    "foreign": 3,
    "reused": 2,
    "invalid": 2,
    "late": 1,
    "poison": 3,
}
"""Per cent of what happens to an order that exists."""
TRACE: Final = ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


class Sent(Struct, frozen=True, gc=False):
    """A record to produce."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


def old_orders(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Make records of the table, keys and values: orders that were delivered long ago."""
    value = changelog.encode(_old_entry())
    for number in range(count):
        yield f"old-{number}".encode(), value


def _old_entry() -> Entry:
    entry = None
    for command in (samples.create, samples.pay, samples.ship, samples.deliver):
        event = answer(command, entry, samples.NOW, UserCheck.ACTIVE)
        if not isinstance(event, Event):
            raise TypeError(f"{command} makes a {type(event).__name__}")
        entry = after_event(entry, event, digest_of(encode_event(event)))
    if entry is None:
        raise TypeError("no command makes no order")
    return entry


def is_never_answered(user_id: str) -> bool:
    """Return whether the User Service never answers in time for a user, however well it is."""
    return user_id.startswith(NEVER_ANSWERED)


class Walk:
    """One order on its way: what it has sent, and where it would stand."""

    def __init__(self, order_id: str, user_id: str) -> None:
        self.order_id = order_id
        self.user_id = user_id
        self.status = "absent"
        self.total = 0
        self.sent: deque[Command] = deque(maxlen=8)
        self.count = 0
        self.left_at_end = 2

    def head(self, actor: str) -> dict[str, Any]:
        """Return what every command of this order has."""
        self.count += 1
        return {"command_id": f"{self.order_id}-c{self.count}", "order_id": self.order_id, "actor": actor}

    @property
    def is_over(self) -> bool:
        """Return whether nothing more is sent to this order."""
        return self.left_at_end <= 0


class Load:
    """All records of a run, one after the other."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._chance = random.Random(f"load of {sizes.seed}")
        self._places = [self._new_walk(place, 0) for place in range(sizes.orders)]
        self._followers = [0] * sizes.orders
        self._others: dict[str, Callable[[Walk], Command]] = {
            "next": self._next,
            "repeat": self._repeat,
            "stale": self._stale,
            "early": self._early,
            "foreign": self._foreign,
            "reused": self._reused,
            "invalid": self._invalid,
            "late": self._late,
        }

    def records(self) -> Iterator[Sent]:
        """Make the records."""
        for _ in range(self._sizes.commands):
            place = self._chance.randrange(len(self._places))
            walk = self._places[place]
            if walk.is_over:
                self._followers[place] += 1
                walk = self._places[place] = self._new_walk(place, self._followers[place])
            yield self._record(walk)

    def _new_walk(self, place: int, follower: int) -> Walk:
        order_id = f"order-{place}-{follower}"
        return Walk(order_id, self._pick(USER_SHARES).format(place % 97))

    def _record(self, walk: Walk) -> Sent:
        kind = "next" if walk.status == "absent" else self._pick(OTHER_SHARES)
        if kind == "poison":
            return self._poison(walk)
        command = self._others[kind](walk)
        walk.sent.append(command)
        encode = encode_avro if self._chance.random() < 0.4 else encode_json
        headers = (TRACE,) if self._chance.random() < 0.1 else ()
        return Sent(walk.order_id.encode(), encode(command), headers)

    def _next(self, walk: Walk) -> Command:
        match walk.status:
            case "absent":
                return self._create(walk)
            case "created":
                return self._chance.choices((self._amend, self._pay, self._cancel), (5, 4, 1))[0](walk)
            case "paid":
                return self._chance.choices((self._ship, self._cancel), (8, 2))[0](walk)
            case "shipped":
                return self._deliver(walk)
            case _:
                walk.left_at_end -= 1
                return self._early(walk)

    def _create(self, walk: Walk) -> Command:
        lines = self._lines()
        walk.status, walk.total = "created", _subtotal(lines) + 500
        return CreateOrder(
            **walk.head(f"user:{walk.user_id}"),
            user_id=walk.user_id,
            currency="EUR",
            lines=lines,
            shipping=500,
            metadata={"channel": "web"} if self._chance.random() < 0.3 else {},
            decide_by=FAR_AWAY if self._chance.random() < 0.05 else None,
        )

    def _amend(self, walk: Walk) -> Command:
        head = walk.head(f"user:{walk.user_id}")
        if self._chance.random() < 0.5:
            return AmendOrder(**head, shipping_address_ref=self._chance.choice(("home", "office")))
        lines = self._lines()
        walk.total = _subtotal(lines) + 500
        return AmendOrder(**head, lines=lines)

    def _pay(self, walk: Walk) -> Command:
        walk.status = "paid"
        return PayOrder(**walk.head(SHOP), payment_id=f"pay-{walk.order_id}", amount=walk.total, currency="EUR")

    def _ship(self, walk: Walk) -> Command:
        walk.status = "shipped"
        return ShipOrder(**walk.head(SHOP), carrier="DHL", tracking_number=f"JD-{walk.count}")

    def _deliver(self, walk: Walk) -> Command:
        walk.status = "delivered"
        return DeliverOrder(**walk.head(SHOP))

    def _cancel(self, walk: Walk) -> Command:
        walk.status = "cancelled"
        return CancelOrder(**walk.head(f"user:{walk.user_id}"), reason="customer_request", note="changed my mind")

    def _repeat(self, walk: Walk) -> Command:
        """Send an earlier command again, as it was or in another conversation: the same wish."""
        command = self._chance.choice(walk.sent)
        return structs.replace(command, correlation_id="again") if self._chance.random() < 0.5 else command

    def _stale(self, walk: Walk) -> Command:
        return AmendOrder(**walk.head(SHOP), tax=7, expected_version=self._chance.randrange(6))

    def _early(self, walk: Walk) -> Command:
        """Send what the order is not ready for, or not any more."""
        head = walk.head(SHOP)
        return self._chance.choice(
            (
                DeliverOrder(**head),
                ShipOrder(**head, carrier="DHL", tracking_number="early"),
                PayOrder(**head, payment_id="again", amount=1, currency="EUR"),
                CreateOrder(**head, user_id=walk.user_id, currency="EUR", lines=self._lines()),
            )
        )

    def _foreign(self, walk: Walk) -> Command:
        """Return a command that its actor may not send: a stranger's cancellation, or a payment by the order's user."""
        stranger = f"user:eve-{walk.count % 3}"
        if self._chance.random() < 0.5:
            return CancelOrder(**walk.head(stranger), reason="customer_request")
        return PayOrder(**walk.head(f"user:{walk.user_id}"), payment_id="mine", amount=walk.total, currency="EUR")

    def _reused(self, walk: Walk) -> Command:
        """Send another wish under a command_id that was used."""
        used = self._chance.choice(walk.sent)
        return AmendOrder(
            command_id=used.command_id, order_id=walk.order_id, actor=SHOP, metadata={"n": str(walk.count)}
        )

    def _invalid(self, walk: Walk) -> Command:
        head = walk.head(SHOP)
        return self._chance.choice(
            (
                AmendOrder(**head, tax=-1),
                AmendOrder(**head, lines=()),
                AmendOrder(**head, discount=2**53),
                AmendOrder(**head),
                CancelOrder(**head, reason="an unknown reason"),
            )
        )

    def _late(self, walk: Walk) -> Command:
        return AmendOrder(**walk.head(SHOP), tax=9, decide_by=LONG_AGO)

    def _poison(self, walk: Walk) -> Sent:
        """Make a record that is no command of its order."""
        good = DeliverOrder(**walk.head(SHOP))
        key, text, binary = walk.order_id.encode(), encode_json(good), encode_avro(good)
        made = self._chance.choice(
            (
                Sent(key, self._chance.randbytes(40), (("x-origin", b"broken"), TRACE)),
                Sent(key, b""),
                Sent(key, None),
                Sent(key, binary[:-1]),
                Sent(key, binary + b"\0"),
                Sent(key, b"\0\x00\x00\x00\x07" + binary[5:]),
                Sent(key, text.replace(b"DeliverOrder", b"EatOrder")),
                Sent(key, text[:-1] + b',"colour":"red"}'),
                Sent(key, text.replace(b"service:shop", b"\xff\xfe")),
                Sent(key, text.replace(walk.order_id.encode(), b"..")),
                Sent(b"another-order", text),
                Sent(None, text),
            )
        )
        walk.count += 1
        return made

    def _lines(self) -> tuple[Line, ...]:
        return tuple(
            Line(
                sku=f"Größe/{number} (A+B)",
                quantity=self._chance.randint(1, 5),
                unit_price=self._chance.randint(1, 9999),
            )
            for number in range(self._chance.randint(1, 3))
        )

    def _pick(self, shares: dict[str, int]) -> str:
        return self._chance.choices(list(shares), list(shares.values()))[0]


def _subtotal(lines: tuple[Line, ...]) -> int:
    return sum(line.quantity * line.unit_price for line in lines)
