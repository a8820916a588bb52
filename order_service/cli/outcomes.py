"""What `up` shows of commands: one line for each that was accepted, refused or could not be decoded, as it arrives."""

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Final

from aiokafka.structs import ConsumerRecord, TopicPartition

from order_service.cli import show
from order_service.domain.messages import Event
from order_service.domain.refusals import RULES
from order_service.errors import OrderServiceError
from order_service.kafka.reader import Reader, decode
from order_service.kafka.topics import TopicNames
from order_service.settings import Settings

LINES_PER_S: Final = 20
"""More outcomes in a second are only counted: a load test must not wait for a terminal."""
TRY_AGAIN_S: Final = 5.0
TEXT_MAX: Final = 300
"""The most characters that are shown of a text: any program may have written it."""
NAME: Final = "outcome   | "
COMMANDS: Final = {fact: command.__name__ for (command, _), fact in RULES.items() if isinstance(fact, type)}
"""The name of the command that leads to each fact."""

Parts = list[tuple[str, str]]
"""A line, as `show.line` takes it: texts with their styles."""


async def show_outcomes(settings: Settings, on_begun: Callable[[], object]) -> None:
    """Show outcomes until cancelled: all those that come after the one call of `on_begun`.

    While Kafka cannot be read, say why once, and try again. After any other error, say that no more are shown, and end.
    """
    begin = cache(on_begun)  # calls it once
    try:
        await _show_outcomes(settings, begin)
    except Exception as error:  # noqa: BLE001, `up` must run on without these lines
        _print([("outcomes are no longer shown: ", "yellow"), (type(error).__name__, "")])
        begin()


async def _show_outcomes(settings: Settings, begin: Callable[[], object]) -> None:
    lines = Lines()
    positions: dict[TopicPartition, int] = {}
    last_reason = ""

    def forget_reason() -> None:
        nonlocal last_reason
        last_reason = ""

    while True:
        try:
            async with Reader(settings) as reader:
                positions = positions or await _ends(reader)
                begin()
                await _follow(reader, positions, lines, forget_reason)
        except OrderServiceError as error:
            if str(error) != last_reason:
                last_reason = str(error)
                _print([("outcomes cannot be read: ", "yellow"), (last_reason, "")])
        begin()
        await asyncio.sleep(TRY_AGAIN_S)


async def _ends(reader: Reader) -> dict[TopicPartition, int]:
    names = reader.names
    return await reader.ends(await reader.partitions(names.events, names.rejections, names.dead_letters))


async def _follow(
    reader: Reader, positions: dict[TopicPartition, int], lines: "Lines", on_polled: Callable[[], object]
) -> None:
    """Show the records from these positions on, and keep the positions up to date."""
    async for records in reader.follow_many(positions):
        on_polled()
        for record in records:
            positions[TopicPartition(record.topic, record.partition)] = record.offset + 1
            lines.add(record, reader.names)
        lines.count_hidden()


def _print(parts: Parts) -> None:
    show.line((NAME, "dim"), *parts)


class Lines:
    """Prints the lines, at most `LINES_PER_S` in a second. Of the others it prints the number."""

    def __init__(self, write: Callable[[Parts], None] = _print, clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._began_at = -1.0
        self._shown = 0
        self._hidden = 0

    def add(self, record: ConsumerRecord, names: TopicNames) -> None:
        """Print the line of an outcome, or count it."""
        self.count_hidden()
        if self._shown < LINES_PER_S:
            self._shown += 1
            self._write(line_of(record, names))
        else:
            self._hidden += 1

    def count_hidden(self) -> None:
        """After a second, print how many outcomes were not shown in it, and show outcomes again."""
        now = self._clock()
        if now - self._began_at < 1.0:
            return
        if self._hidden:
            also = "`order-service tail --rejections --from-beginning` shows them"
            hidden = f"{self._hidden:,} more outcomes in this second; {also}"
            self._write([(hidden, "dim")])
        self._began_at, self._shown, self._hidden = now, 0, 0


def line_of(record: ConsumerRecord, names: TopicNames) -> Parts:
    """Return the line of an outcome: the command and its order, the result, and the command's partition and offset."""
    if record.topic == names.dead_letters:
        return _dead_letter(record.key, dict(record.headers))
    try:
        outcome = decode(record, names)
    except OrderServiceError as error:
        return [("unreadable: ", "red"), (str(error), "")]
    message = outcome.message
    where = "" if outcome.command_offset is None else f" (command {outcome.partition}:{outcome.command_offset})"
    if isinstance(message, Event):
        fact = type(message.fact)
        by = "the service" if outcome.command_offset is None else COMMANDS[fact]
        text = f"{by}, {message.order_id}: {fact.__name__}, version {message.version}"
        return [("accepted: ", "green"), (text, ""), (where, "dim")]
    text = f"{message.command_type}, {message.order_id}: {show.describe(message)}"
    return [("refused: ", "red"), (text[:TEXT_MAX], ""), (where, "dim")]


def _dead_letter(key: bytes | None, headers: Mapping[str, bytes | None]) -> Parts:
    reason, detail, partition, offset = (
        (headers.get(f"dl_{name}") or b"?").decode(errors="replace")
        for name in ("reason", "detail", "partition", "offset")
    )
    about = "no key" if key is None else f"key {key[:TEXT_MAX].decode(errors='replace')}"
    text = f"{about[:TEXT_MAX]}: {reason}: {detail}"
    return [("dead letter: ", "bold red"), (text[: 2 * TEXT_MAX], ""), (f" (command {partition}:{offset})", "dim")]
