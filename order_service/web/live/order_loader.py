"""Loads orders by id: all ids that are requested while one query runs go into the next query together.

A query for each request would cost a thread switch and a statement, most of the work of a GET.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from order_service.views.order_view import OrderView
from order_service.views.queries import Views

BATCH_MAX: Final = 500
"""Maximum number of orders in one query."""

OrderFuture = asyncio.Future[OrderView | None]


class OrderLoader:
    """Loads orders as they are at the time of the call, or later."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._thread = ThreadPoolExecutor(1, "order-loader")
        self._wanted: dict[str, OrderFuture] = {}
        self._loading: asyncio.Task[None] | None = None

    async def order(self, order_id: str) -> OrderView | None:
        """Return an order as it is now, or None if it does not exist. Raises SQLAlchemyError."""
        future = self._wanted.get(order_id)
        if future is None:
            future = self._wanted[order_id] = asyncio.get_running_loop().create_future()
        if self._loading is None:
            self._loading = asyncio.create_task(self._load())
        return await asyncio.shield(future)  # a caller that hangs up does not cancel the others

    async def _load(self) -> None:
        loop = asyncio.get_running_loop()
        while self._wanted:
            order_ids = list(self._wanted)[:BATCH_MAX]
            futures = {order_id: self._wanted.pop(order_id) for order_id in order_ids}
            try:
                orders = await loop.run_in_executor(self._thread, self._views.orders, order_ids)
            except Exception as error:  # noqa: BLE001 - every waiting caller gets the error, of any kind
                for future in futures.values():
                    future.set_exception(error)
                    future.exception()  # marks it as retrieved: all callers may have hung up
            else:
                for order_id, future in futures.items():
                    future.set_result(orders.get(order_id))
        self._loading = None
