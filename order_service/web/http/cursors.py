"""Opaque texts: where a list of orders or the stream of all events goes on, and which copy of a command was sent."""

import base64
import binascii
import re
from typing import Final

import msgspec

from order_service.views.queries import Cursor, Offsets
from order_service.web.http.problems import Fault, Problem, Trouble

_cursor: Final = msgspec.json.Decoder(Cursor)
_PLACE: Final = re.compile(r"(\d{1,6})-(\d{1,18})\Z", re.ASCII)
PLACES_MAX: Final = 10_000


def write_cursor(cursor: Cursor) -> str:
    """Write the end of a page."""
    return base64.urlsafe_b64encode(msgspec.json.encode(cursor)).decode().rstrip("=")


def read_cursor(text: str) -> Cursor:
    """Read the end of a page; Problem if it is none of ours."""
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        return _cursor.decode(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (msgspec.MsgspecError, binascii.Error, ValueError):
        raise Problem(Trouble.INVALID_PARAMETER, errors=[Fault("/cursor", "must be `next` of a page")]) from None


def write_places(places: Offsets) -> str:
    """Write how far a reader of all events is: `<partition>-<next offset>` of each partition, with dots between."""
    return ".".join(f"{partition}-{offset}" for (_, partition), offset in sorted(places.items()))


def read_places(text: str, topic: str) -> Offsets | None:
    """Read how far a reader is; None if it is none of ours."""
    found = [_PLACE.match(one) for one in text.split(".")[:PLACES_MAX]]
    places = {(topic, int(one[1])): int(one[2]) for one in found if one is not None}
    return places if len(places) == len(found) else None


def write_copy_id(digest: bytes, offset: int) -> str:
    """Return the id of a copy of a command: its offset in the partition of its order, and its digest."""
    return f"{offset}-{digest.hex()}"


def read_copy_id(text: str) -> tuple[bytes, int]:
    """Return digest and offset of a well-formed id of a copy."""
    offset, _, digest = text.partition("-")
    return bytes.fromhex(digest), int(offset)
