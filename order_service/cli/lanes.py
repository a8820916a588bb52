"""The lanes: what each partition does, and how an operator resumes a parked one."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import typer

from order_service.cli import show
from order_service.cli.environment import read_settings
from order_service.cli.options import Actor, Reason, operator_of
from order_service.cli.run import run_or_exit
from order_service.errors import OperationRefused
from order_service.kafka.reader import Reader
from order_service.operations.lanes.lanes import Lanes, ask_workers, list_lanes
from order_service.operations.lanes.resume import Preview, Wanted, preview, resume
from order_service.settings import Settings
from order_service.wire.operations import LaneResumed

lanes = typer.Typer(invoke_without_command=True, help="List all lanes, or resume a parked one.")

SHOWN_IDS = 20
WorkerAddresses = Annotated[
    list[str] | None,
    typer.Option("--worker", metavar="HOST:PORT", help="The admin port of a worker to ask. It may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@lanes.callback()
def list_all(context: typer.Context, worker: WorkerAddresses = None, as_json: AsJson = False) -> None:
    """List every partition: its state, owner, position, lag, waiting commands and standby.

    Position, lag and waiting commands come from Kafka. Whether a lane runs or is parked only its worker knows. Without
    `--worker`, the worker of this machine is asked.

    Exits with 0, with 4 if Kafka is away, and with 13 if a topic is missing.
    """
    if context.invoked_subcommand is not None:
        return
    settings = read_settings()
    listing = run_or_exit(_list(settings, _addresses(settings, worker)))
    if as_json:
        show.json_line({"lanes": listing.rows, "notes": listing.notes})
        return
    for note in listing.notes:
        typer.echo(f"order-service: {note}", err=True)
    has_standbys = any(row.standby for row in listing.rows)
    heads = ("partition", "state", "since", "owner", "position", "lag", "waiting", "worker")
    rows = [
        (row.partition, row.state, row.since, row.owner, row.position, row.lag, row.waiting, row.worker)
        + ((row.standby,) if has_standbys else ())
        + (row.reason,)
        for row in listing.rows
    ]
    heads += (*(("standby",) if has_standbys else ()), "reason")
    show.table(heads, rows, ["red" if row.state == "parked" else "" for row in listing.rows])


async def _list(settings: Settings, addresses: Sequence[str]) -> Lanes:
    async with Reader(settings) as reader:
        return await list_lanes(settings, reader, addresses)


@lanes.command("resume")
def resume_lane(
    partition: Annotated[int, typer.Argument(min=0, metavar="PARTITION", help="The partition of the parked lane.")],
    reason: Reason = "",
    from_offset: Annotated[
        int | None, typer.Option("--from", min=0, metavar="OFFSET", help="Continue at this command.")
    ] = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Accept that rejections or dead letters are lost.")
    ] = False,
    actor: Actor = "",
    worker: WorkerAddresses = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without it, only show what would happen.")] = False,
    as_json: AsJson = False,
) -> None:
    """Resume a parked lane. Without --yes, only read, and show what would happen.

    Exits with 0, with 1 if it is refused, with 4 if Kafka is away, and with 13 if a topic is missing.
    """
    actor = operator_of(actor, reason, "--reason", needs_reason=yes)
    settings = read_settings()
    wanted = Wanted(from_offset, accept_loss)
    previewed, done = run_or_exit(
        _resume(settings, partition, wanted, _addresses(settings, worker), (actor, reason), yes=yes)
    )
    if as_json:
        show.json_line(_as_json(partition, previewed, done))
    else:
        _print(partition, previewed, done)


async def _resume(
    settings: Settings, partition: int, wanted: Wanted, addresses: Sequence[str], who: tuple[str, str], *, yes: bool
) -> tuple[Preview, LaneResumed | None]:
    workers = await ask_workers(addresses)
    address, lane = workers.states.get(partition, ("", None))
    if lane is None:
        note = "; ".join(workers.notes) or "no worker that was asked has the partition"
        typer.echo(f"order-service: it is unknown whether the lane is parked: {note}", err=True)
    elif lane.state == "parked":
        typer.echo(f"parked since {lane.since} in the worker at {address}: {show.safe(lane.reason)}", err=True)
    else:
        raise OperationRefused(f"partition {partition} is {lane.state} in the worker at {address}: it is not parked")
    async with Reader(settings) as reader:
        count = len(await reader.partitions(reader.names.commands))
        if partition >= count:
            raise typer.BadParameter(f"the topics have the partitions 0 to {count - 1}", param_hint="PARTITION")
        previewed = await preview(settings, reader, partition, wanted)
        done = await resume(settings, reader, partition, previewed, *who) if yes else None
    return previewed, done


def _addresses(settings: Settings, workers: Sequence[str] | None) -> Sequence[str]:
    return workers or [f"{settings.admin_address}:{settings.admin_port}"]


def _as_json(partition: int, previewed: Preview, done: LaneResumed | None) -> dict[str, Any]:
    examination, plan, skipped = previewed.examination, previewed.plan, previewed.skipped
    return {
        "partition": partition,
        "done": done is not None,
        "owner": examination.owner,
        "position": examination.resume_at,
        "commands": {"start": examination.commands_start, "end": examination.commands_end},
        "faults": examination.faults,
        "new_position": plan.position,
        "skipped": {"offsets": len(plan.skipped), "unreadable": skipped.unreadable, "more_orders": skipped.more},
        "skipped_order_ids": skipped.order_ids,
        "decided_again": len(plan.repeated),
        "lost": plan.lost,
        "operation": None if done is None else msgspec.to_builtins(done),
    }


def _print(partition: int, previewed: Preview, done: LaneResumed | None) -> None:
    examination = previewed.examination
    owner = examination.owner or "none: it was released"
    typer.echo(f"partition {partition}: position {examination.resume_at}, owner {owner}")
    typer.echo(f"commands: from offset {examination.commands_start} to before {examination.commands_end}")
    for fault in examination.faults:
        typer.echo(f"a claim finds: {fault}")
    if not examination.faults:
        typer.echo("a claim finds no fault in the changelogs, the outcomes and the position")
    for line in _change_lines(previewed):
        typer.echo(show.safe(line))
    if done is None:
        typer.echo("nothing was changed: repeat it with --yes and --reason")
    else:
        typer.echo(f"recorded as operation {done.id}; the worker that has the partition claims it within seconds")


def _change_lines(previewed: Preview) -> list[str]:
    plan, skipped = previewed.plan, previewed.skipped
    if plan.position is None:
        return ["the lane continues where it is; no changelog is changed"]
    lines = [f"the position moves from {plan.previous_position} to {plan.position}"]
    if plan.skipped:
        lines.append(f"{len(plan.skipped)} offsets are skipped: their commands are never decided")
    if skipped.order_ids:
        rest = len(skipped.order_ids) - SHOWN_IDS + skipped.more
        lines.append(
            f"orders of skipped commands: {', '.join(skipped.order_ids[:SHOWN_IDS])}"
            + (f" and {rest} more" if rest > 0 else "")
        )
    if skipped.unreadable:
        lines.append(f"of the skipped commands, {skipped.unreadable}")
    if plan.repeated:
        lines.append(f"the commands from offset {plan.position} on are decided, although the offsets were used before")
    lines += [f"accepted as lost: {name} from offset {start} to {end - 1}" for name, (start, end) in plan.lost.items()]
    return lines
