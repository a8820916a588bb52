"""What an operator can search for, and which ids of a command, an event or a rejection are equal to it. Pure."""

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Final

from msgspec import Struct

from order_service.domain import validation
from order_service.domain.identity import keyed_id
from order_service.domain.messages import (
    MAX_FOREIGN_ID,
    Command,
    Event,
    OrderPaid,
    OrderShipped,
    PayOrder,
    Rejection,
    ShipOrder,
)
from order_service.wire.commands import partition_of

MAX_CHARACTERS: Final = MAX_FOREIGN_ID
"""The longest payment id and the longest tracking number; other ids are shorter."""
MUST_BE: Final = f"must be an id: 1 to {MAX_CHARACTERS} characters of Unicode"
"""What is wrong with a text that cannot be searched for."""

_is_key: Final = re.compile(r"[!-~]{1,200}\Z").match
_is_command_offset: Final = re.compile(r"([0-9]{1,9}):([0-9]{1,18})\Z").match
_is_derived: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-5").match
"""Matches the beginning of every id that is derived from an idempotency key: a UUID of version 5."""


class IdKind(StrEnum):
    """What a searched text can be."""

    ORDER_ID = "order_id"
    COMMAND_ID = "command_id"
    PAYMENT_ID = "payment_id"
    TRACKING_NUMBER = "tracking_number"
    IDEMPOTENCY_KEY = "idempotency_key"
    COMMAND_OFFSET = "command_offset"
    """The partition and the offset of a record of the commands topic, as `partition:offset`."""


class Search(Struct, frozen=True):
    """A text that is searched for; `command` is the partition and offset that it can be, or None."""

    text: str
    command: tuple[int, int] | None

    @property
    def order_key(self) -> bytes | None:
        """The key of the records of the order that has this id, or None if the text cannot be the id of an order."""
        return self.text.encode() if validation.is_id(self.text) else None

    def partition(self, partition_count: int) -> int | None:
        """Return the partition to search first: that of the order or of the command. None if it can be neither."""
        if self.order_key is not None:
            return partition_of(self.order_key, partition_count)
        if self.command is not None and self.command[0] < partition_count:
            return self.command[0]
        return None

    def kinds_in(self, message: Command | Event | Rejection) -> Iterator[IdKind]:
        """Yield as what the text is contained in a message."""
        content = message.fact if type(message) is Event else message
        if message.order_id == self.text:
            yield IdKind.ORDER_ID
        if message.command_id == self.text:
            yield IdKind.COMMAND_ID
        if isinstance(content, PayOrder | OrderPaid) and content.payment_id == self.text:
            yield IdKind.PAYMENT_ID
        if isinstance(content, ShipOrder | OrderShipped) and content.tracking_number == self.text:
            yield IdKind.TRACKING_NUMBER
        if self._is_key_of(message.actor, message.command_id):
            yield IdKind.IDEMPOTENCY_KEY

    def _is_key_of(self, actor: str, command_id: str) -> bool:
        if not (_is_derived(command_id) and _is_key(self.text)):
            return False
        return keyed_id(actor, "command", self.text) == command_id


def search_for(text: str) -> Search | None:
    """Return the search for a text, or None if it is too long, empty or not Unicode: see `MUST_BE`."""
    if not 1 <= len(text) <= MAX_CHARACTERS or any("\ud800" <= char <= "\udfff" for char in text):
        return None
    match = _is_command_offset(text)
    return Search(text, None if match is None else (int(match[1]), int(match[2])))
