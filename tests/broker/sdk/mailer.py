"""A subscriber that is killed: `python -m tests.broker.sdk.mailer GROUP FILE VERSION`.

It mails into FILE, and dies after VERSION. It dies between its work and the commit of it.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from order_service.sdk import OrderEvents


async def main(group: str, file: Path, last: int) -> None:
    """Write down each event, then be killed at one."""
    async with OrderEvents.effects(group=group) as events:
        write(file, "opened")
        async for happened in events:
            write(file, str(happened.event.version))
            if happened.event.version == last:
                os.kill(os.getpid(), signal.SIGKILL)


def write(file: Path, line: str) -> None:
    """Write a line; it stays, whatever happens next."""
    with file.open("a") as mails:
        mails.write(line + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
