"""The command `rebuild`: writes lost or damaged changelogs again."""

import time
from typing import Annotated

import msgspec
import typer

from order_service.cli import show
from order_service.cli.environment import read_settings
from order_service.cli.options import Actor, Reason, operator_of
from order_service.cli.run import run_or_exit
from order_service.kafka.reader import Reader
from order_service.operations.rebuild import rebuild as rebuilding
from order_service.operations.rebuild.rebuild import Result, Wanted
from order_service.operations.rebuild.rebuild_plan import Progress as Reading
from order_service.runtime.garbage_collector import collect_less_often
from order_service.settings import Settings


def rebuild(
    partitions: Annotated[list[int] | None, typer.Argument(metavar="PARTITION…", show_default=False)] = None,
    all_partitions: Annotated[bool, typer.Option("--all", help="All partitions.")] = False,
    reason: Reason = "",
    actor: Actor = "",
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Go on although events or other outcomes have lost records.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Write. Without it, this only compares.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write the changelogs of partitions again from events, rejections, dead letters and commands.

    Without --yes it prints what would be written, and changes nothing. Exits with 0 if nothing is (or is left) to do,
    with 1 if a partition differs or is refused, with 4 if Kafka or the schema registry is away, and with 13 if a topic
    is missing.
    """
    if bool(partitions) == all_partitions:
        raise typer.BadParameter("name partitions, or else --all")
    actor = operator_of(actor, reason, "--reason", needs_reason=yes)
    wanted, began_at = Wanted(actor, reason, yes, accept_loss), time.monotonic()
    collect_less_often()
    work = _rebuild(read_settings(), sorted(set(partitions)) if partitions else None, wanted)
    results = run_or_exit(work, note="; what was written is kept, if anything: run this again" if yes else "")
    is_done = all(result.is_intact or result.is_written for result in results)
    if as_json:
        took_s = round(time.monotonic() - began_at, 1)
        show.json_line({"ok": is_done, "took_s": took_s, "partitions": msgspec.to_builtins(results)})
    else:
        for result in results:
            _print(result)
        if not yes and not is_done:
            can_write = any(not (result.is_intact or result.refusal) for result in results)
            typer.echo("nothing was changed" + (": add --yes and --reason to write this" if can_write else ""))
    raise typer.Exit(0 if is_done else 1)


async def _rebuild(settings: Settings, partitions: list[int] | None, wanted: Wanted) -> list[Result]:
    with show.progress_bar("reading", total=0) as (bar, task):
        progress = Reading(
            extend=lambda count: bar.update(task, total=(bar.tasks[0].total or 0) + count),
            advance=lambda count: bar.advance(task, count),
        )
        async with Reader(settings) as reader:
            return await rebuilding.rebuild(reader, settings, partitions, wanted, progress)


def _print(result: Result) -> None:
    name = f"partition {result.partition}"
    if result.refusal:
        typer.echo(show.safe(f"{name}: refused: {result.refusal}"))
    elif result.is_intact:
        typer.echo(f"{name}: intact, {result.orders} orders, {result.waiting} waiting, position {result.position}")
    else:
        typer.echo(show.safe(f"{name}: {'written' if result.is_written else 'differs'}: {_differences(result)}"))
    for line in (*result.unreadable.values(), *result.notes):
        typer.echo(show.safe(f"  {line}"))
    if result.foreign:
        typer.echo(f"  {result.foreign} records of other programs in the outcome topics were ignored")


def _differences(result: Result) -> str:
    before = "unknown" if result.previous_position is None else result.previous_position
    orders = f"{result.missing} missing, {result.different} different, {result.superfluous} superfluous"
    waiting = f"{result.waiting_added} missing, {result.waiting_removed} superfluous"
    counts = f"{result.orders} orders ({orders}), {result.waiting} waiting ({waiting})"
    return f"{counts}, position {result.position} (it was {before})"
