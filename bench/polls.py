"""Polls: how long a server's question for news takes, by the number of partitions.

Not part of the whole bench: `python -m bench polls`. No Kafka takes part.
"""

import time
from collections.abc import Sequence
from typing import Final

from aiokafka.structs import TopicPartition
from pydantic import SecretStr

from bench.databases import DATABASES, databases
from bench.sizes import scaled
from bench.table import Row
from bench.watching import WrongResult
from bench.world import World
from order_service.kafka.reader import OutcomeRecord
from order_service.kafka.topics import topic_names
from order_service.settings import Settings
from order_service.views.projector import Projection
from order_service.views.queries import Views
from order_service.views.tables import database_of, open_database, prepare
from tests.support.samples import but, digest_of, order_created

POLLS: Final = scaled(200)
PARTITIONS: Final = (12, 1_000)
MOVED: Final = (0, 1, 100)
"""How many partitions have a new event at each poll."""

HOW: Final = f"""\
{POLLS} polls of each kind, one after another, in one process without callers (`Views.changes_since`). Before each, a \
projector writes one event to as many partitions as are named; that is not measured."""


def measure(world: World) -> list[Row]:
    """Poll views with few and with many partitions."""
    rows = []
    with databases(world.directory) as make:
        for kind in DATABASES:
            for partitions in PARTITIONS:
                with_news = Polled(make(kind), partitions)
                for moved in MOVED:
                    if moved <= partitions:
                        took_ms = sorted(with_news.poll_ms(range(moved)) for _ in range(POLLS))
                        what = f"{kind}, {partitions:,} partitions, {moved} moved"
                        rows.append(Row(f"{what}, p50", "ms", [took_ms[len(took_ms) // 2]]))
                        rows.append(Row(f"{what}, p99", "ms", [took_ms[len(took_ms) * 99 // 100]]))
                world.say(f"polls: {kind}, {partitions} partitions")
    return rows


class Polled:
    """Views of so many partitions, one who writes to them, and one who polls."""

    def __init__(self, url: str, partitions: int) -> None:
        names, place = topic_names(), database_of(Settings(database_url=SecretStr(url)))
        writing = open_database(place, writes=True)
        prepare(writing)
        self._projection, self._views = Projection(writing, names), Views(open_database(place), names)
        topics = names.events, names.rejections
        self._topic = names.events
        self._at = self._projection.positions([TopicPartition(topic, n) for topic in topics for n in range(partitions)])
        self._since = self._views.offsets()

    def poll_ms(self, numbers: Sequence[int]) -> float:
        """Write an event to each of these partitions, poll once, and return how long the poll took."""
        places = [TopicPartition(self._topic, number) for number in numbers]
        if places:
            self._projection.apply([self._created(place) for place in places], self._at, self._behind(places))
            self._at |= self._behind(places)
        began_at = time.perf_counter()
        changes = self._views.changes_since(self._since)
        took_s = time.perf_counter() - began_at
        if len(changes.events) != len(places) or not changes.is_all:
            raise WrongResult(f"{len(changes.events)} events of {len(places)}")
        self._since = changes.offsets
        return took_s * 1000

    def _behind(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {place: self._at[place] + 1 for place in places}

    def _created(self, place: TopicPartition) -> OutcomeRecord:
        offset = self._at[place]
        event = but(order_created, order_id=f"order-{place.partition}-{offset}")
        return OutcomeRecord(event, place.partition, offset, digest_of(event), offset)
