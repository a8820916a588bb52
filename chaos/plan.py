"""What a run is made of, from its seed: sizes, and which fault comes when. The same seed plans the same run."""

import os
import random
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final, Self

from msgspec import Struct, structs

from order_service.users.stub import Mode

WORKER_FAULTS: Final = ("kill", "term", "pause", "join", "leave")
COMMIT_FAULTS: Final = ("lose_answer END_TXN", "lose_request END_TXN", "delay_request END_TXN", "delay_answer END_TXN")
"""Every other network fault hits the end of a transaction: a commit that no process knows of is the worst case."""
NETWORK_FAULTS: Final = (
    "cut_all",
    "lose_answer PRODUCE",
    "lose_answer ADD_PARTITIONS_TO_TXN",
    "lose_answer INIT_PRODUCER_ID",
    "lose_answer JOIN_GROUP",
    "lose_answer FETCH",
    "freeze",
)
USER_FAULTS: Final = tuple(mode for mode in Mode if mode is not Mode.OK)
BROKER_FAULTS: Final = {
    1: ("kill", "stop"),
    3: ("kill any", "kill group coordinator", "kill transaction coordinator", "rolling restart"),
}
CHANGELOGS: Final = ("table", "waiting")
FOREIGN_TRANSACTIONS: Final = ("commands", *CHANGELOGS)
OUTPUTS: Final = ("events", "rejections", *CHANGELOGS)
STRANGERS: Final = ("with another assignor", "with the assignor of the workers")
CLOCKS: Final = ("7200", "-7200")
OUTSIDE: Final = ("projector", "web", "subscriber")
TABLE_DAMAGES: Final = ("torn", "flipped", "missing", "exchanged")
REPEATED: Final = (
    *WORKER_FAULTS,
    "broker",
    "network",
    "users",
    "compaction",
    "foreign-transaction",
    "stranger",
    "outside",
    "clock",
    "registry-away",
)
"""These come as often as each other."""
OF_THREE: Final = ("partition-away", "unwritable")
"""These come as often, with three brokers only: one is killed that a partition cannot do without."""
ON_DISK: Final = ("damaged-table",)
"""These come as often, with `ORDERS_TABLE=rocksdb` only: a worker is killed, and its tables on disk are damaged."""
ONCE: Final = ("long-pause", "hang")
"""These take long, so a run has one of each."""
STANDING: Final = ("static", "large-table", "short-segments", "forgetting")
"""These hold for the whole run."""
LAST: Final = ("tail",)
"""These come when all is decided, for a partition rests afterwards."""
KINDS: Final = (*REPEATED, *OF_THREE, *ON_DISK, *ONCE, *STANDING, *LAST)
TIMES_AGAIN: Final = 4
"""How often a fault is planned again that failed to happen, as one for which the broker was away."""
PLANNED: Final = 0.9
"""The part of the load over which faults are planned; the rest is for those that are planned again."""
SESSION_TIMEOUT_S: Final = 3.0
SILENT_S: Final = 3.0
"""How long a partition may be silent that nothing moves: a turn on a machine that has much to do beside it."""
MOVED_S: Final = SESSION_TIMEOUT_S + 5.0
"""What a rebalance adds: a dead member is waited for until its session ends, then all claim while others start."""
DISTURBED_S: Final = 4.0
"""What brokers and connections add: workers end one after the other, each with a rebalance."""
RESTORED_PER_S: Final = 25_000
"""How many older orders a claim restores in a second, beside all else."""


