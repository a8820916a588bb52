"""Test helpers for users of the SDK: no Kafka, no waiting and no extra packages, for any test runner.

`given` decides a command by the rules, `InMemoryOrders` replaces the service, and every message has a sample:

    from order_service.sdk import Line, Reason
    from order_service.sdk.testing import InMemoryOrders, given, order_created, pay_order

    def test_a_partial_payment_is_refused():
        given(order_created()).when(pay_order(amount=1)).then(Reason.PAYMENT_MISMATCH)

    async def test_every_new_order_sends_a_mail():
        orders, mugs = InMemoryOrders(), Line(sku="mug-blue", quantity=2, unit_price=1250)
        async with orders.effects(group="mailer") as events:
            await orders.commands("user:dana").create("order-1", "dana", "EUR", [mugs])
            orders.end()  # the subscriber under test then ends after the last event
            mails = [f"thank you, {record.event.fact.user_id}" async for record in events]
        assert mails == ["thank you, dana"]

Faults can be simulated: `repeat` writes an event again, `lose_next` omits a version, `poison` writes invalid bytes.
`add_unknown` writes an event of a type that only a later version of the service knows.
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
