"""The commands that run everything at once (`up`) or its parts, and the one that shows their settings."""

import time
from pathlib import Path
from typing import Annotated

import structlog
import typer
from msgspec import structs

from order_service.cli import show
from order_service.cli.environment import configure_log, read_settings, redacted
from order_service.cli.options import AsJson
from order_service.cli.outcomes import show_outcomes
from order_service.runtime import logs
from order_service.runtime.signals import exit_on_signal, run_until_signal
from order_service.settings import Settings

log = structlog.get_logger()

LogAsJson = Annotated[bool, typer.Option("--json", help="Log as JSON: as ORDERS_LOG=json, unless it is ecs or otel.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Do not show the outcomes of commands. --json implies it.")]


def up(quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Run everything on this machine: Kafka, User Service stub, worker, projector, HTTP. Ctrl-C stops it."""
    from order_service.local import up as local_run  # noqa: PLC0415 - other commands start without it

    settings = read_settings()
    levels = {"aiokafka": "critical"}  # our line about Kafka has what matters
    configure_log(settings, "up", as_json=as_json, style="console", levels=levels)
    started_at = time.monotonic()

    def ready(running: local_run.Running) -> None:
        took_s = time.monotonic() - started_at
        if as_json:
            show.json_line({"ready": True, "took_s": round(took_s, 1), **structs.asdict(running)})
        else:
            typer.echo("\n".join(local_run.ready_lines(running, took_s)))

    beside = None if quiet or as_json else show_outcomes
    code = local_run.run(settings, report=_report, on_ready=ready, beside=beside)
    raise typer.Exit(code)


def _report(step: str) -> None:
    """Write a step of the local run: for people, or into the log where a program reads it."""
    if logs.has_standard_names():
        log.info("The local run goes on.", step=step)
    else:
        typer.echo(step, err=True)


def worker(
    make_topics: Annotated[bool, typer.Option("--create-topics", help="Create missing topics first.")] = False,
    as_json: LogAsJson = False,
    process: Annotated[int, typer.Option(hidden=True, help="The number of this process of several.")] = 0,
    admin_socket: Annotated[Path | None, typer.Option(hidden=True, help="Where it serves its health.")] = None,
) -> None:
    """Decide commands, until SIGTERM or Ctrl-C. ORDERS_WORKERS sets the number of processes."""
    settings = _begin("worker", as_json=as_json, **({"process": process} if process else {}))
    if settings.workers > 1 and not process:
        from order_service.worker.processes.parent import run_processes  # noqa: PLC0415 - others have no processes

        options = [*(["--create-topics"] if make_topics else []), *(["--json"] if as_json else [])]
        raise typer.Exit(run_processes(settings, options))
    from order_service.worker.faust.app import run  # noqa: PLC0415 - faust alone takes longer than the rest

    run(settings, make_topics=make_topics, process=process, admin_socket=admin_socket)


def projector(as_json: LogAsJson = False) -> None:
    """Update the views of all orders in ORDERS_DATABASE_URL, until SIGTERM or Ctrl-C."""
    settings = _begin("projector", as_json=as_json)
    from order_service.views.process import run  # noqa: PLC0415 - other commands need no database

    run_until_signal(run(settings))


def web(as_json: LogAsJson = False) -> None:
    """Serve HTTP on ORDERS_HTTP_PORT, until SIGTERM or Ctrl-C. It reads the views of a projector."""
    settings = _begin("web", as_json=as_json)
    from order_service.web.process import run  # noqa: PLC0415 - other commands need no server

    run_until_signal(run(settings))


def _begin(role: str, *, as_json: bool, **fields: object) -> Settings:
    """Prepare this process: its signals, settings and log, whose lines all have the fields. Return the settings."""
    exit_on_signal()
    settings = read_settings()
    configure_log(settings, role, as_json=as_json, fields=fields)
    return settings


def config(as_json: AsJson = False) -> None:
    """Show the settings in use, with secrets masked."""
    values = redacted(read_settings())
    if as_json:
        show.json_line(values)
        return
    show.table(("variable", "value"), values.items())
