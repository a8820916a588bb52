"""`order-service rebuild` that kills itself: `python -m tests.support.rebuilding STEP COUNT ARGUMENTS…`."""

import asyncio
import sys
from functools import partial

from order_service.cli import app
from order_service.operations.rebuild import rebuild
from tests.support.worker import Failpoint

if __name__ == "__main__":
    step, count, *arguments = sys.argv[1:]
    rebuild.rebuild = partial(
        rebuild.rebuild, failpoint=Failpoint(step, count, "SIGKILL"), sleep=partial(asyncio.sleep, 0)
    )
    app(arguments)
