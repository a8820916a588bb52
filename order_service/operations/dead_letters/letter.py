"""A dead letter as an operator sees it: its origin, its reason, and its command if that can be decoded now."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from aiokafka.structs import ConsumerRecord
from msgspec import Struct, structs

from order_service.domain.messages import Command
from order_service.domain.validation import is_id
from order_service.errors import DecodeError
from order_service.wire.commands import decode_command
from order_service.wire.dead_letters import DeadLetterReason
from order_service.wire.headers import Headers, ReadHeaders

LetterId = tuple[int, int]
"""The partition and the offset of a dead letter in its topic."""

_ORIGINAL: Final = "orig_"


class DeadLetter(Struct, frozen=True):
    """A record of the dead-letter topic. `command` is the error if it still cannot be decoded.

    `origin` is the topic, partition and offset of the original record; `sent_ms` is when that arrived.
    A scan raises it to that of earlier dead letters of the partition, because the clock of a broker may step back.
    """

    id: LetterId
    at: datetime
    key: bytes | None
    value: bytes | None
    headers: ReadHeaders
    reason: str
    detail: str
    origin: tuple[str, str, str]
    sent_ms: int
    command: Command | DecodeError

    @property
    def order_id(self) -> str:
        """The order of the command, else the key if it is a valid id, else an empty text."""
        if not isinstance(self.command, DecodeError):
            return self.command.order_id
        key = (self.key or b"").decode(errors="replace")
        return key if is_id(key) else ""

    def without_bytes(self) -> "DeadLetter":
        """Return it without value and headers, which can have megabytes."""
        return structs.replace(self, value=None, headers=())

    @property
    def original_headers(self) -> Headers:
        """The headers of the original record, such as its `traceparent`."""
        return [
            (name.removeprefix(_ORIGINAL), value or b"") for name, value in self.headers if name.startswith(_ORIGINAL)
        ]


def name_of(letter_id: LetterId) -> str:
    """Return an id as it is printed and typed: `PARTITION:OFFSET`."""
    return f"{letter_id[0]}:{letter_id[1]}"


def letter_of(record: ConsumerRecord) -> DeadLetter:
    """Return the dead letter in a record. It is decoded with the schemas that are known now."""
    texts = {name: (value or b"").decode(errors="backslashreplace") for name, value in record.headers}
    return DeadLetter(
        id=(record.partition, record.offset),
        at=datetime.fromtimestamp(record.timestamp / 1000, UTC),
        key=record.key,
        value=record.value,
        headers=record.headers,
        reason=texts.get("dl_reason", ""),
        detail=texts.get("dl_detail", ""),
        origin=(texts.get("dl_topic", ""), texts.get("dl_partition", ""), texts.get("dl_offset", "")),
        sent_ms=sent_ms_of(record),
        command=_command_of(record.key, record.value),
    )


def sent_ms_of(record: ConsumerRecord) -> int:
    """Return when the original record of a dead letter arrived, in milliseconds."""
    text = (dict(record.headers).get("dl_timestamp") or b"").decode(errors="backslashreplace")
    return int(text) if text.isdecimal() and len(text) < 19 else int(record.timestamp)


def _command_of(key: bytes | None, value: bytes | None) -> Command | DecodeError:
    """Return the command of a record, also without a key or from a wrong partition: its order says where it belongs.

    A key that differs from the order is not corrected, because either of them may be wrong.
    """
    try:
        command = decode_command(value)
    except DecodeError as error:
        return error
    if key is not None and key != command.order_id.encode():
        return DecodeError(DeadLetterReason.KEY_MISMATCH, "the record's key differs from the command's order_id")
    return command


class Selection(Struct, frozen=True, kw_only=True):
    """The dead letters that an operator means: these ids, or those that match all filters."""

    ids: frozenset[LetterId] = frozenset()
    reasons: frozenset[str] = frozenset()
    order_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def has(self, letter: DeadLetter) -> bool:
        """Return whether a dead letter is selected. `since` is included, `until` is not."""
        return (
            (not self.ids or letter.id in self.ids)
            and (not self.reasons or letter.reason in self.reasons)
            and (self.order_id is None or letter.order_id == self.order_id)
            and (self.since is None or letter.at >= self.since)
            and (self.until is None or letter.at < self.until)
        )


def in_sequence(letters: Iterable[DeadLetter]) -> list[DeadLetter]:
    """Return dead letters of a scan in the sequence in which their commands were sent.

    That is the offset within a partition, and the time across partitions: the commands of an order can be in several
    if a producer has chosen wrong ones.
    """
    return sorted(letters, key=lambda letter: (letter.sent_ms, letter.id))
