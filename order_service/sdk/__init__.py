"""For teams that subscribe to order events, or send order commands, from Python.

    import asyncio
    from order_service.sdk import Accepted, Line, OrderCommands, OrderEvents, Refused

    async def main():
        async with OrderCommands(actor="service:shop") as orders, OrderEvents.effects(group="mailer") as events:
            match await orders.create("order-1", "dana", "EUR", [Line(sku="mug-blue", quantity=2, unit_price=1250)]):
                case Accepted(event=event):
                    print(f"{event.order_id} is placed: {event.fact.total} {event.fact.currency}")
                case Refused(reason=reason):
                    print(f"refused: {reason}")
            async for happened in events:
                print(f"a mail to {happened.event.fact.user_id}: thank you for {happened.event.order_id}")
                break

    asyncio.run(main())

Which of the two ways to read events you want depends on what you do with them:

* *Effects* leave the house: mails, calls, payouts. `OrderEvents.effects(group=…)` is silent about history, shares the
  work among all who name the same group, and gives each event at least once.
* *Projections* are built from history and can be built again: tables, sums, searches. `OrderEvents.projection()` begins
  with the first event ever, `projection(start=…)` where you say; `once` keeps that place in the transaction of your own
  database, so that each event counts exactly once.

Every event says its `order_id`, its `version` (1…n without holes), who did it and when, and its `fact`: OrderCreated,
OrderAmended, OrderPaid, OrderShipped, OrderDelivered or OrderCancelled. Money is whole minor units, times are UTC.

`order_service.sdk.testing` has sample events, a stand-in for both ends that needs no Kafka, and given/when/then for the
rules. The connection is set by the environment: KAFKA_BOOTSTRAP_SERVERS, ORDERS_KAFKA_…, ORDERS_TOPIC_PREFIX.
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
    KafkaAwayError,
    OrderServiceError,
    RegistryAwayError,
    SetupError,
    TopicsError,
)
from order_service.sdk.commands import Commands, OrderCommands
from order_service.sdk.errors import HoleError, OvertakenError
from order_service.sdk.events import (
    EventRecord,
    Hole,
    OnHole,
    OnPoison,
    OrderEvents,
    skip,
    stop_at_hole,
    stop_at_poison,
)
from order_service.sdk.once import Once, once
from order_service.sdk.outcomes import Accepted, AwaitingUser, Outcome, Refused, Repeated, Undecided, Unreadable
from order_service.settings import Settings

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
    "Undecided",
    "Unreadable",
    "once",
    "skip",
    "stop_at_hole",
    "stop_at_poison",
]
