"""The failure of a task, so that no task ends unnoticed."""

import asyncio
from typing import Any


def failure_of(task: "asyncio.Task[Any]", *, is_stopping: bool) -> BaseException | None:
    """Return why a task has failed, or None if it is done or was cancelled because its owner stops.

    A task also ends as cancelled if a library lets a CancelledError out. Its work would then stop without a report.
    """
    if not task.cancelled():
        return task.exception()
    return None if is_stopping else RuntimeError(f"the task {task.get_name()} was cancelled from within")
