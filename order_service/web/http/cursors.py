"""Opaque texts: the cursor of an order list, the position in a stream of all events, the id of a command's copy.

A position is the next offset of each partition. Where that is too long, it is a checkpoint that the reader has passed
in every partition, and the next offsets of as many partitions beyond it as there is room for.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from order_service.views.checkpoints import Checkpoint
from order_service.views.queries import Cursor, Offsets
from order_service.web.http.problems import Fault, Problem, Trouble

_cursor: Final = msgspec.json.Decoder(Cursor)
_PARTITION_OFFSET: Final = re.compile(r"(\d{1,6})-(\d{1,18})\Z", re.ASCII)
_CHECKPOINT: Final = re.compile(r"c([0-9a-f]{16})\.([0-9a-f]{16})((?:\.[0-9-]+)*)\Z", re.ASCII)
PARTITIONS_MAX: Final = 10_000


class CheckpointPosition(Struct, frozen=True):
    """A checkpoint, its anchor, and the next offsets of partitions in which the reader is further."""

    checkpoint_id: str
    anchor_id: str
    beyond: Offsets


def write_cursor(cursor: Cursor) -> str:
    """Return the text of a cursor: the end of a page of orders."""
    return base64.urlsafe_b64encode(msgspec.json.encode(cursor)).decode().rstrip("=")


def read_cursor(text: str) -> Cursor:
    """Return the cursor that `text` holds. Raises Problem if this service did not write it."""
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        return _cursor.decode(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (msgspec.MsgspecError, binascii.Error, ValueError):
        raise Problem(Trouble.INVALID_PARAMETER, errors=[Fault("/cursor", "must be the `next` of a page")]) from None


def write_offsets(offsets: Offsets) -> str:
    """Return the text of a position in all events: `<partition>-<next offset>` of each partition, joined by dots."""
    return ".".join(f"{partition}-{offset}" for (_, partition), offset in sorted(offsets.items()))


def read_offsets(text: str, topic: str) -> Offsets | None:
    """Return the next offsets that `text` holds, or None if this service did not write it."""
    matches = [_PARTITION_OFFSET.match(part) for part in text.split(".")[:PARTITIONS_MAX]]
    offsets = {(topic, int(match[1])): int(match[2]) for match in matches if match is not None}
    return offsets if len(offsets) == len(matches) else None


def write_checkpoint_position(checkpoint: Checkpoint, beyond: Mapping[int, int], most_bytes: int) -> str:
    """Return the text of a checkpoint and of next offsets `beyond` it, those that fit.

    A reader that resumes there gets the events of the other partitions again.
    """
    text = f"c{checkpoint.checkpoint_id}.{checkpoint.anchor_id}"
    for partition, offset in beyond.items():
        part = f".{partition}-{offset}"
        if len(text) + len(part) > most_bytes:
            break
        text += part
    return text


def read_checkpoint_position(text: str, topic: str) -> CheckpointPosition | None:
    """Return the checkpoint and the next offsets that `text` holds, or None if it is no such text."""
    match = _CHECKPOINT.match(text)
    beyond = read_offsets(match[3][1:], topic) if match is not None and match[3] else {}
    return None if match is None or beyond is None else CheckpointPosition(match[1], match[2], beyond)


def write_copy_id(digest: bytes, offset: int) -> str:
    """Return the id of a command's copy: its offset in the partition of its order, and its digest."""
    return f"{offset}-{digest.hex()}"


def read_copy_id(text: str) -> tuple[bytes, int]:
    """Return the digest and the offset of a well-formed copy id."""
    offset, _, digest = text.partition("-")
    return bytes.fromhex(digest), int(offset)
