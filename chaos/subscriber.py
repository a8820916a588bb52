"""A subscriber of the SDK: `python -m chaos.subscriber GROUP FILE` writes down each event that it is given.

A line is `partition offset order_id version`, written before the next event is asked for; `OPEN` is the first.
"""

import asyncio
import sys
from pathlib import Path
from typing import Final, TextIO

from order_service.errors import KafkaAwayError
from order_service.sdk import OrderEvents

OPEN: Final = "open"
AGAIN_S: Final = 0.5


async def subscribe(group: str, output: TextIO) -> None:
    """Write down events for ever; opens the stream again while Kafka is away."""
    while True:
        try:
            async with OrderEvents.effects(group=group) as events:
                _write(output, OPEN)
                async for happened in events:
                    event = happened.event
                    _write(output, f"{happened.partition} {happened.offset} {event.order_id} {event.version}")
        except KafkaAwayError as error:
            sys.stderr.write(f"Kafka is away: {error}\n")
            await asyncio.sleep(AGAIN_S)


def _write(output: TextIO, line: str) -> None:
    output.write(line + "\n")
    output.flush()


def main() -> None:
    """Subscribe with the settings of the environment."""
    group, path = sys.argv[1:]
    with Path(path).open("a") as output:
        asyncio.run(subscribe(group, output))


if __name__ == "__main__":
    main()
