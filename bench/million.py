"""A million orders to read: straight into the table of the views, and questions about them."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Final
from urllib.parse import urlencode
from uuid import UUID

from aiokafka.structs import TopicPartition
from msgspec import Struct
from pydantic import SecretStr

from bench.callers import Question
from bench.sizes import scaled
from order_service.domain.messages import Line
from order_service.domain.refusals import Status
from order_service.kafka.topics import topic_names
from order_service.settings import Settings
from order_service.views import order_view
from order_service.views.order_view import OrderView
from order_service.views.projector import Projection
from order_service.views.queries import Cursor
from order_service.views.rows import Put, Row
from order_service.views.tables import database_of, milliseconds, open_database, orders, prepare
from order_service.web.http.cursors import write_cursor

ORDERS: Final = max(10_000, scaled(1_000_000))
EACH: Final = 100
"""How many orders a user has."""
LIMIT: Final = 50
QUESTIONS: Final = 2_000
CHUNK: Final = 5_000
FIRST_AT: Final = datetime(2026, 1, 1, tzinfo=UTC)
APART: Final = timedelta(seconds=20)
STATUSES: Final = tuple(status for status in Status if status is not Status.ABSENT)
LINES: Final = (
    Line(line_id="1", sku="mug-blue", name="Blue mug", quantity=2, unit_price=1250),
    Line(line_id="2", sku="poster-a2", quantity=1, unit_price=900),
)


class Written(Struct, frozen=True):
    """What questions need to know of an order."""

    order_id: str
    user_id: str
    status: Status
    created_at: datetime


def fill(url: str) -> list[Written]:
    """Put a million orders into new views, the oldest first, and call these built."""
    random = Random(1)
    written = [_written(random, number) for number in range(ORDERS)]
    engine = open_database(database_of(Settings(database_url=SecretStr(url))), writes=True)
    prepare(engine)
    put = Put(engine.dialect, orders)
    for first in range(0, ORDERS, CHUNK):
        with engine.begin() as connection:
            put(connection, [_row(order) for order in written[first : first + CHUNK]])
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.exec_driver_sql("ANALYZE")  # as it does by itself after a minute
    projection, partitions = Projection(engine, topic_names()), [TopicPartition(topic_names().events, 0)]
    projection.positions(partitions)
    projection.mark_built(partitions)
    engine.dispose()
    return written


def orders_by_id(written: Sequence[Written]) -> list[Question]:
    """Ask for orders anywhere."""
    some = Random(2).sample(written, min(QUESTIONS, len(written)))
    return [Question("by id", f"/v1/orders/{order.order_id}", order.order_id.encode()) for order in some]


def lists(written: Sequence[Written]) -> list[Question]:
    """Ask for lists of fifty, by all that orders can be searched by, first pages and pages deep in them."""
    random = Random(3)
    counts = Counter((order.user_id, order.status) for order in written)
    found = []
    for _ in range(QUESTIONS // 10):
        deep = written[random.randrange(len(written) // 2, len(written))]
        of_user = written[len(written) // 2 + random.randrange(len(written) // EACH)]
        since, until = _time(deep.created_at - APART * len(written) // 4), _time(deep.created_at)
        found += [
            _list("by time, first page"),
            _list("by time, deep", behind=deep),
            _list("by user, first page", user_id=of_user.user_id),
            _list("by user, deep", behind=of_user, user_id=of_user.user_id),
            _list(
                "by user and status",
                times=min(LIMIT, counts[of_user.user_id, of_user.status]),
                user_id=of_user.user_id,
                status=of_user.status,
            ),
            _list("by status, first page", status=deep.status),
            _list("by status, deep", behind=deep, status=deep.status),
            _list("within a span of time", created_from=since, created_to=until),
        ]
    return found


def _list(kind: str, *, behind: Written | None = None, times: int = LIMIT, **query: str) -> Question:
    if behind is not None:
        query["cursor"] = write_cursor(Cursor(milliseconds(behind.created_at), behind.order_id))
    return Question(kind, f"/v1/orders?{urlencode({'limit': LIMIT, **query})}", b'"order_id":', times)


def _time(at: datetime) -> str:
    return at.isoformat()


def _written(random: Random, number: int) -> Written:
    order_id = str(UUID(int=random.getrandbits(128)))
    user_id = f"user-{number % (ORDERS // EACH)}"
    return Written(order_id, user_id, STATUSES[random.randrange(len(STATUSES))], FIRST_AT + APART * number)


def _row(order: Written) -> Row:
    at = order.created_at
    view = OrderView(
        order_id=order.order_id,
        user_id=order.user_id,
        currency="EUR",
        lines=LINES,
        discount=0,
        tax=0,
        shipping=500,
        total=3900,
        shipping_address_ref=None,
        metadata={},
        version=1,
        status=order.status,
        created_at=at,
        changed_at=at,
    )
    return {
        "order_id": order.order_id,
        "user_id": order.user_id,
        "status": order.status,
        "created_at": milliseconds(at),
        "head": bytes(16),
        "document": order_view.encode(view),
    }
