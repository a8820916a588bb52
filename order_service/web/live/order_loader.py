"""Orders by their ids: all that are asked for while one question is under way are the next question together.

A question of its own for each would cost a thread's turn and a statement, most of the work of a GET.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from order_service.views.order_view import OrderView
from order_service.views.queries import Views

TOGETHER_MAX: Final = 500
"""How many orders one question asks for."""

Asked = asyncio.Future[OrderView | None]


class OrderLoader:
    """Gives orders as they are at the time of the question, or later."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._thread = ThreadPoolExecutor(1, "lookup")
        self._wanted: dict[str, Asked] = {}
        self._asking: asyncio.Task[None] | None = None

    async def order(self, order_id: str) -> OrderView | None:
        """Give an order as it is now, None if there is none. Raises SQLAlchemyError."""
        asked = self._wanted.get(order_id)
        if asked is None:
            asked = self._wanted[order_id] = asyncio.get_running_loop().create_future()
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(asked)  # who hangs up takes nobody along

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        while self._wanted:
            some = list(self._wanted)[:TOGETHER_MAX]
            asked = {order_id: self._wanted.pop(order_id) for order_id in some}
            try:
                found = await loop.run_in_executor(self._thread, self._views.orders, some)
            except Exception as error:  # noqa: BLE001 - whoever asked hears of it, whatever it is
                for one in asked.values():
                    one.set_exception(error)
                    one.exception()  # they may all have hung up
            else:
                for order_id, one in asked.items():
                    one.set_result(found.get(order_id))
        self._asking = None
