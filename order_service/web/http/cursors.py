"""Opaque texts: the cursor of an order list, the position in the stream of all events, the id of a command's copy."""

import base64
import binascii
import re
from typing import Final

import msgspec

from order_service.views.queries import Cursor, Offsets
from order_service.web.http.problems import Fault, Problem, Trouble

_cursor: Final = msgspec.json.Decoder(Cursor)
_PARTITION_OFFSET: Final = re.compile(r"(\d{1,6})-(\d{1,18})\Z", re.ASCII)
PARTITIONS_MAX: Final = 10_000


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


def write_copy_id(digest: bytes, offset: int) -> str:
    """Return the id of a command's copy: its offset in the partition of its order, and its digest."""
    return f"{offset}-{digest.hex()}"


def read_copy_id(text: str) -> tuple[bytes, int]:
    """Return the digest and the offset of a well-formed copy id."""
    offset, _, digest = text.partition("-")
    return bytes.fromhex(digest), int(offset)
