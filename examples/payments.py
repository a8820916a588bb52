"""A stand-in for a payment service: charges what was ordered, pays the order, gives back what is not owed any more.

The contract is docs/guide/payments.md. The argument is the SQLite file of a ledger, in place of a bank.
"""

import asyncio
import os
import sqlite3
import sys

from order_service.sdk import (
    Commands,
    Event,
    OrderAmended,
    OrderCancelled,
    OrderCommands,
    OrderCreated,
    OrderEvents,
    OrderPaid,
)


class Ledger:
    """What was charged for which version of an order, and whether it was given back: each once, as at any bank."""

    def __init__(self, file: str) -> None:
        self._connection = sqlite3.connect(file, isolation_level=None)
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS charges (id PRIMARY KEY, order_id, version, amount, currency, given_back)"
        )

    def charge(self, event: Event, amount: int, currency: str) -> None:
        """Take money under the event's id: the same event again takes no more."""
        row = (event.event_id, event.order_id, event.version, amount, currency, False)
        if self._connection.execute("INSERT OR IGNORE INTO charges VALUES (?, ?, ?, ?, ?, ?)", row).rowcount:
            print("charged", event.order_id, amount, currency, flush=True)

    def give_back(self, event: Event, but: str = "") -> None:
        """Refund what was charged for earlier versions of the event's order, except the payment of this id."""
        rows = self._connection.execute(
            "UPDATE charges SET given_back = TRUE WHERE order_id = ? AND version < ? AND id != ? AND NOT given_back"
            " RETURNING amount, currency",
            (event.order_id, event.version, but),
        ).fetchall()
        for amount, currency in rows:
            print("gave back", event.order_id, amount, currency, flush=True)


async def settle(event: Event, orders: Commands, ledger: Ledger) -> None:
    """Do what an event asks for. All of it may be done again: the ids are the event's."""
    match event.fact:
        case OrderCreated(total=total, currency=currency) | OrderAmended(total=total, currency=currency):
            ledger.give_back(event)  # what the order cost before
            ledger.charge(event, total, currency)
            name, at = event.event_id, event.version  # the outcome is the order's next event: no need to wait for it
            await orders.pay(event.order_id, name, total, currency, command_id=name, expected_version=at, wait_s=0)
        case OrderPaid(payment_id=payment_id):
            ledger.give_back(event, but=payment_id)
        case OrderCancelled():
            ledger.give_back(event)


async def main(file: str) -> None:
    """Settle what happens, one event after the other."""
    ledger = Ledger(file)
    async with (
        OrderCommands(actor="service:payments") as orders,
        OrderEvents.effects(group=os.environ.get("GROUP", "payments")) as events,
    ):
        async for record in events:
            if isinstance(record.event, Event):  # a type that only a newer SDK knows asks for nothing here
                await settle(record.event, orders, ledger)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
