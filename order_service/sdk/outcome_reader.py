"""Learn what becomes of many commands at once: one reader of the topics for all who wait.

Nobody waits, nobody reads: the reading begins with the first who waits, at the ends of the topics, and stops some
seconds after the last. So no outcome of a command that is sent afterwards can be missed.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from aiokafka.structs import ConsumerRecord, TopicPartition

from order_service.domain.messages import Command
from order_service.errors import HistoryError, KafkaAwayError, LeaderAwayError, OrderServiceError
from order_service.kafka.connection import Consumer, connection
from order_service.kafka.reader import Reader, kafka_answers
from order_service.kafka.topics import TopicNames, topic_names
from order_service.sdk.outcomes import GRACE_S, Accepted, AwaitingUser, Outcome, Refused, Repeated, Undecided, Watch
from order_service.settings import Settings
from order_service.wire.changelog import POSITION_KEY
from order_service.wire.commands import partition_of

LINGER_S: Final = 10.0
"""How long the reading goes on when nobody waits: to begin it anew takes up to a fifth of a second."""

ADD_EVERY_S: Final = 1.0
"""How often partitions without a leader are looked at again."""


class AwaitedOutcome:
    """A command whose outcome somebody waits for. What comes before its own offset is known is kept until then."""

    def __init__(self, names: TopicNames, command: Command, partition: int) -> None:
        self.key = command.order_id.encode()
        self.partition = partition
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.watch: Watch | None = None
        self._answer_before: Refused | Repeated = Repeated()
        self._names = names
        self._command = command
        self._early: list[ConsumerRecord] = []
        self._early_position: ConsumerRecord | None = None

    @property
    def is_missed(self) -> bool:
        """Tell whether it is decided, and no outcome was seen."""
        return self.watch is not None and self.watch.is_decided and not self.outcome.done()

    def arrived(self, offset: int) -> None:
        """Hear where the command lies."""
        self.watch = Watch(self._names, self._command, self.partition, offset)
        for record in (*self._early, *([self._early_position] if self._early_position else [])):
            self.hear(record)
        self._early.clear()

    def hear(self, record: ConsumerRecord) -> None:
        """Take a record of its order, or a position of its partition, of which only the newest counts."""
        if self.watch is not None:
            self._take(self.watch, record)
        elif record.key == POSITION_KEY:
            self._early_position = record
        else:
            self._early.append(record)

    def _take(self, watch: Watch, record: ConsumerRecord) -> None:
        try:
            outcome = watch.see(record)
        except HistoryError as error:
            self.fail(error)
        else:
            if outcome is not None:
                self.decide(outcome)

    def look_back(self, record: ConsumerRecord) -> None:
        """Take a record of the order's history; of several refusals of a command the last one counts."""
        try:
            answer = None if self.watch is None else self.watch.answer_in(record)
        except HistoryError as error:
            self.fail(error)
        else:
            if isinstance(answer, Accepted):
                self.decide(answer)
            self._answer_before = answer if isinstance(answer, Refused) else self._answer_before

    def looked_back(self) -> None:
        """Hear that the history has no more records."""
        self.decide(self._answer_before)

    def decide(self, outcome: Outcome) -> None:
        """Tell who waits, if it was not told yet."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def fail(self, error: OrderServiceError) -> None:
        """Tell who waits that nobody will know; whether the command arrived is then not known either."""
        if not self.outcome.done():
            self.outcome.set_exception(error)
            self.outcome.exception()  # it may have gone

    async def within(self, wait_s: float) -> Outcome:
        """Wait for the outcome, or say what is known by then."""
        try:
            async with asyncio.timeout(wait_s):
                return await self.outcome
        except TimeoutError:
            return AwaitingUser() if self.watch is not None and self.watch.waits else Undecided()


class Following:
    """Follows the topics while somebody waits; commands that repeat forgotten ones are looked up in the history."""

    def __init__(self, settings: Settings, within_s: float) -> None:
        self._settings = settings
        self._reader: Reader
        self._servers: str = connection(settings)["bootstrap_servers"]
        self._within_s = within_s
        self._search = Search(settings)
        self._names = topic_names(settings.topic_prefix)
        self._places: list[TopicPartition] = []
        self._leaderless: list[TopicPartition] = []
        self._partitions = 0
        self._awaited: dict[bytes, list[AwaitedOutcome]] = defaultdict(list)
        self._task: asyncio.Task[None] | None = None
        self._begun: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Find the topics. Raises KafkaAwayError, TopicsError."""
        self._reader = await Reader(self._settings).__aenter__()
        names = self._names
        try:
            self._partitions = len(await self._reader.partitions(names.commands))  # where it is missing, say so now
            self._places = await self._reader.partitions(
                names.events, names.rejections, names.dead_letters, names.table, names.waiting
            )
        except BaseException:
            await self._reader.__aexit__(None, None, None)
            raise

    async def close(self) -> None:
        """Let nobody wait any longer."""
        for awaited in self._all():
            awaited.decide(Undecided())
        for task in (self._task, self._search.task):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        await self._reader.__aexit__(None, None, None)

    @asynccontextmanager
    async def awaiting(self, command: Command) -> AsyncIterator[AwaitedOutcome]:
        """Follow from here on what concerns this command, which is sent in the block and `arrived` there."""
        key = command.order_id.encode()
        awaited = AwaitedOutcome(self._names, command, partition_of(key, self._partitions))
        self._awaited[key].append(awaited)
        try:
            await self._reading()
            self._check_followed(awaited.partition)
            yield awaited
        finally:
            awaited.outcome.cancel()
            self._awaited[key].remove(awaited)
            if not self._awaited[key]:
                del self._awaited[key]

    def arrived(self, awaited: AwaitedOutcome, offset: int) -> None:
        """Hear where an awaited command lies."""
        awaited.arrived(offset)
        self._settle(awaited)

    def _settle(self, awaited: AwaitedOutcome) -> None:
        """Search the history for the answer to a command that is decided without anything new, after some grace."""
        if awaited.is_missed:
            asyncio.get_running_loop().call_later(GRACE_S, self._search.add, awaited)

    async def _reading(self) -> None:
        """Wait until the ends are known from which on all is read."""
        if self._begun is None:
            self._begun = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._follow(self._begun))
        with kafka_answers(self._servers):
            async with asyncio.timeout(self._within_s):
                await asyncio.shield(self._begun)

    def _check_followed(self, partition: int) -> None:
        """Raise LeaderAwayError if an outcome of a command in this partition could be missed."""
        if missing := [place for place in self._leaderless if place.partition == partition]:
            raise LeaderAwayError(missing)

    async def _follow(self, begun: "asyncio.Future[None]") -> None:
        try:
            self._reader.begin(await self._ends_of(self._places))
            begun.set_result(None)
            await self._hear_all()
        except OrderServiceError as error:
            self._fail(begun, error)
        finally:
            if self._begun is begun:  # it has not stopped by itself
                self._begun = None
                self._fail(begun, KafkaAwayError("the reading of outcomes was ended"))

    def _fail(self, begun: "asyncio.Future[None]", error: OrderServiceError) -> None:
        """Tell who waits for the beginning, or all who wait for an outcome, that the reading has ended."""
        if not begun.done():
            begun.set_exception(error)
            begun.exception()  # who waits for it may have gone
        for awaited in self._all():
            awaited.fail(error)

    async def _ends_of(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Ask where partitions end; those without a leader are left for later, and no command is sent to them."""
        leaderless = await self._reader.leaderless(places)
        ends = await self._reader.ends([place for place in places if place not in leaderless])
        self._leaderless = leaderless
        return ends

    async def _add(self) -> None:
        """Follow the partitions that have a leader again."""
        try:
            ends = await self._ends_of(self._leaderless)
        except LeaderAwayError:  # it lost its leader while it was asked
            return
        if ends:
            await self._reader.add(ends)

    async def _hear_all(self) -> None:
        now = asyncio.get_running_loop().time
        stop_at, add_at = now() + LINGER_S, now() + ADD_EVERY_S
        while True:
            self._hear(await self._reader.poll())
            if self._leaderless and now() > add_at:
                await self._add()
                add_at = now() + ADD_EVERY_S
            if self._awaited:
                stop_at = now() + LINGER_S
            elif now() > stop_at:
                self._begun = None  # at once: who comes from here on begins anew
                return

    def _hear(self, records: Sequence[ConsumerRecord]) -> None:
        positions: dict[int, ConsumerRecord] = {}
        for record in records:
            if record.key == POSITION_KEY:
                positions[record.partition] = record
            elif record.topic != self._names.table:
                self._tell(self._of_order(record), record)
        if positions:
            for awaited in list(self._all()):
                if awaited.partition in positions:
                    self._tell([awaited], positions[awaited.partition])

    def _tell(self, some: Iterable[AwaitedOutcome], record: ConsumerRecord) -> None:
        for awaited in some:
            was_missed = awaited.is_missed
            awaited.hear(record)
            if not was_missed:
                self._settle(awaited)

    def _of_order(self, record: ConsumerRecord) -> Sequence[AwaitedOutcome]:
        """Give who waits for something of the order that a record is about: its key, up to a NUL, names it."""
        return self._awaited.get((record.key or b"").partition(b"\0")[0], ())

    def _all(self) -> Iterator[AwaitedOutcome]:
        for some in list(self._awaited.values()):
            yield from some


class Search:
    """Searches the history for what became of the first copies of commands; one reading for all who ask meanwhile."""

    def __init__(self, settings: Settings) -> None:
        self.task: asyncio.Task[None] | None = None
        self._settings = settings
        self._asked: list[AwaitedOutcome] = []

    def add(self, awaited: AwaitedOutcome) -> None:
        """Search for an answer, unless it has come by now."""
        if not awaited.is_missed:
            return
        self._asked.append(awaited)
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._asked:
            asked, self._asked = [awaited for awaited in self._asked if awaited.is_missed], []
            try:
                await self._look(asked)
            except OrderServiceError as error:
                for awaited in asked:
                    awaited.fail(error)

    async def _look(self, asked: Sequence[AwaitedOutcome]) -> None:
        """Read the partitions of those who ask, until each has an answer or is gone.

        It reads to the end of what is written, not only of what is committed: a transaction whose position we saw is
        committed, but its marker may be late elsewhere, and what it holds for us lies before that end.
        """
        by_key: dict[bytes, list[AwaitedOutcome]] = defaultdict(list)
        for awaited in asked:
            by_key[awaited.key].append(awaited)
        async with Reader(self._settings) as reader:
            events, rejections = reader.names.events, reader.names.rejections
            partitions = {awaited.partition for awaited in asked}
            places = [TopicPartition(topic, number) for topic in (events, rejections) for number in partitions]
            leaderless = await reader.leaderless(places)
            for awaited in asked:
                if missing := [place for place in leaderless if place.partition == awaited.partition]:
                    awaited.fail(LeaderAwayError(missing))
            left = [awaited for awaited in asked if awaited.is_missed]
            places = [place for place in places if place.partition in {awaited.partition for awaited in left}]
            async for record in reader.until(await _written(self._settings, places)):
                for awaited in by_key.get(record.key, ()):
                    awaited.look_back(record)
                while left and not left[-1].is_missed:
                    left.pop()
                if not left:
                    return
        for awaited in asked:
            awaited.looked_back()


async def _written(settings: Settings, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    """Ask where logs end, with what is not committed yet."""
    arguments = connection(settings)
    consumer = Consumer(**arguments, request_timeout_ms=10_000)
    try:
        with kafka_answers(arguments["bootstrap_servers"]):
            await consumer.start()
            return dict(await consumer.end_offsets(places))
    finally:
        await consumer.stop()
