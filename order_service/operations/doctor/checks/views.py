"""Checks of the views: the database and its schema version, and how far the projector is behind."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aiokafka.structs import TopicPartition
from msgspec import Struct

from order_service.errors import DatabaseError
from order_service.kafka.reader import Reader
from order_service.kafka.topics import topic_names
from order_service.operations.doctor.checks.backlog import Backlog, backlogs_of
from order_service.operations.doctor.checks.check import Result, counted, not_checked, ok, problem, sentence, warning
from order_service.runtime.daemon_thread import in_daemon_thread
from order_service.settings import Settings
from order_service.views.postgresql import BUSY_S
from order_service.views.queries import Views
from order_service.views.tables import FORM, database_of, open_views

PROJECTOR = "Start a projector (`order-service projector`), or read its log and its /health/ready."


class State(Struct, frozen=True):
    """What the database says about the views."""

    faults: Sequence[str]
    stopped: list[tuple[str, int, int, str]]
    positions: Mapping[tuple[str, int], int]


async def check_views(settings: Settings, within_s: float = BUSY_S) -> list[Result]:
    """Check that the database answers with views of this version. Raises DatabaseError."""
    state = await _state_of(settings, within_s)
    return [_unset()] if state is None else judge_views(state)


def judge_views(state: State) -> list[Result]:
    """Return why the views should not be read yet, and which partitions are stopped."""
    results = [warning(sentence(fault), "Wait for the projector to build them.") for fault in state.faults]
    results += [
        problem(
            f"The views of partition {partition} of {topic} are stopped at offset {offset}: {reason}.",
            "See `order-service views --help`: a newer projector, or `order-service views skip`.",
        )
        for topic, partition, offset, reason in state.stopped
    ]
    return results or [ok(f"The database answers; the views have schema version {FORM}.")]


async def check_projector(
    settings: Settings, now: Callable[[], float] = time.time, within_s: float = BUSY_S
) -> list[Result]:
    """Check that a projector reads the events and rejections. The database must answer within `within_s`."""
    try:
        state = await _state_of(settings, within_s)
    except DatabaseError:
        return [not_checked("The views cannot be read.", "Fix what `views` reports first.")]
    if state is None:
        return [_unset()]
    async with Reader(settings) as reader:
        led = await reader.led_partitions(reader.names.events, reader.names.rejections)
        starts = await reader.starts(led)
        positions = {partition: max(starts[partition], state.positions.get(partition, 0)) for partition in led}
        stopped = {(topic, partition) for topic, partition, _, _ in state.stopped}
        backlogs = await backlogs_of(reader, positions, now())
        running = {key: each for key, each in backlogs.items() if key not in stopped}
        return judge_backlogs(running, has_stopped=bool(stopped))


def judge_backlogs(backlogs: Mapping[TopicPartition, Backlog], *, has_stopped: bool = False) -> list[Result]:
    """Return whether the projector is late; the check of the views reports stopped partitions."""
    behind = sum(backlog.offset_count for backlog in backlogs.values())
    late = [backlog.oldest_s for backlog in backlogs.values() if backlog.is_late]
    if late:
        text = f"The views are {counted(behind, 'offset')} behind; what they lack first is {max(late):.0f} s old."
        return [problem(text, PROJECTOR)]
    missing = f"The views are {counted(behind, 'offset')} behind" if behind else "The views have all records"
    return [ok(f"{missing}, apart from the stopped partitions." if has_stopped else f"{missing}.")]


def _unset() -> Result:
    return not_checked("ORDERS_DATABASE_URL is not set, and there are no views in ORDERS_DATA_DIR.")


async def _state_of(settings: Settings, within_s: float) -> State | None:
    """Return the state of the views, or None if no database is set and its default file does not exist.

    Raises DatabaseError, also if there is no answer in time: a driver may wait for each address of a server in turn.
    """
    url, names = database_of(settings), topic_names(settings.topic_prefix)

    def read() -> State | None:
        if not settings.database_url.get_secret_value() and not Path(str(url.database)).exists():
            return None
        with open_views(url, settings.database_schema) as engine:
            views = Views(engine, names)
            return State(views.faults(), views.stopped_partitions(), views.offsets())

    try:
        async with asyncio.timeout(within_s):
            return await in_daemon_thread(read)
    except TimeoutError as error:
        raise DatabaseError(f"the database of ORDERS_DATABASE_URL does not answer within {within_s:g} s") from error
