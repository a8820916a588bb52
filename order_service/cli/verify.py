"""The command `verify`."""

import time
from typing import Annotated, Any

import msgspec
import typer

from order_service.cli import show
from order_service.cli.environment import read_settings
from order_service.cli.run import run_or_exit
from order_service.kafka.reader import Reader
from order_service.operations.verify import verify as verification
from order_service.operations.verify.findings import Report
from order_service.operations.verify.verify import Wanted
from order_service.runtime.garbage_collector import collect_less_often
from order_service.settings import MAX_FLOAT, Settings


def verify(
    older_than: Annotated[
        float,
        typer.Option(
            min=0, max=MAX_FLOAT, metavar="SECONDS", help="Report commands that are older than this and undecided."
        ),
    ] = 60.0,
    mirrored: Annotated[
        bool, typer.Option("--mirrored", help="The topics are a copy whose offsets differ: do not compare those.")
    ] = False,
    limit: Annotated[int, typer.Option(min=0, help="The maximum number of findings to print; all are counted.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check all topics against each other: every order, digest, table entry, position and outcome. Writes nothing.

    Exits with 0 without findings, with 1 if there are any, with 4 if Kafka or the schema registry is away, and with 13
    if a topic is missing.
    """
    settings, began_at = read_settings(), time.monotonic()
    collect_less_often()
    report = run_or_exit(_verify(settings, Wanted(older_than, mirrored, limit)))
    took_s = time.monotonic() - began_at
    if as_json:
        show.json_line(_as_json(report, took_s))
    else:
        _print(report, took_s)
    raise typer.Exit(1 if report.count else 0)


async def _verify(settings: Settings, wanted: Wanted) -> Report:
    with show.progress_bar("verifying") as (bar, task):
        progress = verification.Progress(
            start=lambda total: bar.update(task, total=total), advance=lambda count: bar.advance(task, count)
        )
        async with Reader(settings) as reader:
            return await verification.verify(reader, wanted, progress)


def _as_json(report: Report, took_s: float) -> dict[str, Any]:
    return {
        "ok": not report.count,
        "partitions": report.partitions,
        "took_s": round(took_s, 1),
        "totals": msgspec.to_builtins(report.totals),
        "finding_count": report.count,
        "finding_counts": report.counts,
        "findings": report.findings,
        "not_checked": report.not_checked,
        "operations": report.operations,
    }


def _print(report: Report, took_s: float) -> None:
    totals = report.totals
    for name, value in (
        ("orders", _counts(totals.orders) or "0"),
        ("commands", f"{totals.commands}, {totals.repeats} of them repeats"),
        ("events", totals.events),
        ("rejections", totals.rejections),
        ("dead letters", totals.dead_letters),
        ("waiting", totals.waiting),
        ("paid", _counts(totals.paid) or "0"),
        ("refunds due", _counts(totals.refunds_due) or "0"),
    ):
        typer.echo(f"{name:<12}  {show.safe(str(value))}")
    for line in (*report.not_checked, *report.operations):
        typer.echo(show.safe(line))
    if report.findings:
        rows = [
            (finding.kind, finding.topic, finding.partition, finding.offset, finding.text)
            for finding in report.findings
        ]
        show.table(("kind", "topic", "partition", "offset", "finding"), rows, ["red"] * len(rows))
    if report.count > len(report.findings):
        typer.echo(f"{report.count - len(report.findings)} more are not shown: see --limit")
    by_kind = f" ({_counts(report.counts)})" if report.count else ""
    typer.echo(f"{report.partitions} partitions verified in {took_s:.1f} s; findings: {report.count}{by_kind}")


def _counts(counts: Any) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
