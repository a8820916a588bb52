"""Work in processes of its own, that end with the block that started them."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

Work = Callable[..., None]
"""The first argument is its end of a pipe; the others must survive being sent to another process."""

_SPAWN = multiprocessing.get_context("spawn")


@contextmanager
def running(work: Work, *arguments: Any) -> Iterator["Connection[Any, Any]"]:
    """Run `work` beside the block and yield our end of its pipe; whatever it does then, it ends with the block."""
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=work, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.kill()
        process.join()
        ours.close()
