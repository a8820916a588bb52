"""The command line. Exit codes: 0 success, 1 refused or failed with one line, 2 usage error; some have more."""

import logging
import sys
from typing import Annotated, Any, Final

import structlog
import typer
from typer.core import TyperGroup

from order_service import __version__
from order_service.cli import (
    asking,
    dead_letters,
    doctor,
    lanes,
    ordering,
    rebuild,
    running,
    schemas,
    tokens,
    topics,
    users,
    verify,
    views,
    watching,
    why,
)
from order_service.errors import OrderServiceError
from order_service.runtime import logs

OWN_CODES = frozenset({"up", "worker", "topics", "verify", "rebuild", "lanes", "views", "dead-letters", "why"})
"""Commands with exit codes of their own, by which an operator can tell failures apart."""


log = structlog.get_logger()

SUMMARY_MAX: Final = 500
"""Characters of a summary in the list of commands: more than any has."""


class Commands(TyperGroup):
    """A command group that ends a known error with one line, without a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. Those that are not UTF-8 are a usage error: no text in a message has such bytes."""
        if any("\ud800" <= char <= "\udfff" for argument in args for char in argument):
            raise typer.BadParameter("the arguments must be UTF-8", ctx=ctx)
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command of `ctx`; exit with one line on a known error."""
        try:
            return super().invoke(ctx)
        except OrderServiceError as error:
            own = ctx.invoked_subcommand in OWN_CODES
            code = getattr(error, "exit_code", 1) if own else 1
            _report(str(error), code)
            raise typer.Exit(code) from error
        except (FileNotFoundError, PermissionError) as error:
            _report(f"{error.strerror}: {error.filename}", 1)
            raise typer.Exit(1) from error

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the whole summary of each command, wrapped: click would cut it to one line."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, command.get_short_help_str(limit=SUMMARY_MAX)) for name, command in commands if command]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _report(reason: str, code: int) -> None:
    """Write why a command ends: a line for people, or one of the log where a program reads it."""
    if logs.has_standard_names():
        log.error("The process ends.", exit_code=code, reason=reason)
    else:
        typer.echo(f"order-service: {reason}", err=True)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A Kafka-native order service: the commands of an order are decided in log order, each exactly once.",
)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"order-service {__version__}")
        raise typer.Exit


@app.callback()
def _configure_logs(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    logs.configure(level=logging.WARNING)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # its errors end in our one line


app.command("up", rich_help_panel="Run")(running.up)
app.command("worker", rich_help_panel="Run")(running.worker)
app.command("projector", rich_help_panel="Run")(running.projector)
app.command("web", rich_help_panel="Run")(running.web)
app.add_typer(users.users, name="users", rich_help_panel="Run")
app.add_typer(topics.topics, name="topics", rich_help_panel="Run")
app.add_typer(schemas.schemas, name="schemas", rich_help_panel="Run")
app.add_typer(views.views, name="views", rich_help_panel="Run")
app.add_typer(tokens.tokens, name="token", rich_help_panel="Run")
app.command("config", rich_help_panel="Run")(running.config)
app.command("verify", rich_help_panel="Run")(verify.verify)
app.command("doctor", rich_help_panel="Run")(doctor.doctor)
app.command("rebuild", rich_help_panel="Run")(rebuild.rebuild)
app.add_typer(lanes.lanes, name="lanes", rich_help_panel="Run")
app.add_typer(dead_letters.dead_letters, name="dead-letters", rich_help_panel="Run")
app.command("why", rich_help_panel="Run")(why.why_id)
for command in (ordering.create, ordering.amend, ordering.pay, ordering.ship, ordering.deliver, ordering.cancel):
    app.command(command.__name__, rich_help_panel="Order")(command)
app.command("show", rich_help_panel="Read")(asking.show_order)
app.command("list", rich_help_panel="Read")(asking.list_orders)
app.command("tail", rich_help_panel="Read")(watching.tail)
app.command("timeline", rich_help_panel="Read")(watching.timeline)


def main() -> None:
    """Run the command line."""
    app(prog_name="order-service")
