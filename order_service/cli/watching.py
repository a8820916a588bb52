"""Reading events from Kafka: `tail` shows them as they arrive, `timeline` the history of one order."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec
import typer
from aiokafka.structs import ConsumerRecord, TopicPartition
from rich.progress import Progress

from order_service.cli import show
from order_service.cli.environment import log_index_of, read_settings
from order_service.cli.history import Chain, Step, moment_of, steps, time_of
from order_service.cli.options import AsJson, At
from order_service.domain.messages import Contents, Event
from order_service.domain.order import ABSENT, Order
from order_service.errors import HistoryError
from order_service.kafka.reader import OutcomeRecord, Reader, decode
from order_service.operations.why.order_operations import operations_on
from order_service.sdk.log_index import IndexEntries
from order_service.settings import Settings
from order_service.wire.operations import Operation


def tail(
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="Show existing events first.")] = False,
    order: Annotated[str | None, typer.Option(metavar="ORDER_ID", help="Only this order.")] = None,
    rejections: Annotated[bool, typer.Option("--rejections", help="Show rejections too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show events as they arrive, until Ctrl-C."""
    asyncio.run(_tail(read_settings(), order, from_beginning=from_beginning, rejections=rejections, as_json=as_json))


async def _tail(
    settings: Settings, order_id: str | None, *, from_beginning: bool, rejections: bool, as_json: bool
) -> None:
    async with Reader(settings) as reader:
        topics = [reader.names.events, *([reader.names.rejections] if rejections else [])]
        partitions = await (reader.partitions(*topics) if order_id is None else reader.partitions_of(order_id, *topics))
        starts = await (reader.starts(partitions) if from_beginning else reader.ends(partitions))
        await _follow(reader, starts, order_id, lambda outcome: _show_step(Step(outcome, ABSENT), as_json=as_json))


async def _follow(
    reader: Reader,
    starts: Mapping[TopicPartition, int],
    order_id: str | None,
    show_outcome: Callable[[OutcomeRecord], None],
) -> None:
    async for record in reader.follow(starts):
        if order_id is not None and record.key != order_id.encode():
            continue
        try:
            outcome = decode(record, reader.names)
        except HistoryError as error:
            typer.echo(f"order-service: {error}", err=True)
        else:
            show_outcome(outcome)


def _show_step(step: Step, *, as_json: bool) -> None:
    if as_json:
        show.json_line(_as_dict(step))
        return
    message = step.outcome.message
    name, style = show.name_and_style(message)
    show.line(
        (f"{time_of(step.outcome)}  ", "dim"),
        (f"{message.order_id}  ", "bold"),
        (f"v{message.version}  ", ""),
        (name, style),
        (f"  {show.describe(message, _contents(step.before))}", ""),
        (f"  by {message.actor}", "dim"),
    )


