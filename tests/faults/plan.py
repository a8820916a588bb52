"""What a run is made of, from its seed: sizes, and which fault comes when. The same seed plans the same run."""

import os
import random
from collections.abc import Iterator, Mapping
from typing import Final, Self

from msgspec import Struct

from order_service.users.stub import Mode

WORKER_FAULTS: Final = ("kill", "term", "pause", "join", "leave")
COMMIT_FAULTS: Final = ("lose_answer END_TXN", "lose_request END_TXN", "delay_request END_TXN", "delay_answer END_TXN")
"""Every other network fault hits the end of a transaction: a commit of which nobody knows is the worst there is."""
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
KINDS: Final = (*WORKER_FAULTS, "broker", "network", "users")


class Sizes(Struct, frozen=True, kw_only=True):
    """How large a run is, as the make variables say. `rate` is commands per second; `kinds` can leave some out."""

    seed: int = 1
    commands: int = 6_000
    orders: int = 400
    rate: int = 40
    workers: int = 3
    brokers: int = 1
    faults: int = 24
    kinds: tuple[str, ...] = KINDS

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read them from SEED, COMMANDS, ORDERS, RATE, WORKERS, BROKERS, FAULTS and KINDS (words); empty is default."""
        given = {name: value for name in cls.__struct_fields__ if (value := environment.get(name.upper(), ""))}
        kinds = tuple(given.pop("kinds", "").split()) or KINDS
        if unknown := set(kinds) - set(KINDS):
            raise ValueError(f"no such kinds of faults: {', '.join(sorted(unknown))}; there are: {', '.join(KINDS)}")
        sizes = cls(kinds=kinds, **{name: int(value) for name, value in given.items()})
        if sizes.brokers not in BROKER_FAULTS or min(sizes.commands, sizes.orders, sizes.rate, sizes.workers) < 1:
            raise ValueError("BROKERS is 1 or 3, all others are at least 1 (FAULTS can be 0)")
        return sizes

    @property
    def seconds(self) -> float:
        """How long the load takes."""
        return self.commands / self.rate


class Fault(Struct, frozen=True):
    """One fault: `at_s` seconds after the load began; `pick` (0…1) chooses whom it hits."""

    at_s: float
    kind: str
    detail: str
    pick: float


def plan_faults(sizes: Sizes) -> list[Fault]:
    """Spread the faults over the load, each kind as often as any other, and within a kind each way to do it."""
    chance = random.Random(f"faults of {sizes.seed}")
    kinds = _deck(sizes.kinds, chance)
    details = {
        "network": _in_turn(_deck(COMMIT_FAULTS, chance), _deck(NETWORK_FAULTS, chance)),
        "users": _deck(USER_FAULTS, chance),
        "broker": _deck(BROKER_FAULTS[sizes.brokers], chance),
    }
    step = sizes.seconds / (sizes.faults + 1)
    return [
        Fault(
            at_s=step * (number + 1 + chance.uniform(-0.2, 0.2)),
            kind=(kind := next(kinds)),
            detail=next(details[kind]) if kind in details else "",
            pick=chance.random(),
        )
        for number in range(sizes.faults)
    ]


def _in_turn(*decks: Iterator[str]) -> Iterator[str]:
    while True:
        yield from map(next, decks)


def _deck(cards: tuple[str, ...], chance: random.Random) -> Iterator[str]:
    """Deal cards for ever: all of them in some order, and again in another."""
    while True:
        yield from chance.sample(cards, len(cards))
