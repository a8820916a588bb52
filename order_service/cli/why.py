"""`why`: where an order or a command is now, and everything that the topics know about it."""

import shlex
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

import typer

from order_service.cli import show
from order_service.cli.environment import read_settings
from order_service.cli.run import run_or_exit
from order_service.kafka.reader import Reader
from order_service.operations.verify import verify
from order_service.operations.why import why
from order_service.operations.why.id_search import MUST_BE, Search, search_for
from order_service.operations.why.order_story import CommandState, CommandStory, FoundOutcome, FoundRecord, OrderStory
from order_service.operations.why.why import Why
from order_service.settings import Settings

UNKNOWN = 1
"""The exit status if nothing is known about the id."""
HEADS = ("time", "topic", "partition", "offset", "record", "command", "actor", "state")
STYLES = {
    CommandState.ACCEPTED: "green",
    CommandState.REJECTED: "red",
    CommandState.DEAD_LETTER: "red",
    CommandState.WAITING: "yellow",
    CommandState.UNDECIDED: "yellow",
    CommandState.SKIPPED: "yellow",
    CommandState.NO_OUTCOME: "bold red",
}
"""The colour of a command and its outcome, by state."""


def why_id(
    text: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="An order id, command id, payment id, tracking number, idempotency key, or partition:offset of a"
            " command.",
        ),
    ],
    all_partitions: Annotated[
        bool, typer.Option("--all-partitions", help="Search all partitions even if the first one has the id.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show where an order or a command is now, with every record about it, from the topics alone. Writes nothing.

    Exits with 0 if something is known about the id, with 1 if not, with 4 if Kafka or the schema registry is away, and
    with 13 if a topic is missing.
    """
    search = search_for(text)
    if search is None:
        raise typer.BadParameter(MUST_BE, param_hint="ID")
    answer = run_or_exit(_why(read_settings(), search, all_partitions))
    if as_json:
        show.json_line(answer)
    else:
        _print(answer)
    raise typer.Exit(0 if answer.is_known else UNKNOWN)


async def _why(settings: Settings, search: Search, all_partitions: bool) -> Why:
    with show.progress_bar("searching") as (bar, task):
        progress = verify.Progress(
            start=lambda total: bar.reset(task, total=total), advance=lambda count: bar.advance(task, count)
        )
        async with Reader(settings) as reader:
            return await why.why(reader, search, progress, all_partitions=all_partitions)


def _print(answer: Why) -> None:
    for match in answer.matches:
        line = f"{match.kind.replace('_', ' ')} of order {match.order_id or '(without a key)'}"
        _echo(f"{answer.id} is {'an' if line[0] in 'aio' else 'a'} {line}: {_at(match.record)}")
    for order in answer.orders:
        _print_order(order)
    if answer.has_more:
        _echo(f"It belongs to more orders; the first {why.MAX_ORDERS} are shown.")
    for batch in answer.damaged:
        text = "is damaged; what follows in this partition was not read"
        _echo(f"A batch of {batch.topic} partition {batch.partition} at offset {batch.offset} {text}.")
    if not answer.is_known:
        _print_searched(answer)
    elif not answer.all_partitions:
        _echo("Only this partition was searched: --all-partitions searches the others for other kinds of ids, too.")


def _print_searched(answer: Why) -> None:
    _echo(f"Nothing is known about {answer.id}. These topics were searched:")
    for topic in answer.searched:
        since = "no record is deleted" if topic.since is None else f"records before {_time(topic.since)} are deleted"
        _echo(f"  {topic.topic}: {topic.partitions} partitions; {since}")


def _print_order(order: OrderStory) -> None:
    lane = order.lane
    table = "none" if order.table is None else f"version {order.table_version or 'unreadable'}, {_at(order.table)}"
    position = "none" if lane.position is None else f"{lane.position}, at offset {lane.position_offset} of the table"
    _echo("")
    _echo(f"order      {order.order_id or '(without a key)'}")
    _echo(f"status     {order.status}, version {order.version}")
    _echo(f"table      {table}")
    _echo(f"partition  {lane.partition}; commands from {lane.start} to before {lane.end} are kept")
    _echo(f"position   {position}; lag {lane.lag}")
    lines = [(row, STYLES.get(story.state, "")) for story in order.commands for row in _rows(story)]
    if lines:
        show.table(HEADS, [row for row, _ in lines], [style for _, style in lines])
    for user_id in dict.fromkeys(story.waiting.user_id for story in order.commands if story.waiting is not None):
        if user_id is not None:
            _echo(f"waits      for the User Service: order-service users check {shlex.quote(user_id)}")
    for operation in order.operations:
        what = f"{operation.kind} {operation.operation_id} by {operation.actor}"
        what += show.positions(operation.previous_position, operation.position)
        _echo(f"operation  {_time(operation.at)}  {what}: {_at(operation)}")
    if order.omitted:
        _echo(f"{order.omitted} older records are not shown.")


def _rows(story: CommandStory) -> Iterator[show.Row]:
    """Yield the record of a command, then that of its outcome or of its wait."""
    command, outcome, waiting = story.command, story.outcome, story.waiting
    if command is not None:
        yield (*_origin(command), command.type or "unreadable", command.command_id, command.actor, _state(story))
    if story.state is CommandState.REPEAT:
        return
    if outcome is not None:
        is_deleted = command is None and outcome.command_offset is not None
        text = _says(outcome) + (f"; command {outcome.command_offset} is deleted" if is_deleted else "")
        yield (*_origin(outcome), outcome.type, outcome.command_id, outcome.actor, text)
    if waiting is not None:
        text = f"since {_time(waiting.since)} for user {waiting.user_id or 'unknown'}"
        yield (*_origin(waiting), "waiting", waiting.command_id, waiting.actor, text)


def _state(story: CommandStory) -> str:
    match story.state:
        case CommandState.REPEAT if story.outcome is not None:
            return f"repeat of {_command(story.repeat_of)}: {_says(story.outcome)}"
        case CommandState.REPEAT if story.waiting is not None:
            return f"repeat of {_command(story.repeat_of)}, which waits"
        case CommandState.UNDECIDED:
            return f"undecided, {story.offsets_before} offsets before it"
        case CommandState.OUTCOME_DELETED:
            return "refused; its rejection is deleted"
        case CommandState.SKIPPED:
            return "skipped by an operator"
        case CommandState.NO_OUTCOME:
            return "no outcome: run `order-service verify`"
        case state:
            return state.replace("_", " ")


def _command(offset: int | None) -> str:
    return "a decision of the service" if offset is None else f"command {offset}"


def _says(outcome: FoundOutcome) -> str:
    version = "" if outcome.version is None else f"version {outcome.version}"
    if outcome.reason is None:
        return version or outcome.type
    return f"{outcome.reason} at {version}" if version else outcome.reason


def _origin(record: FoundRecord) -> show.Row:
    return _time(record.at), record.topic, record.partition, record.offset


def _at(record: FoundRecord) -> str:
    return f"{record.topic} partition {record.partition} offset {record.offset}"


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _echo(line: str) -> None:
    typer.echo(show.safe(line))
