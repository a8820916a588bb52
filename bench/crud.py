"""The peer: what most would write. A table of orders, an outbox for its readers, one transaction.

It keeps no history, and nothing makes a repeated request safe. Its outbox is only written: somebody has yet to publish
it. It asks the User Service as ours does, and remembers no answer.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any, Final
from uuid import uuid4

from aiohttp import ClientSession, web
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

CONNECTIONS: Final = 16
TABLES: Final = """
CREATE TABLE orders (order_id text PRIMARY KEY, user_id text, status text, version int, document jsonb);
CREATE INDEX ON orders (user_id);
CREATE TABLE outbox (id bigserial PRIMARY KEY, order_id text, type text, document jsonb)"""


class Crud:
    """The handlers."""

    def __init__(self, users: ClientSession) -> None:
        self._users = users
        self._pool: asyncio.Queue[AsyncConnection[Any]] = asyncio.Queue()

    async def open(self, url: str) -> None:
        """Connect, and make the tables."""
        for _ in range(CONNECTIONS):
            self._pool.put_nowait(await AsyncConnection.connect(url))
        async with self._transaction() as connection:
            await connection.execute(TABLES)

    async def create(self, request: web.Request) -> web.Response:
        """201 the order."""
        order = await request.json() | {"order_id": str(uuid4()), "status": "created", "version": 1}
        async with self._users.get(f"/v1/users/{order['user_id']}") as answer:
            if answer.status != 200 or (await answer.json())["status"] != "active":
                raise web.HTTPUnprocessableEntity
        values = order["order_id"], order["user_id"], "created", 1, Jsonb(order)
        async with self._transaction() as connection:
            await connection.execute("INSERT INTO orders VALUES (%s, %s, %s, %s, %s)", values)
            await self._publish(connection, "OrderCreated", order)
        return web.json_response(order, status=201, headers={"Location": f"/v1/orders/{order['order_id']}"})

    async def pay(self, request: web.Request) -> web.Response:
        """200 the order as it now stands."""
        change = Jsonb({"payment": await request.json(), "status": "paid", "version": 2})
        paying = """UPDATE orders SET status = 'paid', version = 2, document = document || %s
                    WHERE order_id = %s AND status = 'created' RETURNING document"""
        async with self._transaction() as connection:
            found = await connection.execute(paying, (change, request.match_info["order_id"]))
            row = await found.fetchone()
            if row is None:
                raise web.HTTPConflict
            await self._publish(connection, "OrderPaid", row[0])
        return web.json_response(row[0])

    async def get(self, request: web.Request) -> web.Response:
        """200 the order."""
        async with self._transaction() as connection:
            asked = "SELECT document FROM orders WHERE order_id = %s"
            row = await (await connection.execute(asked, (request.match_info["order_id"],))).fetchone()
        if row is None:
            raise web.HTTPNotFound
        return web.json_response(row[0])

    @staticmethod
    async def _publish(connection: AsyncConnection[Any], kind: str, order: dict[str, Any]) -> None:
        row = order["order_id"], kind, Jsonb(order)
        await connection.execute("INSERT INTO outbox (order_id, type, document) VALUES (%s, %s, %s)", row)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection[Any]]:
        connection = await self._pool.get()
        try:
            async with connection.transaction():
                yield connection
        finally:
            self._pool.put_nowait(connection)


def serve(pipe: "Connection[Any, Any]", database_url: str, users_url: str, port: int) -> None:
    """Serve until killed; say when ready."""
    asyncio.run(_serve(pipe, database_url, users_url, port))


async def _serve(pipe: "Connection[Any, Any]", database_url: str, users_url: str, port: int) -> None:
    async with ClientSession(users_url) as users:
        crud = Crud(users)
        await crud.open(database_url)
        app = web.Application()
        app.router.add_post("/v1/orders", crud.create)
        app.router.add_post("/v1/orders/{order_id}/pay", crud.pay)
        app.router.add_get("/v1/orders/{order_id}", crud.get)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        pipe.send("ready")
        await asyncio.Event().wait()
