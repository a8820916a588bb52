"""The table: what was measured, what it should be, and every run."""

from collections.abc import Sequence
from math import ceil
from statistics import median
from typing import Literal

from msgspec import Struct
from rich.console import Console
from rich.table import Table

Bound = Literal["<=", ">="]


class Target(Struct, frozen=True):
    """What a median should be; `why` says where a bound comes from that was measured itself."""

    bound: Bound
    value: float
    why: str = ""

    def is_met(self, measured: float) -> bool:
        """Compare with what was measured."""
        return measured <= self.value if self.bound == "<=" else measured >= self.value


class Row(Struct, frozen=True):
    """One figure: its runs in the order in which they were taken."""

    what: str
    unit: str
    runs: Sequence[float]
    target: Target | None = None

    @property
    def median(self) -> float:
        """The middle of the runs."""
        return median(self.runs)

    @property
    def verdict(self) -> str:
        """Met or missed; nothing where there is no target."""
        if self.target is None:
            return ""
        return "[green]met[/]" if self.target.is_met(self.median) else "[red]missed[/]"


def show(console: Console, title: str, rows: Sequence[Row]) -> None:
    """Print rows as a table."""
    table = Table(title=title, title_justify="left")
    for heading in ("what", "target", "median", "all runs", "verdict"):
        table.add_column(heading, justify="left" if heading in ("what", "verdict") else "right")
    for row in rows:
        table.add_row(
            row.what,
            "" if row.target is None else f"{row.target.bound} {number(row.target.value)} {row.target.why}".strip(),
            f"{number(row.median)} {row.unit}",
            ", ".join(map(number, row.runs)),
            row.verdict,
        )
    console.print(table)


def number(value: float) -> str:
    """Write a number with as many digits as mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]
