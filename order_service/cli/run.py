"""Runs what a command does, and turns an error of a dependency that is away into an exit status."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import typer

from order_service.errors import Unavailable

UNAVAILABLE = 4
"""The exit status if Kafka or the schema registry is away, so nothing is known about the topics."""
_T = TypeVar("_T")


def run_or_exit(work: Coroutine[Any, Any, _T], note: str = "") -> _T:
    """Return the result of a coroutine. If Kafka or another service is away, print why with a note, and exit with 4."""
    try:
        return asyncio.run(work)
    except Unavailable as error:
        typer.echo(f"order-service: {error}{note}", err=True)
        raise typer.Exit(UNAVAILABLE) from error
