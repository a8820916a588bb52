"""The Python SDK of the Order Service: subscribe to order events, and send order commands.

    import asyncio
    from order_service.sdk import Accepted, Line, OrderCommands, OrderEvents, Refused


    async def main():
        async with OrderCommands(actor="service:shop") as orders, OrderEvents.effects(group="mailer") as events:
            match await orders.create("order-3", "dana", "EUR", [Line(sku="mug-blue", quantity=2, unit_price=1250)]):
                case Accepted(event=event):
                    print(f"{event.order_id} is placed: {event.fact.total} {event.fact.currency}")
                case Refused(reason=reason):
                    print(f"refused: {reason}")
            async for record in events:
                print(f"a mail to {record.event.fact.user_id}: thank you for {record.event.order_id}")
                break


    asyncio.run(main())

There are two ways to read events:

* *Effects* are actions on the outside world: mails, calls, payouts. `OrderEvents.effects(group=…)` skips history,
  shares the partitions among the members of a consumer group, and delivers each event at least once.
* *Projections* are data that can be rebuilt from history: tables, sums, searches. `OrderEvents.projection()` starts at
  the first event, `projection(start=…)` at given offsets. `once` commits those offsets in the transactions of your own
  database, so that each event counts exactly once.

Every event has an `order_id`, a `version` (1…n without gaps), an `actor`, a time `occurred_at`, and a `fact`:
OrderCreated, OrderAmended, OrderPaid, OrderShipped, OrderDelivered or OrderCancelled. Amounts are integers in minor
units of the currency. Times are UTC. An event of a type that a later version of the service has added is an
UnknownEvent: its `fact` is None, and its `type` has the name.

`order_service.sdk.testing` has sample messages, in-memory replacements for both clients that need no Kafka, and
given/when/then for the rules. `order_service.sdk.tracing` continues the trace of an event with OpenTelemetry. The
environment configures the connection: KAFKA_BOOTSTRAP_SERVERS, ORDERS_KAFKA_…, ORDERS_TOPIC_PREFIX.
"""

from order_service.domain.messages import (
    AmendOrder,
    CancelOrder,
    Command,
    CreateOrder,
    DeliverOrder,
    Event,
    Fact,
    Line,
    OrderAmended,
    OrderCancelled,
    OrderCreated,
    OrderDelivered,
    OrderPaid,
    OrderShipped,
    PayOrder,
    Rejection,
    ShipOrder,
)
from order_service.domain.refusals import MEANINGS, Reason
from order_service.domain.validation import CANCEL_REASONS
from order_service.errors import (
    DamagedError,
    HistoryError,
    HoleError,
    KafkaAwayError,
    OrderServiceError,
    OvertakenError,
    RegistryAwayError,
    SetupError,
    TopicsError,
)
from order_service.sdk.commands import Commands, OrderCommands
from order_service.sdk.events import (
    EventRecord,
    Hole,
    OnHole,
    OnPoison,
    OnUnknown,
    OrderEvents,
    skip,
    stop_at_hole,
    stop_at_poison,
)
from order_service.sdk.once import Once, once
from order_service.sdk.outcomes import Accepted, AwaitingUser, Outcome, Refused, Repeated, Undecided, Unreadable
from order_service.settings import Settings
from order_service.wire.later_versions import UnknownEvent
from order_service.wire.trace_context import TraceContext

__all__ = [
    "CANCEL_REASONS",
    "MEANINGS",
    "Accepted",
    "AmendOrder",
    "AwaitingUser",
    "CancelOrder",
    "Command",
    "Commands",
    "CreateOrder",
    "DamagedError",
    "DeliverOrder",
    "Event",
    "EventRecord",
    "Fact",
    "HistoryError",
    "Hole",
    "HoleError",
    "KafkaAwayError",
    "Line",
    "OnHole",
    "OnPoison",
    "OnUnknown",
    "Once",
    "OrderAmended",
    "OrderCancelled",
    "OrderCommands",
    "OrderCreated",
    "OrderDelivered",
    "OrderEvents",
    "OrderPaid",
    "OrderServiceError",
    "OrderShipped",
    "Outcome",
    "OvertakenError",
    "PayOrder",
    "Reason",
    "Refused",
    "RegistryAwayError",
    "Rejection",
    "Repeated",
    "Settings",
    "SetupError",
    "ShipOrder",
    "TopicsError",
    "TraceContext",
    "Undecided",
    "UnknownEvent",
    "Unreadable",
    "once",
    "skip",
    "stop_at_hole",
    "stop_at_poison",
]