def timeline(
    order_id: Annotated[str, typer.Argument(metavar="ORDER_ID", help="The order's id.")],
    at: At = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show later outcomes too, until Ctrl-C, even if there are none yet.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the history of one order in Kafka, and check its digest chain."""
    if at is not None and follow:
        raise typer.BadParameter("--at and --follow exclude each other")
    asyncio.run(_timeline(read_settings(), order_id, at, follow=follow, as_json=as_json))


async def _timeline(settings: Settings, order_id: str, at: datetime | None, *, follow: bool, as_json: bool) -> None:
    async with Reader(settings) as reader:
        partitions = await reader.partitions_of(order_id, reader.names.events, reader.names.rejections)
        index = log_index_of(settings)
        entries = None if index is None else await index.find([order_id])
        ends = await reader.ends(partitions)  # after the index, which grows with the log
        records = None if entries is None else await _indexed_records(reader, entries, ends, order_id)
        if records is None:
            records = await _records(reader, ends, order_id)
        outcomes = [decode(record, reader.names) for record in records]
        operations = await operations_on(reader, order_id, records)
        chain = Chain()
        history = steps([outcome for outcome in outcomes if at is None or moment_of(outcome) <= at], chain)
        _show_history(history, as_json=as_json)
        _show_operations([each for each in operations if at is None or each.at <= at], as_json=as_json)
        is_valid = _print_verdict(order_id, outcomes, history, chain, as_json=as_json)
        if follow:
            await _follow(reader, ends, order_id, lambda outcome: _show_next(order_id, outcome, chain, as_json=as_json))
        elif not is_valid:
            raise typer.Exit(1)


def _show_history(history: list[Step], *, as_json: bool) -> None:
    if as_json:
        for step in history:
            show.json_line(_as_dict(step))
    elif history:
        heads = ("time", "version", "event", "what changed", "actor", "command", "offset")
        show.table(heads, map(_row, history), [show.name_and_style(step.outcome.message)[1] for step in history])


def _show_operations(operations: list[Operation], *, as_json: bool) -> None:
    """Show what operators did to the order, or to its partition while it had commands there."""
    for operation in operations:
        fields = {"type": type(operation).__name__, **msgspec.to_builtins(operation)}
        if as_json:
            show.json_line(fields)
        else:
            time = operation.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            what = f"operation {operation.id}"
            what += show.positions(fields.get("previous_position"), fields.get("position"))
            who = f" by {operation.actor}: {operation.reason} ({what})"
            show.line((f"{time}  ", "dim"), (fields["type"], "yellow"), (who, ""))


def _print_verdict(
    order_id: str, outcomes: list[OutcomeRecord], history: list[Step], chain: Chain, *, as_json: bool
) -> bool:
    """Print the status of the order. Return whether its history is intact and it exists, at that time."""
    faulty = [step for step in history if step.fault]
    for step in faulty:
        _print_fault(order_id, step)
    if faulty:
        return False
    if chain.order is ABSENT:
        typer.echo(f"order-service: {_why_absent(show.safe(order_id), outcomes, history)}", err=True)
        return False
    if not as_json:
        show.line((f"{order_id} is {chain.order.status}, version {chain.version}; the digest chain is intact", "bold"))
    return True


def _why_absent(order_id: str, outcomes: list[OutcomeRecord], history: list[Step]) -> str:
    """Return why there is no order to show."""
    if not outcomes:
        return f"Kafka has no records of an order {order_id}"
    if not history:
        return f"Kafka has no records of {order_id} at that time: the first is from {min(map(time_of, outcomes))}"
    at_that_time = " at that time" if len(history) < len(outcomes) else ""
    return f"there is no order {order_id}{at_that_time}, only refused commands"


def _show_next(order_id: str, outcome: OutcomeRecord, chain: Chain, *, as_json: bool) -> None:
    """Show a later outcome of a followed order, and check it like the earlier ones."""
    for step in steps([outcome], chain):
        _show_step(step, as_json=as_json)
        if step.fault:
            _print_fault(order_id, step)


def _print_fault(order_id: str, step: Step) -> None:
    line = f"THE HISTORY OF {show.safe(order_id)} IS BROKEN: {step.fault}"
    show.console(stderr=True).print(line, style="bold red", markup=False)


async def _records(reader: Reader, ends: Mapping[TopicPartition, int], order_id: str) -> list[ConsumerRecord]:
    """Read all events and rejections of one order, with a progress bar: its partition holds other orders too."""
    starts = await reader.starts(list(ends))
    console = show.console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=sum(ends.values()) - sum(starts.values()))
        records = _counted(reader.until(ends), starts, lambda done: progress.update(task, completed=done))
        return [record async for record in records if _is_of(record, order_id)]


async def _indexed_records(
    reader: Reader, entries: IndexEntries, ends: Mapping[TopicPartition, int], order_id: str
) -> list[ConsumerRecord] | None:
    """Read the events and rejections of one order where the views say that they are, and what the views lack yet.

    Return None if these records are not a whole history: the whole log decides then.
    """
    ranges = entries.ranges(ends)
    if ranges is None:
        return None
    records = [record async for record in reader.within(ranges) if _is_of(record, order_id)]
    outcomes = [decode(record, reader.names) for record in records]
    chain = Chain()
    is_whole = not any(step.fault for step in steps(outcomes, chain)) and chain.order is not ABSENT
    return records if is_whole else None


def _is_of(record: ConsumerRecord, order_id: str) -> bool:
    return bool(record.key == order_id.encode())


async def _counted(
    records: AsyncIterator[ConsumerRecord], starts: dict[TopicPartition, int], on_progress: Callable[[int], object]
) -> AsyncIterator[ConsumerRecord]:
    """Yield the records, and report after each thousand how many offsets were read."""
    positions = dict(starts)
    count = 0
    async for record in records:
        positions[TopicPartition(record.topic, record.partition)] = record.offset + 1
        count += 1
        if count % 1000 == 0:
            on_progress(sum(positions.values()) - sum(starts.values()))
        yield record


def _row(step: Step) -> show.Row:
    message = step.outcome.message
    return (
        time_of(step.outcome),
        message.version if isinstance(message, Event) else "-",
        show.name_and_style(message)[0],
        show.describe(message, _contents(step.before)),
        message.actor,
        message.command_id,
        f"{step.outcome.partition}:{step.outcome.offset}",
    )


def _contents(order: Order) -> Contents | None:
    return order if isinstance(order, Contents) else None


def _as_dict(step: Step) -> dict[str, Any]:
    return show.as_dict(step.outcome) | ({"fault": step.fault} if step.fault else {})
