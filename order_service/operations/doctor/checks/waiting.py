"""The check of the waiting room: the commands that wait for the User Service, from their changelog."""

import asyncio
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final

from msgspec import Struct

from order_service.domain.messages import CreateOrder
from order_service.errors import UserServiceUnavailable
from order_service.kafka.reader import Reader
from order_service.operations.doctor.checks.check import Result, counted, not_checked, ok, warning
from order_service.operations.doctor.checks.user_service import user_api
from order_service.settings import Settings
from order_service.wire.changelog import WaitingCommand, decode_waiting

READ_WITHIN_S: Final = 12.0
LONG_AFTER_S: Final = 60.0
"""The workers repeat a lookup after 60 s at most, so a longer wait means that a lookup had no answer again."""
SHOWN: Final = 3


class Waiting(Struct, frozen=True):
    """The waiting commands in numbers, and the users that they wait for, the longest waiting first."""

    count: int = 0
    oldest_at: datetime | None = None
    user_ids: tuple[str, ...] = ()


async def check_waiting(settings: Settings, now: Callable[[], float] = time.time) -> list[Result]:
    """Check that no command waits for long. For the user that is waited for longest, ask the User Service."""
    try:
        async with asyncio.timeout(READ_WITHIN_S), Reader(settings) as reader:
            waiting = count_waiting(await _read(reader))
    except TimeoutError:
        text = f"The changelog of the waiting room could not be read within {READ_WITHIN_S:.0f} s."
        return [not_checked(text, "See `orders_waiting_commands` and `orders_waiting_oldest_seconds` of the workers.")]
    if waiting.oldest_at is None:
        return [ok("No command waits.")]
    waited_s = now() - waiting.oldest_at.timestamp()
    reason = await _reason(settings, waiting.user_ids[0]) if waiting.user_ids and waited_s > LONG_AFTER_S else ""
    return [judge_waiting(settings, waiting, waited_s, reason)]


def judge_waiting(settings: Settings, waiting: Waiting, waited_s: float, reason: str) -> Result:
    """Return the result for waiting commands; `reason` is what the User Service answers about the first user."""
    shown = ", ".join(waiting.user_ids[:SHOWN]) + (", …" if len(waiting.user_ids) > SHOWN else "")
    text = (
        f"{counted(waiting.count, 'command')} of {counted(len(waiting.user_ids), 'user')} ({shown}) wait for the User"
        f" Service, the oldest for {waited_s:.0f} s.{reason}"
    )
    if waited_s <= LONG_AFTER_S:
        return ok(text)
    return warning(
        text,
        "Repair the User Service, or its settings: `order-service users check ID` explains an answer. Creates are "
        f"refused after {settings.user_deadline_s:g} s (ORDERS_USER_DEADLINE_S).",
    )


async def _read(reader: Reader) -> Iterable[WaitingCommand]:
    """Return the commands that wait now. Raises HistoryError for one that cannot be decoded."""
    partitions = await reader.led_partitions(reader.names.waiting)
    starts, ends = await reader.starts(partitions), await reader.ends(partitions)
    newest: dict[bytes, bytes] = {}
    async for records in reader.between(starts, ends):
        for record in records:
            if record.value is None:
                newest.pop(record.key, None)
            elif not record.key.startswith(b"\0"):  # positions, releases and barriers
                newest[record.key] = record.value
    return map(decode_waiting, newest.values())


def count_waiting(commands: Iterable[WaitingCommand]) -> Waiting:
    """Return the waiting commands in numbers."""
    listed = sorted(commands, key=lambda waiting: waiting.queued_at)
    users = [waiting.command.user_id for waiting in listed if isinstance(waiting.command, CreateOrder)]
    return Waiting(len(listed), listed[0].queued_at if listed else None, tuple(dict.fromkeys(users)))


async def _reason(settings: Settings, user_id: str) -> str:
    api = user_api(settings)
    try:
        return f" About {user_id}, it answers now: {await api.ask(user_id)}."
    except UserServiceUnavailable as error:
        return f" About {user_id}, it gives no answer: {error}."
    finally:
        await api.close()
