"""What `verify` reports: findings, each with topic, partition and offset, and the totals of what it read."""

from collections import Counter
from enum import StrEnum
from typing import Final

from msgspec import Struct, field


class Kind(StrEnum):
    """Every kind of finding."""

    UNREADABLE = "unreadable"
    WRONG_KEY = "wrong_key"
    NO_COMMAND = "no_command"
    LOST_HEAD = "lost_head"
    VERSION = "version"
    CHAIN = "chain"
    TRANSITION = "transition"
    DUPLICATE = "duplicate"
    TABLE = "table"
    POSITION = "position"
    WAITING = "waiting"
    NO_OUTCOME = "no_outcome"
    UNDECIDED = "undecided"
    LOST_TAIL = "lost_tail"


KINDS: Final[dict[Kind, str]] = {
    Kind.UNREADABLE: "A record or a batch is damaged, or cannot be decoded.",
    Kind.WRONG_KEY: "The key of a record is not that of its order or command.",
    Kind.NO_COMMAND: "An outcome does not name the command that it answers.",
    Kind.LOST_HEAD: "The first events of orders are missing.",
    Kind.VERSION: "The versions of an order are not 1, 2, 3 and so on.",
    Kind.CHAIN: "An event does not have the digest that the next event, or the table, has for it.",
    Kind.TRANSITION: "An event cannot follow the one before it: its type, its amount or its time.",
    Kind.DUPLICATE: "A command has two outcomes, or an order has one version twice.",
    Kind.TABLE: "The table's entry of an order is missing, superfluous or differs from the events.",
    Kind.POSITION: "The position of a partition is missing or does not match the other topics.",
    Kind.WAITING: "The waiting room does not match the position or the outcomes.",
    Kind.NO_OUTCOME: "A command before the position has no outcome.",
    Kind.UNDECIDED: "Commands after the position are older than the given age.",
    Kind.LOST_TAIL: "A topic ends before the end that the position recorded.",
}
"""The meaning of each kind."""


class Finding(Struct, frozen=True):
    """One damage or inconsistency. `offset` is that of the record that shows it, in `topic`."""

    kind: Kind
    topic: str
    partition: int
    offset: int
    text: str


class Totals(Struct):
    """The counts and sums of everything that was read. Money is whole minor units by currency."""

    commands: int = 0
    events: int = 0
    rejections: int = 0
    dead_letters: int = 0
    waiting: int = 0
    repeats: int = 0
    orders: Counter[str] = field(default_factory=Counter)
    """Orders by status; `unknown` if an event before cannot be read or is missing."""
    paid: Counter[str] = field(default_factory=Counter)
    refunds_due: Counter[str] = field(default_factory=Counter)


class Report(Struct):
    """The result of `verify`. Only the first `limit` findings are kept; `counts` has all of them by kind."""

    limit: int
    partitions: int = 0
    totals: Totals = field(default_factory=Totals)
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[Kind] = field(default_factory=Counter)
    not_checked: list[str] = field(default_factory=list)
    """What could not be compared, one line each."""
    operations: list[str] = field(default_factory=list)
    """What operators did that explains missing outcomes, one line each."""

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it if it is one of the first."""
        self.counts[finding.kind] += 1
        if len(self.findings) < self.limit:
            self.findings.append(finding)

    @property
    def count(self) -> int:
        """The number of all findings."""
        return self.counts.total()
