"""A stand-in for a payment service: charges what was ordered, pays the order, gives back what is not owed any more.

The contract is docs/guide/payments.md. The argument is the SQLite file of a ledger, in place of a bank.
"""

import asyncio
import sqlite3
import sys
from typing import Any

from order_service.sdk import (
    Accepted,
    Event,
    OrderAmended,
    OrderCancelled,
    OrderCommands,
    OrderCreated,
    OrderEvents,
    Refused,
)


class Ledger:
    """What was charged, and what was given back; the same id again changes nothing, as at any bank's API."""

    def __init__(self, file: str) -> None:
        self._connection = sqlite3.connect(file, isolation_level=None)
        self._connection.execute("CREATE TABLE IF NOT EXISTS charges (id PRIMARY KEY, order_id, amount, currency)")
        self._connection.execute("CREATE TABLE IF NOT EXISTS refunds (id PRIMARY KEY, order_id, amount)")

    def charge(self, payment_id: str, order_id: str, amount: int, currency: str) -> None:
        """Take money."""
        self._note("INSERT OR IGNORE INTO charges VALUES (?, ?, ?, ?)", payment_id, order_id, amount, currency)

    def refund(self, refund_id: str, order_id: str, amount: int) -> None:
        """Give it back."""
        self._note("INSERT OR IGNORE INTO refunds VALUES (?, ?, ?)", refund_id, order_id, amount)

    def _note(self, statement: str, *values: Any) -> None:
        if self._connection.execute(statement, values).rowcount:
            print(statement.split()[4], *values[1:], flush=True)


async def pay(orders: OrderCommands, ledger: Ledger, event: Event, amount: int, currency: str) -> None:
    """Charge what an order costs at this version and pay it; an order that is elsewhere by now gets its money back."""
    payment_id = event.event_id  # the same, however often this event comes
    ledger.charge(payment_id, event.order_id, amount, currency)
    version = event.version
    match await orders.pay(
        event.order_id, payment_id, amount, currency, command_id=payment_id, expected_version=version, wait_s=30
    ):
        case Accepted():
            return
        case Refused(reason=reason):
            print("refused", event.order_id, reason.value, flush=True)
            ledger.refund(payment_id, event.order_id, amount)
        case outcome:  # not decided yet: raise, and this event comes again
            raise RuntimeError(f"the payment of {event.order_id} is {outcome}")


async def main(file: str) -> None:
    ledger = Ledger(file)
    async with (
        OrderCommands(actor="service:payments") as orders,
        OrderEvents.effects(group="payments") as events,
    ):
        async for happened in events:
            event = happened.event
            match event.fact:
                case OrderCreated(total=total, currency=currency) | OrderAmended(total=total, currency=currency):
                    await pay(orders, ledger, event, total, currency)
                case OrderCancelled(refund_due=refund_due) if refund_due:
                    ledger.refund(event.event_id, event.order_id, refund_due)


asyncio.run(main(sys.argv[1]))
