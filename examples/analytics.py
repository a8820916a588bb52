"""Sums what was paid and given back, from the first order on, each event once. The argument is a SQLite file."""

import asyncio
import sqlite3
import sys

from order_service.sdk import Event, OrderCancelled, OrderEvents, OrderPaid, UnknownEvent, once


def note(database: sqlite3.Connection, event: Event | UnknownEvent) -> None:
    match event.fact:
        case OrderPaid(amount=amount, currency=currency):
            database.execute("INSERT INTO payments VALUES (?, ?, ?, 0)", (event.order_id, currency, amount))
        case OrderCancelled(refund_due=refund_due):
            database.execute("UPDATE payments SET refunded = ? WHERE order_id = ?", (refund_due, event.order_id))


async def main(file: str) -> None:
    database = sqlite3.connect(file)
    database.execute("CREATE TABLE IF NOT EXISTS payments (order_id PRIMARY KEY, currency, amount, refunded)")
    store = once(database, "payments")  # its offsets move in the transaction of the results
    async with OrderEvents.projection(start=store.positions()) as events:
        async for record in events:
            with store.applying(record):
                note(database, record.event)
            if not record.is_replay:
                print(*database.execute("SELECT currency, sum(amount), sum(refunded) FROM payments GROUP BY currency"))


asyncio.run(main(sys.argv[1]))
