"""Rounds: every peer once per round, each round beginning with another one; what others disturbed is run again."""

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Final, TypeVar

from msgspec import Struct

from bench.table import number
from bench.world import World

MAX_FOREIGN: Final = 15.0
"""The percentage of the machine that other processes may take during a run."""
ATTEMPTS: Final = 3

_T = TypeVar("_T")


class Run(Struct, frozen=True):
    """The figures of one run by name, and what other processes took of the machine meanwhile, in percent."""

    figures: dict[str, float]
    foreign: float

    @property
    def is_disturbed(self) -> bool:
        """Whether others took too much of the machine."""
        return self.foreign > MAX_FOREIGN


def rotated(items: Sequence[_T], rounds: int) -> Iterator[tuple[int, list[_T]]]:
    """Yield each round's number, from 1, and its order: it begins with the second item where the last did with one."""
    for index in range(rounds):
        first = index % len(items)
        yield index + 1, [*items[first:], *items[:first]]


def undisturbed(world: World, what: str, measure: Callable[[int], dict[str, float]]) -> Run:
    """Measure, and again while others take too much of the machine, `ATTEMPTS` times at most; print each attempt.

    Returns the attempt that others disturbed least. `measure` gets the number of the attempt, from 1.
    """
    runs: list[Run] = []
    while len(runs) < ATTEMPTS and all(run.is_disturbed for run in runs):
        world.others.percent()
        run = Run(measure(len(runs) + 1), world.others.percent())
        runs.append(run)
        figures = ", ".join(f"{name} {number(value)}" for name, value in run.figures.items())
        foreign = f"others took {run.foreign:.0f} %{', too much' if run.is_disturbed else ''}"
        world.console.print(f"[dim]{time.strftime('%H:%M:%S')} {what}: {figures}; {foreign}[/]", highlight=False)
    return min(runs, key=lambda run: run.foreign)


def table(world: World, title: str, rows: dict[tuple[str, ...], list[Run]], heads: Sequence[str]) -> None:
    """Print a Markdown table of medians (lowest to highest); `heads` name the parts of the keys of the rows."""
    columns = list(next(iter(rows.values()))[0].figures)
    lines = [f"**{title}**", "", f"| {' | '.join([*heads, *columns])} |", f"|{' --- |' * (len(heads) + len(columns))}"]
    for key, runs in rows.items():
        marked = "*" if any(run.is_disturbed for run in runs) else ""
        cells = [_cell([run.figures[column] for run in runs]) + marked for column in columns]
        lines.append(f"| {' | '.join([*key, *cells])} |")
    if any(run.is_disturbed for runs in rows.values() for run in runs):
        lines += [
            "",
            f"\\* Others took more than {MAX_FOREIGN:g} % of the machine in one of the runs, {ATTEMPTS} times.",
        ]
    world.console.print("\n" + "\n".join(lines) + "\n", highlight=False, markup=False, soft_wrap=True)


def _cell(values: list[float]) -> str:
    if len(values) == 1:
        return number(values[0])
    return f"{number(median(values))} ({number(min(values))} to {number(max(values))})"
