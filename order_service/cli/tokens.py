"""The command `token check`."""

import asyncio
import sys
from typing import Annotated, Final

import typer
from msgspec import to_builtins

from order_service.cli import show
from order_service.cli.environment import read_settings

READ_MAX: Final = 64 * 1024
"""How much of stdin is read; no server accepts a longer token."""

tokens = typer.Typer(no_args_is_help=True, help="Explain how an access token is understood.")


@tokens.callback()
def _tokens() -> None:
    """Make `check` a command of its own: Typer would merge a single one into its group."""


@tokens.command("check")
def check(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """Read a token from stdin, and check it against the settings ORDERS_JWT_…; the token is not printed.

    Use the settings of `web`. The keys come from ORDERS_JWT_KEY_FILE, or are fetched from ORDERS_JWT_JWKS_URL. Exits
    with 0 if `web` would accept the token, otherwise with 1.
    """
    settings = read_settings()
    from order_service.web.access.token_check import explain  # noqa: PLC0415 - other commands need no cryptography

    explanation = asyncio.run(explain(settings, _read_token()))
    caller = explanation.caller
    scopes = [] if caller is None else sorted(caller.scopes)
    if as_json:
        show.json_line(
            {
                "ok": caller is not None,
                "actor": None if caller is None else caller.actor,
                "scopes": scopes,
                "checks": to_builtins(explanation.checks),
            }
        )
    else:
        rows = [(check.name, "passed" if check.passed else "failed", check.text) for check in explanation.checks]
        styles = ["green" if check.passed else "red" for check in explanation.checks]
        show.table(("check", "result", "token and settings"), rows, styles)
        if caller is None:
            typer.echo("\nrefused")
        else:
            typer.echo(f"\naccepted: actor {show.safe(caller.actor)}, scopes: {', '.join(scopes) or 'none'}")
    raise typer.Exit(0 if caller is not None else 1)


def _read_token() -> str:
    """Return the token from stdin, with or without the scheme of an `Authorization` header."""
    if sys.stdin.isatty():
        typer.echo("Paste the token, then press Enter and Ctrl-D.", err=True)
    text = sys.stdin.buffer.read(READ_MAX).decode("latin-1").strip()
    scheme, _, token = text.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else text
