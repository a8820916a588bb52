"""A projection that is killed: `python -m tests.broker.sdk.tally DATABASE COUNT`.

It adds up payments, and dies at the COUNT-th. It dies between its statement and the
commit. With a COUNT of 0 it reads all that is there, and ends.
"""

import asyncio
import os
import signal
import sys

from order_service.sdk import OrderEvents, OrderPaid, once
from tests.broker.sdk.database import connect


async def main(database: str, count: int) -> None:
    """Add up payments in the consumer's own database; a payment of nothing is the last one."""
    connection = connect(database)
    connection.execute("CREATE TABLE IF NOT EXISTS revenue (total INTEGER)")
    connection.commit()
    store = once(connection, "revenue")
    left = count
    async with OrderEvents.projection(start=store.positions()) as events:
        async for happened in events:
            if not isinstance(happened.event.fact, OrderPaid):
                continue
            with store.applying(happened):
                connection.execute(f"INSERT INTO revenue VALUES ({happened.event.fact.amount})")
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            if not happened.event.fact.amount:
                return


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
