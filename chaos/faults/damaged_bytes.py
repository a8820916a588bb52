"""Bytes that were commands once: cut, flipped, doubled, spliced, from a seed.

`python -m chaos.faults.damaged_bytes [COUNT [SEED]]` decodes a million of them by default. Each must be a command
or raise DecodeError.
"""

import random
import sys
import time
from collections import Counter
from collections.abc import Iterator

from order_service.errors import DecodeError
from order_service.wire.avro import encode_command as encode_avro
from order_service.wire.commands import decode_command
from order_service.wire.commands import encode_json_command as encode_json
from tests.support import samples

MARK = "payload-mark-7f3a"
"""Stands in every message, so that a log that repeats a payload is found out."""
WHOLE = [
    encode(samples.but(command, correlation_id=MARK))
    for command in samples.commands
    for encode in (encode_json, encode_avro)
]


def mutated(seed: object) -> Iterator[bytes]:
    """Make damaged messages for ever."""
    chance = random.Random(f"mutated {seed}")
    while True:
        data = bytearray(chance.choice(WHOLE))
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            data = _damaged(data, chance)
        yield bytes(data)


def _damaged(data: bytearray, chance: random.Random) -> bytearray:
    start, end = sorted((chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)))
    match chance.randrange(7):
        case 0:
            return data[:start]
        case 1:
            return data[:start] + data[end:]
        case 2:
            return data[:end] + data[start:]
        case 3:
            return data[:start] + chance.randbytes(chance.randint(1, 8)) + data[start:]
        case 4:
            other = chance.choice(WHOLE)
            return data[:start] + other[chance.randrange(len(other)) :]
        case 5 if start < len(data):
            data[start] = chance.choice((0, 1, 2, 0x7F, 0x80, 0xFF, ord('"'), ord("{"), ord("9")))
        case _ if start < len(data):
            data[start] ^= 1 << chance.randrange(8)
    return data


def main(count: int = 1_000_000, seed: int = 1) -> None:
    """Decode so many; any other error than DecodeError ends it, with the bytes that made it."""
    results: Counter[str] = Counter()
    began_at = time.monotonic()
    for number, data in zip(range(count), mutated(seed), strict=False):
        try:
            results[type(decode_command(data)).__name__] += 1
        except DecodeError as error:
            results[error.reason] += 1
        except BaseException:
            sys.stderr.write(f"message {number} of seed {seed}: {data.hex()}\n")
            raise
    for name, times in results.most_common():
        sys.stdout.write(f"{times:>9,}  {name}\n")
    sys.stdout.write(
        f"{count:,} messages of seed {seed} in {time.monotonic() - began_at:.0f} s: a command or a DecodeError\n"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
