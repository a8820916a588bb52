"""What runs: everything at once (`up`), or its parts; and the topics and settings that they run on."""

import asyncio
import time
from typing import Annotated

import typer

from order_service.cli import show
from order_service.cli.environment import read_settings, redacted
from order_service.cli.options import AsJson
from order_service.errors import cannot_listen
from order_service.kafka.connection import ask_admin
from order_service.kafka.topics import Comparison, compare_topics, create_topics, fix_lines, topic_configs, topic_names
from order_service.runtime import logs
from order_service.runtime.signals import exit_on_signal, run_until_signal
from order_service.settings import Settings

LogAsJson = Annotated[bool, typer.Option("--json", help="Log as JSON, as ORDERS_LOG=json does.")]

topics = typer.Typer(no_args_is_help=True, help="Create the topics, or compare them with what they must be.")


def up(as_json: AsJson = False) -> None:
    """Run all of it on this machine: Kafka, User Service stub, worker, projector, HTTP. Ctrl-C ends it."""
    from order_service.local import up as local_run  # noqa: PLC0415 - other commands start without it

    settings = read_settings()
    logs.configure("json" if as_json else settings.log or "console")
    began_at = time.monotonic()

    def ready(running: local_run.Running) -> None:
        took_s = time.monotonic() - began_at
        if as_json:
            show.json_line({"ready": True, "took_s": round(took_s, 1), **running.as_dict()})
        else:
            typer.echo("\n".join(local_run.ready_lines(running, took_s)))

    raise typer.Exit(local_run.run(settings, say=lambda line: typer.echo(line, err=True), on_ready=ready))


def worker(
    make_topics: Annotated[
        bool, typer.Option("--create-topics", help="Create the topics that are missing first.")
    ] = False,
    as_json: LogAsJson = False,
) -> None:
    """Decide commands, until SIGTERM or Ctrl-C."""
    settings = _begin(as_json=as_json)
    from order_service.worker.faust.app import run  # noqa: PLC0415 - faust alone takes longer than the rest

    run(settings, make_topics=make_topics)


def projector(as_json: LogAsJson = False) -> None:
    """Keep the views of all orders in ORDERS_DATABASE_URL, until SIGTERM or Ctrl-C."""
    settings = _begin(as_json=as_json)
    from order_service.views.process import run  # noqa: PLC0415 - other commands need no database

    run_until_signal(run(settings))


def web(as_json: LogAsJson = False) -> None:
    """Serve HTTP on ORDERS_HTTP_PORT, until SIGTERM or Ctrl-C; what it reads, a projector keeps."""
    settings = _begin(as_json=as_json)
    from order_service.web.process import run  # noqa: PLC0415 - other commands need no server

    run_until_signal(run(settings))


def users(
    latency_ms: Annotated[int, typer.Option(min=0, help="How long each answer takes.")] = 0, as_json: AsJson = False
) -> None:
    """Run a stub of the User Service: any id is an active user, but unknown-1, inactive-1, slow-500-1, flaky-1."""
    settings = read_settings()
    logs.configure(settings.log)
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


def _begin(*, as_json: bool) -> Settings:
    """Do what every process of ours begins with."""
    exit_on_signal()
    settings = read_settings()
    logs.configure("json" if as_json else settings.log)
    return settings


@topics.command("create")
def topics_create(as_json: AsJson = False) -> None:
    """Create the topics that are missing; exit with 13 if one of the others differs, which stay as they are."""
    settings = read_settings()
    made = asyncio.run(_create(settings))
    for name in topic_configs(topic_names(settings.topic_prefix)):
        state = "created" if name in made else "exists"
        if as_json:
            show.json_line({"topic": name, "state": state})
        else:
            typer.echo(f"{state:<8} {name}")
    compared = asyncio.run(_compare(settings))
    if as_json and (compared.faults or compared.risks):
        show.json_line(_as_json(settings, compared))
    elif not as_json:
        _echo(settings, compared)
    raise typer.Exit(13 if compared.faults else 0)


@topics.command("check")
def topics_check(as_json: AsJson = False) -> None:
    """Compare the topics with what they must be; exit with 13 if one is less, and print the lines that mend it."""
    settings = read_settings()
    compared = asyncio.run(_compare(settings))
    if as_json:
        show.json_line(_as_json(settings, compared))
    else:
        _echo(settings, compared)
        if not compared.faults:
            typer.echo(f"all topics are as they must be, with {settings.partitions} partitions each")
    raise typer.Exit(13 if compared.faults else 0)


def _as_json(settings: Settings, compared: Comparison) -> dict[str, object]:
    faults = compared.faults
    said = [fault.text for fault in faults]
    return {"ok": not faults, "faults": said, "mend": fix_lines(faults, settings), "risks": compared.risks}


def _echo(settings: Settings, compared: Comparison) -> None:
    """Write what differs to stderr, and the lines that mend it to stdout."""
    for risk in compared.risks:
        typer.echo(f"order-service: warning: {risk}", err=True)
    for fault in compared.faults:
        typer.echo(f"order-service: {fault.text}", err=True)
    for line in fix_lines(compared.faults, settings):
        typer.echo(line)


def config(as_json: AsJson = False) -> None:
    """Show all settings as they are in use, without secrets."""
    values = redacted(read_settings())
    if as_json:
        show.json_line(values)
        return
    show.table(("variable", "value"), [("", (name, _text(value))) for name, value in values.items()])


def _text(value: object) -> str:
    return "" if value is None else str(value)


async def _create(settings: Settings) -> list[str]:
    return await ask_admin(settings, lambda admin: create_topics(admin, settings))


async def _compare(settings: Settings) -> Comparison:
    return await ask_admin(settings, lambda admin: compare_topics(admin, settings), patience_s=5.0)
