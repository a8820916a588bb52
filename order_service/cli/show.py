"""Output: plain lines, colours and tables on a terminal, one JSON object a line for programs."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from order_service.domain.messages import (
    Contents,
    Event,
    Fact,
    Line,
    OrderAmended,
    OrderCancelled,
    OrderCreated,
    OrderDelivered,
    OrderPaid,
    OrderShipped,
    Rejection,
)
from order_service.kafka.reader import OutcomeRecord
from order_service.wire.flat import flat

STYLES = {
    "OrderCreated": "cyan",
    "OrderAmended": "cyan",
    "OrderPaid": "green",
    "OrderShipped": "green",
    "OrderDelivered": "bold green",
    "OrderCancelled": "yellow",
}
NO_WRAP = {"time", "version", "offset"}
"""Columns that do not wrap on a narrow terminal."""
Row = Sequence[object]
"""The cells of a row; None is an empty cell."""


def console(*, stderr: bool = False) -> Console:
    """Return a console for the current stream, which wraps no lines and highlights nothing by itself."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def line(*parts: tuple[str, str]) -> None:
    """Print one line that consists of texts with their styles, and flush it."""
    console().print(Text.assemble(*[(safe(text), style) for text, style in parts]))
    sys.stdout.flush()


@contextmanager
def progress_bar(text: str, total: float | None = None) -> Iterator[tuple[Progress, TaskID]]:
    """Show a progress bar with one task on stderr, if that is a terminal."""
    stderr = console(stderr=True)
    columns = (TextColumn(text), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        yield bar, bar.add_task(text, total=total)


def positions(before: int | None, after: int | None) -> str:
    """Return a suffix such as `, position 1 to 2`, or an empty string if an operation has no position."""
    if after is None:
        return "" if before is None else f", at position {before}"
    return f", position {after}" if before is None else f", position {before} to {after}"


def json_line(value: object) -> None:
    """Print one JSON object as a line, and flush it."""
    typer.echo(msgspec.json.encode(value))


def table(heads: Sequence[str], rows: Iterable[Row], styles: Iterable[str] = ()) -> None:
    """Print a table: with lines on a terminal, elsewhere with two spaces between columns. A row may have a style."""
    texts = [["" if cell is None else safe(str(cell)) for cell in row] for row in rows]
    if console().is_terminal:
        columns = [Column(head, overflow="fold", no_wrap=head in NO_WRAP) for head in heads]
        drawing = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for row, style in zip_longest(texts, styles, fillvalue=""):
            drawing.add_row(*map(Text, row), style=style)
        Console(highlight=False).print(drawing)
        return
    lines: list[Sequence[str]] = [heads, *texts]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def safe(text: str) -> str:
    """Escape control characters for a terminal: any sender of commands may have written the text."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def as_dict(outcome: OutcomeRecord) -> dict[str, Any]:
    """Return an event or a rejection flat, like its Avro record, with type, partition and offsets; digests are hex."""
    origin = {"partition": outcome.partition, "offset": outcome.offset, "command_offset": outcome.command_offset}
    return {**flat(outcome.message), **origin}


def name_and_style(message: Event | Rejection) -> tuple[str, str]:
    """Return the name of an event or a rejection, and its style."""
    if isinstance(message, Rejection):
        return f"refused {message.command_type}", "red"
    name = type(message.fact).__name__
    return name, STYLES[name]


def describe(message: Event | Rejection, before: Contents | None = None) -> str:
    """Return what an event changed, or why a command was refused; `before` is the previous content of the order."""
    if isinstance(message, Rejection):
        return f"{message.reason}: {message.detail}"
    return _changed(message.fact, before)


def _changed(fact: Fact, before: Contents | None) -> str:
    match fact:
        case OrderCreated():
            return f"{fact.user_id} orders {_lines(fact.lines)}; total {fact.total} {fact.currency}"
        case OrderAmended():
            return _difference(fact, before)
        case OrderPaid():
            return f"{fact.amount} {fact.currency}, payment {fact.payment_id}"
        case OrderShipped():
            return f"{fact.carrier}, {fact.tracking_number}"
        case OrderDelivered():
            return "arrived"
        case OrderCancelled():
            note = f" ({fact.note})" if fact.note else ""
            return f"{fact.reason}{note}" + (f"; refund due {fact.refund_due}" if fact.refund_due else "")


def _lines(lines: tuple[Line, ...]) -> str:
    shown = ", ".join(f"{line.quantity} {line.sku} at {line.unit_price}" for line in lines[:3])
    return shown + (f" and {len(lines) - 3} lines more" if len(lines) > 3 else "")


def _difference(after: Contents, before: Contents | None) -> str:
    if before is None:
        return f"{_lines(after.lines)}; total {after.total} {after.currency}"
    changes = []
    for field in Contents.__struct_fields__:
        old, new = getattr(before, field), getattr(after, field)
        if old != new:
            changes.append(f"{field} {_lines(new)}" if field == "lines" else f"{field} {_value(old)} -> {_value(new)}")
    return "; ".join(changes) or "nothing changed"


def _value(value: object) -> str:
    match value:
        case None:
            return "none"
        case dict():
            return "{" + ", ".join(f"{key}={text}" for key, text in value.items()) + "}"
        case _:
            return str(value)