class Sizes(Struct, frozen=True, kw_only=True):
    """How large a run is, as the make variables say.

    `rate` is commands per second; `old` is how many orders the tables hold before it; `kinds` can leave some out. With
    `standbys` 1 each partition has a standby. `table` is where the tables are: memory or rocksdb.
    """

    seed: int = 1
    commands: int = 6_000
    orders: int = 400
    rate: int = 40
    workers: int = 3
    brokers: int = 1
    faults: int = 3 * len(REPEATED) + len(ONCE)
    old: int = 20_000
    standbys: int = 0
    table: str = "memory"
    kinds: tuple[str, ...] = KINDS

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read them from variables of their names in capitals, KINDS as words; an empty one is the default.

        `table` is the setting of the workers, `ORDERS_TABLE`.
        """
        variables = {name: name.upper() for name in cls.__struct_fields__} | {"table": "ORDERS_TABLE"}
        given = {name: value for name, variable in variables.items() if (value := environment.get(variable, ""))}
        kinds, table = tuple(given.pop("kinds", "").split()) or KINDS, given.pop("table", "memory")
        if unknown := set(kinds) - set(KINDS):
            raise ValueError(f"no such kinds of faults: {', '.join(sorted(unknown))}; there are: {', '.join(KINDS)}")
        sizes = cls(kinds=kinds, table=table, **{name: int(value) for name, value in given.items()})
        if sizes.brokers not in BROKER_FAULTS or min(sizes.commands, sizes.orders, sizes.rate, sizes.workers) < 1:
            raise ValueError("BROKERS is 1 or 3, all others are at least 1 (FAULTS and OLD can be 0)")
        return sizes

    @property
    def seconds(self) -> float:
        """How long the load takes."""
        return self.commands / self.rate

    @property
    def silence_max_s(self) -> float:
        """How long a partition may be silent whose worker no fault has hit, by the kinds of the run.

        Any fault of a worker or of the group moves all partitions, and a killed member is waited for until its session
        ends; while brokers or connections fail, workers end that no fault has hit.
        """
        kinds = set(self.kinds) if self.faults else set()
        is_disturbed = bool(kinds & {"broker", "network", *OF_THREE})
        is_moved = is_disturbed or bool(kinds & {*WORKER_FAULTS, *ON_DISK, *ONCE, "stranger"})
        restored_s = self.old / RESTORED_PER_S if "large-table" in kinds else 0.0
        return SILENT_S + (MOVED_S + restored_s) * is_moved + DISTURBED_S * is_disturbed


class Fault(Struct, frozen=True):
    """One fault: `at_s` seconds after the load began; `pick` (0…1) chooses whom it hits.

    `times_again` is how often it is planned again if it fails to happen.
    """

    at_s: float
    kind: str
    detail: str
    pick: float
    times_again: int = TIMES_AGAIN


def plan_faults(sizes: Sizes) -> list[Fault]:
    """Spread the faults over most of the load, each kind as often as any other, and within a kind each way to do it.

    Kinds that take long come once, in the first half; kinds that hold for the whole run are not planned.
    """
    chance = random.Random(f"faults of {sizes.seed}")
    details = {
        "network": _in_turn(_deck(COMMIT_FAULTS, chance), _deck(NETWORK_FAULTS, chance)),
        "users": _deck(USER_FAULTS, chance),
        "broker": _deck(BROKER_FAULTS[sizes.brokers], chance),
        "foreign-transaction": _deck(FOREIGN_TRANSACTIONS, chance),
        "stranger": _deck(STRANGERS, chance),
        "outside": _deck(OUTSIDE, chance),
        "unwritable": _deck(OUTPUTS, chance),
        "partition-away": _deck(OUTPUTS, chance),
        "clock": _deck(CLOCKS, chance),
        "damaged-table": _deck(TABLE_DAMAGES, chance),
    }
    step = PLANNED * sizes.seconds / (sizes.faults + 1)
    return [
        Fault(
            at_s=step * (number + 1 + chance.uniform(-0.2, 0.2)),
            kind=kind,
            detail=next(details[kind]) if kind in details else "",
            pick=chance.random(),
        )
        for number, kind in enumerate(_kinds(sizes, chance))
    ]


def planned_again(fault: Fault, at_s: float) -> Fault | None:
    """Return a fault that failed to happen for a later time, or None if it has failed too often."""
    return structs.replace(fault, at_s=at_s, times_again=fault.times_again - 1) if fault.times_again else None


def _kinds(sizes: Sizes, chance: random.Random) -> list[str]:
    once = [kind for kind in sizes.kinds if kind in ONCE][: sizes.faults]
    possible: tuple[str, ...] = REPEATED if sizes.brokers == 1 else (*REPEATED, *OF_THREE)
    possible += ON_DISK if sizes.table == "rocksdb" else ()
    repeated = tuple(kind for kind in sizes.kinds if kind in possible)
    dealt = islice(_deck(repeated, chance), sizes.faults - len(once)) if repeated else ()
    kinds = list(dealt)
    for kind in once:
        kinds.insert(chance.randrange(len(kinds) // 2 + 1), kind)
    return kinds


def _in_turn(*decks: Iterator[str]) -> Iterator[str]:
    while True:
        yield from map(next, decks)


def _deck(cards: tuple[str, ...], chance: random.Random) -> Iterator[str]:
    """Deal cards for ever: all of them in some order, and again in another."""
    while True:
        yield from chance.sample(cards, len(cards))
