"""A task that ends as none should, and the wait until that is told."""

import asyncio


async def cancelled_from_within():
    """A library that lets a CancelledError out would leave a partition neither claimed nor parked."""
    raise asyncio.CancelledError


async def until_told(ended):
    async with asyncio.timeout(10):
        while not ended:  # noqa: ASYNC110, what is looked at has no event
            await asyncio.sleep(0)
