"""The User Service: a stub of it, and a check of one user."""

import asyncio
from typing import Annotated

import msgspec
import typer

from order_service.cli import show
from order_service.cli.environment import configure_log, read_settings
from order_service.cli.options import AsJson
from order_service.domain.decision import UserCheck
from order_service.errors import cannot_listen
from order_service.operations.user_check import Explanation, check_user
from order_service.runtime.signals import run_until_signal

users = typer.Typer(invoke_without_command=True)


@users.callback()
def run_stub(
    context: typer.Context,
    latency_ms: Annotated[int, typer.Option(min=0, help="The latency of each answer.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Run a stub of the User Service, or check a user at the real one.

    To the stub, any id is an active user, except unknown-1, inactive-1, slow-500-1 and flaky-1.
    """
    if context.invoked_subcommand is not None:
        return
    settings = read_settings()
    configure_log(settings, "users")
    from order_service.users.stub import serve_stub  # noqa: PLC0415 - other commands need no HTTP server

    def ready(url: str) -> None:
        if as_json:
            show.json_line({"users": url})
        else:
            typer.echo(f"the User Service stub answers at {url}")

    try:
        run_until_signal(serve_stub(settings.host, settings.users_port, latency_ms=latency_ms, ready=ready))
    except OSError as error:
        raise cannot_listen(settings.host, settings.users_port, "ORDERS_USERS_PORT", error) from error


@users.command("check")
def check(
    user_id: Annotated[str, typer.Argument(metavar="ID", help="The user's id.")], as_json: AsJson = False
) -> None:
    """Ask the User Service at USER_SERVICE_URL once about a user, as a worker does, and explain the answer.

    Exits with 0 if the user is active, and with 1 otherwise.
    """
    explanation = asyncio.run(check_user(read_settings(), user_id))
    if as_json:
        show.json_line(msgspec.to_builtins(explanation))
    else:
        show.table(("what", "answer"), _rows(explanation))
    raise typer.Exit(0 if explanation.check == UserCheck.ACTIVE else 1)


def _rows(explanation: Explanation) -> list[show.Row]:
    took = "" if explanation.took_ms is None else f", after {explanation.took_ms} ms"
    rows = [
        ("request", explanation.request),
        ("credential", explanation.credential),
        ("response", None if explanation.status is None else f"status {explanation.status}{took}"),
        ("field", None if explanation.value is None else f"{explanation.field} is {explanation.value}"),
        ("fields", ", ".join(explanation.fields)),
        ("result", explanation.check),
        ("reason", explanation.reason),
        ("a create", explanation.create),
        ("what to do", explanation.fix),
    ]
    return [row for row in rows if row[1]]
