"""Why a task has failed: no task ends without a sign."""

import asyncio
from typing import Any


def failure_of(task: "asyncio.Task[Any]", *, is_stopping: bool) -> BaseException | None:
    """Return why a task has failed; None if it is done, or was cancelled because its owner stops.

    A task also ends as cancelled where a library lets a CancelledError out. Its work would stop then, and nothing would
    report it.
    """
    if not task.cancelled():
        return task.exception()
    return None if is_stopping else RuntimeError(f"the task {task.get_name()} was cancelled from within")
