"""Options that several commands share, and the parser of times."""

import getpass
import re
from datetime import datetime
from typing import Annotated, Any, Final

import typer

ACTOR: Final = re.compile(r"(user|service):.+")

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


def require_reason(text: str, option: str) -> None:
    """Raise BadParameter for a text that cannot be recorded as the reason of an operation."""
    problem = ""
    if not text.strip():
        problem = "it must not be empty: it is recorded"
    elif len(text) > REASON_MAX:
        problem = f"it must have at most {REASON_MAX:,} characters: it is recorded"
    elif any("\ud800" <= char <= "\udfff" for char in text):  # from bytes that are not UTF-8
        problem = "it must be UTF-8: it is recorded"
    if problem:
        raise typer.BadParameter(problem, param_hint=option)


def operator_of(actor: str, reason: str, *, yes: bool) -> str:
    """Return the actor of an operation, by default the login name. Raises BadParameter for an actor or a reason."""
    if yes and not reason.strip():
        raise typer.BadParameter("--yes needs --reason: it is recorded")
    if reason:
        require_reason(reason, "--reason")
    actor = actor or f"user:{login_name()}"
    if not ACTOR.fullmatch(actor):
        raise typer.BadParameter("an actor is written as user:NAME or service:NAME", param_hint="--actor")
    return actor


def login_name() -> str:
    """Return the name of the user who runs this process, or an empty text in a container without one."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError before Python 3.13
        return ""


def _time_option(flag: str, text: str) -> Any:
    return typer.Option(flag, parser=time_from, metavar="TIME", help=text)


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
At = Annotated[
    datetime | None, _time_option("--at", "Show it as of this time: 2026-11-24T12:00:00Z, or with an offset.")
]
CreatedFrom = Annotated[datetime | None, _time_option("--from", "Created at this time or later.")]
CreatedTo = Annotated[datetime | None, _time_option("--to", "Created before this time.")]
