"""The client for order commands: send a command, and wait for its outcome."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime
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
from order_service.sdk.log_index import LogIndex
from order_service.sdk.outcomes import Outcome
from order_service.sdk.sending import Sender
from order_service.sdk.target import settings_for
from order_service.settings import Settings
from order_service.wire.trace_context import TraceContext

WAIT_S: Final = 5.0
IN_FLIGHT_MAX: Final = 1_000


class Options(TypedDict, total=False):
    """The options of every command: an id for safe retries, conditions for the decision, and how long to wait."""

    command_id: str
    expected_version: int
    decide_by: datetime
    correlation_id: str
    wait_s: float


class Extras(Options, total=False):
    """The optional fields of an order. Amounts are in minor units of its currency."""

    discount: int
    tax: int
    shipping: int
    shipping_address_ref: str
    metadata: dict[str, str]


class Commands(ABC):
    """The six order commands as methods.

    `actor` identifies the caller: `service:<id>`, or `user:<id>` for that user's own orders. Amounts are integers in
    minor units.

    Each method waits up to `wait_s` seconds (5 by default) after Kafka has acknowledged the command, and returns the
    `Outcome` known at that point.
    The `command_id` is random by default. To retry a command that may have arrived, pass the same `command_id` and the
    same values: it takes effect once.
    """

    def __init__(self, actor: str) -> None:
        self._actor = actor

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:  # noqa: B027, nothing to close by default
        pass

    @abstractmethod
    async def send(self, command: Command, wait_s: float = WAIT_S) -> Outcome:
        """Send a command, wait up to `wait_s` seconds for its outcome (0: do not wait), and return it."""

    async def create(
        self, order_id: str, user_id: str, currency: str, lines: Sequence[Line], **extras: Unpack[Extras]
    ) -> Outcome:
        """Create an order for a user, who must be active."""
        fields = {"user_id": user_id, "currency": currency, "lines": tuple(lines)}
        return await self._send(CreateOrder, order_id, extras, **fields)

    async def amend(self, order_id: str, lines: Sequence[Line] | None = None, **extras: Unpack[Extras]) -> Outcome:
        """Amend an order before it is paid. Pass at least one field; each one replaces its former value."""
        return await self._send(AmendOrder, order_id, extras, lines=None if lines is None else tuple(lines))

    async def pay(
        self, order_id: str, payment_id: str, amount: int, currency: str, **options: Unpack[Options]
    ) -> Outcome:
        """Record a payment of the total of the order; partial payments are refused."""
        fields = {"payment_id": payment_id, "amount": amount, "currency": currency}
        return await self._send(PayOrder, order_id, options, **fields)

    async def ship(self, order_id: str, carrier: str, tracking_number: str, **options: Unpack[Options]) -> Outcome:
        """Record the shipment of a paid order."""
        return await self._send(ShipOrder, order_id, options, carrier=carrier, tracking_number=tracking_number)

    async def deliver(self, order_id: str, **options: Unpack[Options]) -> Outcome:
        """Record the delivery of a shipped order."""
        return await self._send(DeliverOrder, order_id, options)

    async def cancel(self, order_id: str, reason: str, note: str | None = None, **options: Unpack[Options]) -> Outcome:
        """Cancel an order that is not shipped yet. `reason` is one of CANCEL_REASONS."""
        return await self._send(CancelOrder, order_id, options, reason=reason, note=note)

    async def _send(self, kind: type[Command], order_id: str, options: Options, **fields: Any) -> Outcome:
        """Send a command with the fields of its kind, and wait for its outcome."""
        wait_s = options.pop("wait_s", WAIT_S)
        every_field: dict[str, Any] = {"command_id": str(uuid4()), "order_id": order_id, "actor": self._actor}
        return await self.send(kind(**every_field | {**options, **fields}), wait_s)


class OrderCommands(Commands):
    """A client that sends commands to the service through Kafka and returns their outcomes.

    Create one client, open it with `async with OrderCommands(actor="service:shop") as orders:`, and share it. A call is
    for instance `await orders.pay("order-1", "payment-1", 3400, "EUR")`. The producer is idempotent, waits for all
    in-sync replicas, and keeps the commands of an order in sequence. Match the returned `Outcome`:

    * `Accepted`: the command led to `.event`; `.repeated` is true if an earlier copy of the command did.
    * `Refused`: the command had no effect; `.reason` is the reason, `.rejection.detail` explains it.
    * `AwaitingUser`: the service is waiting for the User Service, and will decide the command later.
    * `Undecided`: the command is in Kafka, but was not decided in time.
    * `Unreadable`: the worker cannot decode the command, because client and service have different versions.
    * `Repeated`: the command was decided before, and its outcome is no longer stored (rejections are kept 30 days).

    The outcome of a repeated command is searched in the whole history of its partition. If that takes longer than
    `wait_s`, the result is `Undecided`. With an `index`, only the order's own records are read: a program that has the
    service installed passes `order_service.views.log_index.ViewsIndex(settings)`.

    A call raises:

    * `KafkaAwayError` if Kafka does not accept the command within `within_s` seconds. Also if the outcome could not be
      read because its partition has no leader: the command is not sent then, and other partitions are not affected.
    * `HistoryError` if the order has an event that this client cannot read, for instance from a newer service.
    * `RegistryAwayError` if a schema registry is needed and does not answer.
    * `TopicsError` if the topics of the service do not exist, `SetupError` if the client is not open.
    * `UnicodeEncodeError` if a text has a lone surrogate, which UTF-8 cannot hold. Nothing is sent then.

    After KafkaAwayError (unless a leader is missing), HistoryError or RegistryAwayError the command may have arrived. A
    retry with the same `command_id` and the same values is safe.

    Each command carries the trace context that `trace` returns. With OpenTelemetry, pass
    `order_service.sdk.tracing.current`.

    At most `in_flight_max` commands are in flight or awaited; further calls wait for a free slot. The environment
    configures the connection, security and topic prefix (KAFKA_BOOTSTRAP_SERVERS, ORDERS_KAFKA_…, ORDERS_TOPIC_PREFIX).
    `servers` ("host:9092") or `settings` override it.
    """

    def __init__(
        self,
        servers: str = "",
        *,
        actor: str,
        in_flight_max: int = IN_FLIGHT_MAX,
        within_s: float = WITHIN_S,
        settings: Settings | None = None,
        index: LogIndex | None = None,
        trace: Callable[[], TraceContext | None] = lambda: None,
    ) -> None:
        super().__init__(actor)
        self._trace = trace
        self._sender = Sender(settings_for(servers, settings), within_s, index=index)
        self._slots = asyncio.Semaphore(in_flight_max)

    async def __aenter__(self) -> Self:
        await self._sender.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._sender.__aexit__()

    async def send(self, command: Command, wait_s: float = WAIT_S) -> Outcome:
        """Send a command, wait up to `wait_s` seconds for its outcome (0: do not wait), and return it."""
        async with self._slots:
            trace = self._trace()
            return (await self._sender.send(command, wait_s, [] if trace is None else trace.headers())).outcome
