"""Numbers at the bounds of 64 bits and beyond them, as Avro encodes numbers."""


def longs(number):
    """Encode a number of any size as Avro encodes 64 bits."""
    zigzag, encoded = (number << 1 if number >= 0 else (-number << 1) - 1), bytearray()
    while zigzag > 0x7F:
        encoded.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes([*encoded, zigzag])


EXTREMES = [
    *(longs(number) for number in (-1, -2, 2, 3, 2**31, 2**60, 2**63 - 1, -(2**60), -(2**63), 2**64, 2**70)),
    *(b"\x80" * length + b"\0" for length in (1, 9, 10, 70)),
    *(b"\xff" * length for length in (1, 10)),
]
