"""Keeps the overview of the service: one refresh for all viewers, and the last hour in memory."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, NoReturn, TypeVar

import structlog
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition
from msgspec import Struct

from order_service.errors import OrderServiceError
from order_service.kafka.reader import Reader
from order_service.operations.lanes.lanes import LaneRow, group_members, row_without_kafka, rows_of
from order_service.operations.overview.history import History, Increases
from order_service.operations.overview.newest_letters import LetterRow, NewestLetters
from order_service.operations.overview.overview import Overview, by_count, find
from order_service.operations.overview.processes import ProcessReport, ask_processes, lane_states
from order_service.operations.overview.waiting_users import WaitingRoom, WaitingUsers
from order_service.operations.positions import NewestPosition, newest_positions
from order_service.settings import Settings
from order_service.worker.membership import Member

log = structlog.get_logger()

_T = TypeVar("_T")

WATCHED_EVERY_S: Final = 5.0
UNWATCHED_EVERY_S: Final = 10.0
WATCHED_FOR_S: Final = 30.0
"""How long after a request the page counts as open."""
READ_WITHIN_S: Final = 15.0
WINDOW: Final = 20
"""Offsets at the end of a changelog in which a position is first looked for: a turn ends with it."""


class Figures(Struct, frozen=True):
    """What Kafka tells: the ends of the commands and the newest positions of the partitions that have a leader."""

    ends: dict[TopicPartition, int]
    newest: dict[int, NewestPosition]
    notes: list[str]


class OverviewWatch:
    """Reads the figures every few seconds, whether anybody looks or not. `latest` never waits for them.

    Waiting users and dead letters are read only while somebody looks.
    """

    def __init__(
        self,
        settings: Settings,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
        *,
        watched_every_s: float = WATCHED_EVERY_S,
        unwatched_every_s: float = UNWATCHED_EVERY_S,
    ) -> None:
        self._settings = settings
        self._addresses = [each for each in settings.admin_addresses.split(",") if each]
        self._now = now
        self._clock = clock
        self._watched_every_s = watched_every_s
        self._unwatched_every_s = unwatched_every_s
        self._reader: Reader | None = None
        self._history = History()
        self._refused, self._dead_letters = Increases(), Increases()
        self._waiting_users, self._newest_letters = WaitingUsers(), NewestLetters()
        self._looked_at = -WATCHED_FOR_S
        self._is_looked_at = asyncio.Event()
        self._fault = ""
        self._latest = Overview(None, now(), [], [], [], [], [], [], [], None, None)

    def latest(self) -> Overview:
        """Return the figures of the last refresh. The first viewer causes one."""
        was_watched = self._is_watched()
        self._looked_at = self._clock()
        if not was_watched:
            self._is_looked_at.set()
        return self._latest

    async def run(self) -> NoReturn:
        """Refresh until cancelled."""
        try:
            while True:
                self._is_looked_at.clear()
                await self._refresh_or_log()
                interval_s = self._watched_every_s if self._is_watched() else self._unwatched_every_s
                with suppress(TimeoutError):
                    async with asyncio.timeout(interval_s):
                        await self._is_looked_at.wait()
        finally:
            await self._close()

    def _is_watched(self) -> bool:
        return self._clock() - self._looked_at < WATCHED_FOR_S

    async def _refresh_or_log(self) -> None:
        """Refresh. An error that is not foreseen is logged: a page of figures must not end the server."""
        try:
            await self._refresh()
        except Exception as error:  # noqa: BLE001 - see above
            self._log_change(f"unexpected: {type(error).__name__}")
            await self._close()

    async def _refresh(self) -> None:
        notes: list[str] = []
        members = await self._noted(notes, "The members of the group are unknown", self._members())
        addresses = self._addresses or sorted({each.admin_address for each in members or () if each.admin_address})
        reports = await ask_processes(addresses)
        states = lane_states(reports)
        figures = await self._noted(notes, "Kafka's figures are unknown", self._figures())
        letters: list[LetterRow] | None = None
        waiting: WaitingRoom | None = None
        if not self._is_watched():
            self._waiting_users, self._newest_letters = WaitingUsers(), NewestLetters()
        elif figures is not None:
            letters = await self._noted(notes, "The dead letters are unknown", self._letters())
            waiting = await self._noted(notes, "The waiting room is unknown", self._waiting())
        if figures is None:
            lanes = [row_without_kafka(address, state) for _, (address, state) in sorted(states.items())]
        else:
            notes += figures.notes
            lanes = rows_of(figures.newest, figures.ends, states, members)
        self._latest = self._overview(notes, lanes, reports, letters, waiting, is_read=figures is not None)
        self._log_change("; ".join(notes))

    def _overview(
        self,
        notes: list[str],
        lanes: list[LaneRow],
        reports: list[ProcessReport],
        letters: list[LetterRow] | None,
        waiting: WaitingRoom | None,
        *,
        is_read: bool,
    ) -> Overview:
        now = self._now()
        if is_read:
            positions = {lane.partition: lane.position for lane in lanes if lane.position is not None}
            self._history.add(now, sum(lane.lag or 0 for lane in lanes), positions)
        processes = [process for report in reports for process in report.processes]
        self._refused.add(now, merged(report.refused for report in reports), processes)
        self._dead_letters.add(now, merged(report.dead_letters for report in reports), processes)
        rows = [report.row for report in reports]
        dead_letter_reasons = by_count(self._dead_letters.last_hour(now))
        base_url = self._settings.runbook_base_url
        return Overview(
            at=now,
            since=self._latest.since,
            findings=find(now, lanes, rows, dead_letter_reasons, waiting, base_url),
            notes=notes,
            lanes=lanes,
            processes=rows,
            history=self._history.points(now),
            refusals=by_count(self._refused.last_hour(now)),
            dead_letter_reasons=dead_letter_reasons,
            dead_letters=letters,
            waiting=waiting,
        )

    def _members(self) -> Awaitable[list[Member]]:
        return group_members(self._settings, patience_s=0.0)

    async def _figures(self) -> Figures:
        reader = await self._opened()
        names = reader.names
        led = await reader.led_partitions(names.commands, names.table)
        numbers = [each.partition for each in led if each.topic == names.commands]
        with_table = {each.partition for each in led if each.topic == names.table}
        all_numbers = [each.partition for each in await reader.partitions(names.commands)]
        readable = [number for number in numbers if number in with_table]
        notes = [f"Partition {number} has no leader." for number in all_numbers if number not in readable]
        ends = await reader.ends([TopicPartition(names.commands, number) for number in readable])
        return Figures(ends, await newest_positions(reader, readable, WINDOW), notes)

    async def _letters(self) -> list[LetterRow]:
        return await self._newest_letters.read(await self._opened())

    async def _waiting(self) -> WaitingRoom:
        return await self._waiting_users.read(await self._opened())

    async def _noted(self, notes: list[str], what: str, reading: Awaitable[_T]) -> _T | None:
        """Return what was read, or None with a note. After a failure, everything is read again."""
        try:
            async with asyncio.timeout(READ_WITHIN_S):
                return await reading
        except (OrderServiceError, KafkaError) as error:
            notes.append(f"{what}: {error}.")
        except TimeoutError:
            notes.append(f"{what}: they were not read within {READ_WITHIN_S:g} s.")
        self._waiting_users, self._newest_letters = WaitingUsers(), NewestLetters()
        await self._close()
        return None

    async def _opened(self) -> Reader:
        if self._reader is None:
            self._reader = await Reader(self._settings).__aenter__()
        return self._reader

    async def _close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.__aexit__()

    def _log_change(self, fault: str) -> None:
        if fault and not self._fault:
            log.warning("The overview for operators is incomplete.", why=fault)
        elif self._fault and not fault:
            log.info("The overview for operators is complete again.")
        self._fault = fault


def merged(counts: Iterable[Mapping[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    """Return the counts of all processes: no two of them have the same name."""
    return {key: count for each in counts for key, count in each.items()}
