"""The projector: folds events and rejections into the tables, and moves its positions in the same transaction.

Two may run at once, and either may be killed anywhere: a transaction begins by moving each position from where this
projector believes it to be. Where another was first it is `Overtaken`, nothing of it stays, and it goes on from there.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NoReturn, Protocol

import msgspec
import structlog
from aiokafka.structs import ConsumerRecord, TopicPartition
from sqlalchemy import Engine, bindparam, exists, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from order_service.domain.messages import Event, Rejection
from order_service.errors import DatabaseError, HistoryError, RegistryAwayError
from order_service.reading import Reader, Seen, decode
from order_service.stream.topics import TopicNames
from order_service.views import state
from order_service.views.heads import Head, Heads, head_after
from order_service.views.rows import Put, Row
from order_service.views.tables import FORM, form, form_of, milliseconds, order_events, orders, positions, refusals

log = structlog.get_logger()

_json: Final = msgspec.json.Encoder().encode

_MOVE: Final = (
    positions.update()
    .where(
        positions.c.topic == bindparam("of_topic"),
        positions.c.partition == bindparam("of_partition"),
        positions.c.next_offset == bindparam("before"),
        exists().where(form.c.form == FORM),
    )
    .values(next_offset=bindparam("after"))
)

LOOK_EVERY_S: Final = 1.0
"""How often to tell how far the log goes on."""
AGAIN_S: Final = 2.0
"""How long the schema registry is left alone where it does not tell what an event is written by."""
CURE: Final = "they belong to another log; remove them (the files views.db*, or the tables), and they are built again"


class Overtaken(Exception):
    """Another projector has moved a position that we believed to be where we left it."""


class Projection:
    """The tables as a projector uses them. Calls block: they belong into a thread of their own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._heads = Heads()
        self._insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        self._put_events = Put(engine.dialect, order_events)
        self._put_orders = Put(engine.dialect, orders, changes=("status", "head", "document"))
        self._put_refusals = Put(engine.dialect, refusals, changes=("rejected_at", "partition", "offset", "document"))

    def positions(self, new: Iterable[TopicPartition] = ()) -> dict[TopicPartition, int]:
        """Read the next offset of each place that is known; of these, those that are `new` begin at 0."""
        begun = [{**_names(place), "next_offset": 0} for place in new]
        with self._engine.begin() as connection:
            if begun:
                connection.execute(self._insert(positions).on_conflict_do_nothing(), begun)
            _check_form(connection)
            rows = connection.execute(select(positions))
            found = {TopicPartition(row.topic, row.partition): row.next_offset for row in rows}
            if new and (others := {place.topic for place in found} - {place.topic for place in new}):
                raise DatabaseError(f"the database holds views of other topics: {', '.join(sorted(others))}")
        return found

    def mark_built(self) -> None:
        """Let it be known that the views hold all that the log held when somebody began to keep them."""
        with self._engine.begin() as connection:
            connection.execute(form.update().values(is_built=True))

    def apply(
        self, seens: Sequence[Seen], before: Mapping[TopicPartition, int], after: Mapping[TopicPartition, int]
    ) -> None:
        """Fold all that stands between these positions (some thousands at most); events of an order in their order.

        Raises Overtaken if a position is elsewhere by now, HistoryError for an event that cannot follow, DatabaseError
        if another version has made the tables anew.
        """
        with self._engine.begin() as connection:
            _move(connection, before, after)
            changed = {seen.order_id for seen in seens if isinstance(seen.message, Event)}
            heads = self._heads.of(changed, connection, {place: before[place] for place in after})
            happened: list[Row] = []
            refused: dict[tuple[str, str, bytes], Row] = {}
            for seen in seens:
                match seen.message:
                    case Event() as event:
                        head = heads[event.order_id] = head_after(heads.get(event.order_id), seen, event)
                        happened.append(_happened(seen, event, head.view.user_id))
                    case Rejection() as rejection:
                        key = rejection.order_id, rejection.command_id, rejection.command_digest
                        refused[key] = _refused(seen, rejection)
            self._put_events(connection, happened)
            self._put_orders(connection, [_order(heads[order_id]) for order_id in sorted(heads)])
            self._put_refusals(connection, [refused[key] for key in sorted(refused)])  # again: locked in one order
        self._heads.keep(heads, after)


class Progress(Protocol):
    """Who wants to know how far the views are."""

    def tell(self, left: int) -> None:
        """Hear how many offsets are left of what there was when the projector began."""

    def tell_stopped(self, why: str | None) -> None:
        """Hear why nothing can be read on for now; None when it can."""

    def tell_behind(self, behind: int | None) -> None:
        """Hear how many offsets the views are behind the log now; None if Kafka does not answer."""


