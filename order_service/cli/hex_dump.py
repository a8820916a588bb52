"""Bytes as hexadecimal digits and printable ASCII, 16 a line, as `hexdump -C` prints them."""

from collections.abc import Iterator
from typing import Final

WIDTH: Final = 16


def hex_lines(data: bytes, limit: int) -> Iterator[str]:
    """Yield the lines of up to `limit` bytes, and how many more there are."""
    for start in range(0, min(len(data), limit), WIDTH):
        row = data[start : min(start + WIDTH, limit)]
        digits = row.hex(" ")
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        yield f"{start:08x}  {digits:<{3 * WIDTH - 1}}  |{text}|"
    if len(data) > limit:
        yield f"{len(data) - limit} bytes more: see --bytes"
