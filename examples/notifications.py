"""Tells customers about their orders: nothing about history, everything that is new, at least once. Ctrl-C ends it."""

import asyncio
import os

from order_service.sdk import Fact, OrderCancelled, OrderCreated, OrderEvents, OrderPaid, OrderShipped


def message(fact: Fact | None) -> str | None:
    match fact:  # None: only a newer SDK knows the type of the event
        case OrderCreated(user_id=user_id):
            return f"thank you for your order, {user_id}"
        case OrderPaid(amount=amount, currency=currency):  # minor units: how many make one EUR, JPY or KWD differs
            return f"we have received {amount} minor units of {currency}"
        case OrderShipped(carrier=carrier, tracking_number=tracking_number):
            return f"it is on its way, {carrier} {tracking_number}"
        case OrderCancelled(refund_due=refund_due):
            return "it is cancelled" + (f", {refund_due} minor units come back to you" if refund_due else "")
    return None


async def main() -> None:
    async with OrderEvents.effects(group=os.environ.get("GROUP", "notifications")) as events:
        async for record in events:
            if said := message(record.event.fact):  # a mail server would drop the twin by the event_id
                print(f"{record.event.event_id} about {record.event.order_id}: {said}", flush=True)


asyncio.run(main())
