"""Send order commands and learn what became of them."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self, TypedDict, Unpack
from uuid import uuid4

from order_service.domain.messages import (
    AmendOrder,
    CancelOrder,
    Command,
    CreateOrder,
    DeliverOrder,
    Line,
    PayOrder,
    ShipOrder,
)
from order_service.kafka.command_producer import WITHIN_S
from order_service.sdk.outcomes import Outcome
from order_service.sdk.sending import Sender
from order_service.sdk.target import settings_for
from order_service.settings import Settings

WAIT_S: Final = 5.0
IN_FLIGHT_MAX: Final = 1_000


class Envelope(TypedDict, total=False):
    """What every command may have: an id of its own for safe retries, and conditions under which it is decided."""

    command_id: str
    expected_version: int
    decide_by: datetime
    correlation_id: str


class Extras(Envelope, total=False):
    """What an order may have beside its lines; money is whole minor units of its currency."""

    discount: int
    tax: int
    shipping: int
    shipping_address_ref: str
    metadata: dict[str, str]


class Commands(ABC):
    """The six commands as methods. `actor` is who wishes it: `service:<id>`, or `user:<id>` for that user's own orders.

    Each gives the `Outcome` that is known `wait_s` seconds after the command was in Kafka. Money is whole minor units.
    The command_id comes from chance unless you give one. To send again what may have arrived already, give the same
    command_id and the same values: it happens once.
    """

    def __init__(self, actor: str) -> None:
        self._actor = actor

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(  # noqa: B027, what has begun nothing has nothing to end
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        pass

    @abstractmethod
    async def send(self, command: Command, wait_s: float = WAIT_S) -> Outcome:
        """Send a command, and wait for what becomes of it up to `wait_s` seconds (0: not at all)."""

    async def create(
        self,
        order_id: str,
        user_id: str,
        currency: str,
        lines: Sequence[Line],
        *,
        wait_s: float = WAIT_S,
        **extras: Unpack[Extras],
    ) -> Outcome:
        """Place an order for a user, who must be an active one."""
        given = {"user_id": user_id, "currency": currency, "lines": tuple(lines)}
        return await self.send(CreateOrder(**self._whole(order_id, extras, **given)), wait_s)

    async def amend(
        self, order_id: str, lines: Sequence[Line] | None = None, *, wait_s: float = WAIT_S, **extras: Unpack[Extras]
    ) -> Outcome:
        """Change an order before it is paid: what is given replaces what was, at least one of them."""
        given = {"lines": None if lines is None else tuple(lines)}
        return await self.send(AmendOrder(**self._whole(order_id, extras, **given)), wait_s)

    async def pay(
        self,
        order_id: str,
        payment_id: str,
        amount: int,
        currency: str,
        *,
        wait_s: float = WAIT_S,
        **envelope: Unpack[Envelope],
    ) -> Outcome:
        """Record a payment of the whole total."""
        given = {"payment_id": payment_id, "amount": amount, "currency": currency}
        return await self.send(PayOrder(**self._whole(order_id, envelope, **given)), wait_s)

    async def ship(
        self,
        order_id: str,
        carrier: str,
        tracking_number: str,
        *,
        wait_s: float = WAIT_S,
        **envelope: Unpack[Envelope],
    ) -> Outcome:
        """Record that a paid order left the house."""
        given = {"carrier": carrier, "tracking_number": tracking_number}
        return await self.send(ShipOrder(**self._whole(order_id, envelope, **given)), wait_s)

    async def deliver(self, order_id: str, *, wait_s: float = WAIT_S, **envelope: Unpack[Envelope]) -> Outcome:
        """Record that a shipped order arrived."""
        return await self.send(DeliverOrder(**self._whole(order_id, envelope)), wait_s)

    async def cancel(
        self,
        order_id: str,
        reason: str,
        note: str | None = None,
        *,
        wait_s: float = WAIT_S,
        **envelope: Unpack[Envelope],
    ) -> Outcome:
        """Cancel an order that was not shipped yet; `reason` is one of CANCEL_REASONS."""
        return await self.send(CancelOrder(**self._whole(order_id, envelope, reason=reason, note=note)), wait_s)

    def _whole(self, order_id: str, given: Envelope, **fields: Any) -> dict[str, Any]:
        """Put together what a command is made of."""
        return {"command_id": str(uuid4()), "order_id": order_id, "actor": self._actor, **given, **fields}


class OrderCommands(Commands):
    """Sends commands to the service: idempotent, acknowledged by all replicas in sync, behind the order's earlier ones.

    Open it once and share it: `async with OrderCommands(actor="service:shop") as orders:`, then for instance
    `await orders.pay("order-1", "payment-1", 3400, "EUR")`. What comes back is a value, to be matched:

    * Accepted: it happened, `.event` says what; `.repeated` if it had happened before
    * Refused: it did not, `.reason` says why and `.rejection.detail` more
    * Waiting: the user is being asked for; it will be decided without you
    * Undecided: it is in Kafka, and was not decided in time
    * Unreadable: the worker cannot read it, so sender and service have different versions
    * Repeated: it repeats a command that was decided, and how is not kept any more (refusals are kept 30 days)

    The answer to a repeat is searched in the whole history of its partition, which may take longer than `wait_s`:
    then it is Undecided.

    Raises KafkaAwayError if Kafka takes nothing for `within_s` seconds, or if an outcome could not be read because its
    partition has no leader (nothing is sent then, and commands to other partitions work). Raises HistoryError if its
    order has an event that cannot be read here (of a newer service, say), RegistryAwayError if a schema registry must
    be asked and does not answer: then nobody knows whether the command arrives, and the same one again, command_id
    included, is safe. Raises TopicsError if there is no service under these names, SetupError where it is not open, or
    not any more.

    At most `in_flight_max` commands are on their way or awaited; whoever sends one more waits for a place. Connection,
    security and topic prefix are those of the service's settings (the environment: KAFKA_BOOTSTRAP_SERVERS,
    ORDERS_KAFKA_…, ORDERS_TOPIC_PREFIX); `servers` ("host:9092") or `settings` go over them.
    """

    def __init__(
        self,
        servers: str = "",
        *,
        actor: str,
        in_flight_max: int = IN_FLIGHT_MAX,
        within_s: float = WITHIN_S,
        settings: Settings | None = None,
    ) -> None:
        super().__init__(actor)
        self._sender = Sender(settings_for(servers, settings), within_s)
        self._places = asyncio.Semaphore(in_flight_max)

    async def __aenter__(self) -> Self:
        await self._sender.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._sender.__aexit__(kind, error, trace)

    async def send(self, command: Command, wait_s: float = WAIT_S) -> Outcome:
        """Send a command, and wait for what becomes of it up to `wait_s` seconds (0: not at all)."""
        async with self._places:
            return (await self._sender.send(command, wait_s)).outcome