async def follow(reader: Reader, projection: Projection, progress: Progress) -> NoReturn:
    """Fold all that was and all that comes, and tell how far the views are.

    Raises KafkaAwayError, TopicsError, SQLAlchemyError; HistoryError where the views and the log do not fit together:
    then one of both was replaced, and without its tables the views are built again.
    """
    places = await reader.places(reader.names.events, reader.names.rejections)
    goal = await reader.ends(places)
    while True:
        try:
            await _follow(reader, projection, places, goal, progress)
        except Overtaken as error:
            log.debug("Another projector was first.", where=str(error))
        except RegistryAwayError as error:
            progress.tell_stopped(str(error))
            await asyncio.sleep(AGAIN_S)


async def _follow(
    reader: Reader,
    projection: Projection,
    places: Sequence[TopicPartition],
    goal: Mapping[TopicPartition, int],
    progress: Progress,
) -> None:
    at = await asyncio.to_thread(projection.positions, places)
    starts, ends = await reader.starts(places), await reader.ends(places)
    for place in places:
        _check_reach(place, at[place], starts[place] if place.topic == reader.names.events else 0, ends[place])
    progress.tell_behind(sum(ends[place] - max(at[place], starts[place]) for place in places))
    left, look_at = -1, time.monotonic() + LOOK_EVERY_S
    async for records in reader.follow_many({place: max(at[place], starts[place]) for place in places}):
        moved = {}
        for record in records:
            place = TopicPartition(record.topic, record.partition)
            if record.offset < at[place]:
                raise HistoryError(f"a topic begins anew: the views would mix two logs; {CURE}")
            moved[place] = record.offset + 1
        progress.tell_stopped(None)
        if records:
            seens = await asyncio.to_thread(_decoded, records, reader.names)
            await asyncio.to_thread(projection.apply, seens, at, moved)
            at |= moved
        elif at != await asyncio.to_thread(projection.positions):
            raise Overtaken("the tables were made anew, or another projector has read what we are given later")
        if left != 0:
            left = await reader.behind(goal)
            if left == 0:
                await asyncio.to_thread(projection.mark_built)
            progress.tell(left)
        if time.monotonic() >= look_at:
            progress.tell_behind(await reader.lag())
            look_at = time.monotonic() + LOOK_EVERY_S


def _decoded(records: Sequence[ConsumerRecord], names: TopicNames) -> list[Seen]:
    return [decode(record, names) for record in records]


def _check_reach(place: TopicPartition, at: int, start: int, end: int) -> None:
    """Check that a topic holds what follows on what the views have read of it."""
    topic = f"partition {place.partition} of {place.topic}"
    if at > end:
        raise HistoryError(f"the views have read {topic} up to {at}, but it ends at {end}: {CURE}")
    if at < start:
        raise HistoryError(f"the views have read {topic} up to {at}, but it begins at {start}: {CURE}")


def _move(connection: Connection, before: Mapping[TopicPartition, int], after: Mapping[TopicPartition, int]) -> None:
    moves = [  # sorted: two projectors then lock rows in the same order
        {"of_topic": place.topic, "of_partition": place.partition, "before": before[place], "after": after[place]}
        for place in sorted(after)
    ]
    if connection.execute(_MOVE, moves).rowcount != len(moves):
        _check_form(connection)
        places = ", ".join(f"{place.topic}-{place.partition} at {before[place]}" for place in sorted(after))
        raise Overtaken(f"no more all of these are where we left them: {places}")


def _check_form(connection: Connection) -> None:
    found = form_of(connection)
    if found != FORM:
        raise DatabaseError(f"the views have form {found} by now, this version keeps form {FORM}")


def _names(place: TopicPartition) -> Row:
    return {"topic": place.topic, "partition": place.partition}


def _order(head: Head) -> Row:
    view = head.view
    return {
        "order_id": view.order_id,
        "user_id": view.user_id,
        "status": view.status,
        "created_at": milliseconds(view.created_at),
        "head": head.digest,
        "document": state.encode(view),
    }


def _happened(seen: Seen, event: Event, user_id: str) -> Row:
    return {
        "order_id": event.order_id,
        "version": event.version,
        "user_id": user_id,
        "command_id": event.command_id,
        "occurred_at": milliseconds(event.occurred_at),
        "partition": seen.partition,
        "offset": seen.offset,
        "command_offset": seen.command_offset,
        "document": _json(event).decode(),
    }


def _refused(seen: Seen, rejection: Rejection) -> Row:
    return {
        "order_id": rejection.order_id,
        "command_id": rejection.command_id,
        "command_digest": rejection.command_digest,
        "rejected_at": milliseconds(rejection.rejected_at),
        "partition": seen.partition,
        "offset": seen.offset,
        "document": _json(rejection).decode(),
    }
