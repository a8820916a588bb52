"""Folders that take long to make: made once, and kept beside Kafka's jars."""

import fcntl
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from order_service.local.kafka import cache_dir


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, which `make` fills if it does not exist. It appears only when it is complete.

    Of two processes at once one makes it, and the other waits.
    """
    folder = cache_dir() / name
    cache_dir().mkdir(parents=True, exist_ok=True)
    with Path(cache_dir(), f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with TemporaryDirectory(dir=cache_dir(), prefix=f".{name}-") as unfinished:
                made = Path(unfinished, "made")
                made.mkdir()
                make(made)
                made.rename(folder)
    return folder
