"""Options that several commands share, and the parser of times."""

from datetime import datetime
from typing import Annotated

import typer


def time_from(text: str) -> datetime:
    """Parse a time with its offset from UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter("a time is written as 2026-11-24T12:00:00Z") from error
    if moment.tzinfo is None:
        raise typer.BadParameter("a time needs an offset from UTC, or Z")
    return moment


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
At = Annotated[
    datetime | None,
    typer.Option(
        "--at",
        parser=time_from,
        metavar="TIME",
        help="Show it as of this time: 2026-11-24T12:00:00Z, or with an offset.",
    ),
]
CreatedFrom = Annotated[
    datetime | None, typer.Option("--from", parser=time_from, metavar="TIME", help="Created at this time or later.")
]
CreatedTo = Annotated[
    datetime | None, typer.Option("--to", parser=time_from, metavar="TIME", help="Created before this time.")
]
