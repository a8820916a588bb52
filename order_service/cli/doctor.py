"""The command `doctor`: checks every dependency of the service, and prints what to do."""

import asyncio
import time
from functools import partial
from typing import Annotated

import typer
from msgspec import to_builtins

from order_service.cli import show
from order_service.cli.environment import read_settings
from order_service.cli.run import UNAVAILABLE
from order_service.operations.doctor.checks.check import FINDINGS, Check, Diagnosis, Status
from order_service.settings import Settings

STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.PROBLEM: "red", Status.NOT_CHECKED: "dim"}


def doctor(
    local: Annotated[
        bool,
        typer.Option("--local", help="Check Java and Docker, too. Without a remote Kafka they are checked anyway."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check every dependency: Kafka, topics, group, User Service, registry, clocks, database. Writes nothing.

    Use the settings of a worker. Exits with 0 without findings, with 1 if there are any, and with 4 if Kafka cannot be
    reached; the other checks are printed then, too.
    """
    settings, began_at = read_settings(), time.monotonic()
    with show.console(stderr=True).status("checking …"):
        diagnosis = _diagnose(settings, local=local)
    took_s = time.monotonic() - began_at
    if as_json:
        show.json_line(
            {
                "ok": not diagnosis.finding_count,
                "kafka_reachable": diagnosis.is_kafka_reachable,
                "took_s": round(took_s, 1),
                "finding_count": diagnosis.finding_count,
                "results": to_builtins(diagnosis.results),
            }
        )
    else:
        _print(diagnosis, took_s)
    if not diagnosis.is_kafka_reachable:
        raise typer.Exit(UNAVAILABLE)
    raise typer.Exit(1 if diagnosis.finding_count else 0)


def _diagnose(settings: Settings, *, local: bool) -> Diagnosis:
    from order_service.local.programs_check import check_programs  # noqa: PLC0415 - other commands start without these
    from order_service.operations.doctor.doctor import checks_of, examine, kafka_check  # noqa: PLC0415
    from order_service.web.access.keys_check import FIX, check_keys  # noqa: PLC0415

    checks = [*checks_of(settings), Check("token_keys", partial(check_keys, settings), FIX)]
    if local or not settings.kafka_bootstrap_servers:
        fix = "See `java -version` and `docker version`."
        checks.append(Check("local_kafka", partial(check_programs, settings), fix))
    return asyncio.run(examine(kafka_check(settings), checks))


def _print(diagnosis: Diagnosis, took_s: float) -> None:
    rows = [(result.check, result.status.replace("_", " "), result.text) for result in diagnosis.results]
    show.table(("check", "status", "result"), rows, [STYLES[result.status] for result in diagnosis.results])
    fixes = dict.fromkeys((result.check, result.fix) for result in diagnosis.results if result.status in FINDINGS)
    if fixes:
        typer.echo("\nWhat to do:")
    for check, fix in fixes:
        lines = [show.safe(line) for line in fix.splitlines()]
        typer.echo(f"{check}: {lines[0]}" if len(lines) == 1 else "\n".join([f"{check}:", *lines]))
    typer.echo(f"\n{len(rows)} results in {took_s:.1f} s; findings: {diagnosis.finding_count}")
