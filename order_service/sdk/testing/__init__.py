"""For the tests of whoever uses the SDK: no Kafka, no waiting, nothing to install; for any test runner.

`given` says what the rules make of a command, InMemoryOrders stands in for the service, and every message has a sample:

    from order_service.sdk import Line, Reason
    from order_service.sdk.testing import InMemoryOrders, given, order_created, pay_order

    def test_a_part_of_the_total_pays_nothing():
        given(order_created()).when(pay_order(amount=1)).then(Reason.PAYMENT_MISMATCH)

    async def test_who_orders_gets_a_mail():
        orders, mugs = InMemoryOrders(), Line(sku="mug-blue", quantity=2, unit_price=1250)
        async with orders.effects(group="mailer") as events:
            await orders.commands("user:dana").create("order-1", "dana", "EUR", [mugs])
            orders.end()  # a subscriber under test ends where there is no more
            mails = [f"thank you, {happened.event.fact.user_id}" async for happened in events]
        assert mails == ["thank you, dana"]

What can go wrong is there too: `repeat` writes an event again, `lose_next` leaves a hole, `poison` is no event at all.
"""

from order_service.domain.decision import UserCheck
from order_service.sdk.testing.memory import InMemoryCommands, InMemoryOrders
from order_service.sdk.testing.rules import Answered, Given, given
from order_service.sdk.testing.samples import (
    amend_order,
    cancel_order,
    create_order,
    deliver_order,
    order_amended,
    order_cancelled,
    order_created,
    order_delivered,
    order_paid,
    order_shipped,
    pay_order,
    sample_commands,
    sample_life,
    ship_order,
)

__all__ = [
    "Answered",
    "Given",
    "InMemoryCommands",
    "InMemoryOrders",
    "UserCheck",
    "amend_order",
    "cancel_order",
    "create_order",
    "deliver_order",
    "given",
    "order_amended",
    "order_cancelled",
    "order_created",
    "order_delivered",
    "order_paid",
    "order_shipped",
    "pay_order",
    "sample_commands",
    "sample_life",
    "ship_order",
]
