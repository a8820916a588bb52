"""What a failing disk, a power failure or an operator does to the tables on disk of a worker that does not run."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

TORN_BYTES: Final = 5
FLIPPED_AT: Final = 50
"""Within the first block of data of each file: neither its index nor its footer."""


def damage(directory: Path, how: str) -> int:
    """Damage the tables in the directory of a worker in one of the ways of `DAMAGES`. Return how many have it."""
    stores = sorted(path.parent for path in directory.glob("*/*/CURRENT"))
    return DAMAGES[how](stores)


def _tear(stores: list[Path]) -> int:
    """Cut off the end of what was written last."""
    logs = [path for store in stores for path in store.glob("*.log") if path.stat().st_size > TORN_BYTES]
    for path in logs:
        os.truncate(path, path.stat().st_size - TORN_BYTES)
    return len({path.parent for path in logs})


def _flip(stores: list[Path]) -> int:
    """Change a byte of each file of orders."""
    files = [path for store in stores for path in store.glob("*.sst")]
    for path in files:
        data = bytearray(path.read_bytes())
        data[FLIPPED_AT] ^= 0xFF
        path.write_bytes(data)
    return len({path.parent for path in files})


def _remove(stores: list[Path]) -> int:
    """Remove the list of files."""
    for store in stores:
        for path in store.glob("MANIFEST-*"):
            path.unlink()
    return len(stores)


def _exchange(stores: list[Path]) -> int:
    """Put the table of the next partition in the place of each."""
    if len(stores) < 2:
        return 0
    moved = [store.rename(store.with_name(f"moved-{store.name}")) for store in stores]
    for path, store in zip(moved, [*stores[1:], stores[0]], strict=True):
        path.rename(store)
    return len(stores)


DAMAGES: Final[Mapping[str, Callable[[list[Path]], int]]] = {
    "torn": _tear,
    "flipped": _flip,
    "missing": _remove,
    "exchanged": _exchange,
}
