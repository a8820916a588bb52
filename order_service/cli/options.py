"""Options that several commands have, and how a time is read."""

from datetime import datetime
from typing import Annotated

import typer


def time_from(text: str) -> datetime:
    """Read a time with its offset from UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter("a time is written as 2026-11-24T12:00:00Z") from error
    if moment.tzinfo is None:
        raise typer.BadParameter("a time needs its offset from UTC, or Z")
    return moment


AsJson = Annotated[bool, typer.Option("--json", help="Print for programs: one JSON object per line.")]
At = Annotated[
    datetime | None,
    typer.Option(
        "--at", parser=time_from, metavar="TIME", help="As it was then: 2026-11-24T12:00:00Z, or with an offset."
    ),
]
CreatedFrom = Annotated[
    datetime | None, typer.Option("--from", parser=time_from, metavar="TIME", help="Created then or later.")
]
CreatedTo = Annotated[datetime | None, typer.Option("--to", parser=time_from, metavar="TIME", help="Created before.")]
