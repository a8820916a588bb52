"""Options that several commands share, and the parser of times."""

import getpass
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from order_service.domain.validation import is_foreign_id

WAIT_MAX_S: Final = 86_400
"""The longest wait of a command for outcomes."""

REASON_MAX: Final = 1_000
"""The most characters of the reason of an operation, which is kept for ever."""


def time_from(text: str) -> datetime:
    """Parse a time with its offset from UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter("a time is written as 2026-11-24T12:00:00Z") from error
    if moment.tzinfo is None:
        raise typer.BadParameter("a time needs an offset from UTC, or Z")
    return moment


def operator_of(actor: str, reason: str, option: str, *, needs_reason: bool = True) -> str:
    """Return the actor of an operation, by default the login name. Raises BadParameter for an actor or a reason.

    `option` is the name of the option with the reason, which may be empty unless the operation `needs_reason`.
    """
    problem = ""
    if (needs_reason or reason) and not reason.strip():
        problem = "it must not be empty: it is recorded"
    elif len(reason) > REASON_MAX:
        problem = f"it must have at most {REASON_MAX:,} characters: it is recorded"
    if problem:
        raise typer.BadParameter(problem, param_hint=option)
    actor = actor or f"user:{login_name()}"
    kind, _, actor_id = actor.partition(":")
    if kind not in {"user", "service"} or not is_foreign_id(actor_id):
        raise typer.BadParameter("expected user:<id> or service:<id>", param_hint="--actor")
    return actor


def login_name() -> str:
    """Return the name of the user who runs this process, or an empty text in a container without one."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError before Python 3.13
        return ""


def _time_option(flag: str, text: str) -> Any:
    return typer.Option(flag, parser=time_from, metavar="TIME", help=text)


Actor = Annotated[
    str, typer.Option(help="Who does it: user:<id> or service:<id>; it is recorded.", show_default="the login name")
]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why; it is recorded. Required with --yes.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
At = Annotated[
    datetime | None, _time_option("--at", "Show it as of this time: 2026-11-24T12:00:00Z, or with an offset.")
]
CreatedFrom = Annotated[datetime | None, _time_option("--from", "Created at this time or later.")]
CreatedTo = Annotated[datetime | None, _time_option("--to", "Created before this time.")]
