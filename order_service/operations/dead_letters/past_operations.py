"""What operators did about dead letters before, from the operations topic."""

from aiokafka.structs import ConsumerRecord
from msgspec import Struct, field

from order_service.errors import DecodeError
from order_service.operations.dead_letters.letter import LetterId
from order_service.wire.operations import (
    Act,
    DeadLettersApplied,
    DeadLettersDiscarded,
    DeadLettersPlanned,
    PlannedCommand,
    decode,
)


class Plan(Struct, frozen=True):
    """A plan of all its partitions. `missing` are partitions whose part is not there."""

    act: Act
    commands: dict[LetterId, PlannedCommand]
    missing: frozenset[int]


class PastOperations(Struct):
    """The operations on dead letters, by dead letter and by plan, and the records that cannot be decoded."""

    applied: dict[LetterId, DeadLettersApplied] = field(default_factory=dict)
    discarded: dict[LetterId, DeadLettersDiscarded] = field(default_factory=dict)
    plans: dict[str, dict[int, DeadLettersPlanned]] = field(default_factory=dict)
    acts: dict[LetterId, list[Act]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def add(self, record: ConsumerRecord) -> None:
        """Add a record of the operations topic."""
        partition = record.partition
        try:
            operation = decode(record.value)
        except DecodeError as error:
            self.unreadable.append(f"offset {record.offset} of {record.topic}-{partition}: {error.detail}")
            return
        offsets: list[int] = []
        if isinstance(operation, DeadLettersApplied):
            offsets = list(operation.sent)
            self.applied |= {(partition, offset): operation for offset in offsets}
        elif isinstance(operation, DeadLettersDiscarded):
            offsets = list(operation.offsets)
            self.discarded |= {(partition, offset): operation for offset in offsets}
        elif isinstance(operation, DeadLettersPlanned):
            offsets = [command.offset for command in operation.commands]
            self.plans.setdefault(operation.id, {})[partition] = operation
        for offset in offsets:
            self.acts.setdefault((partition, offset), []).append(operation)

    def is_settled(self, letter_id: LetterId) -> bool:
        """Return whether the command of a dead letter was sent again, or the dead letter was discarded."""
        return letter_id in self.applied or letter_id in self.discarded

    def state(self, letter_id: LetterId) -> str:
        """Return the state of a dead letter in a few words."""
        if applied := self.applied.get(letter_id):
            return f"applied by plan {applied.plan_id}"
        if letter_id in self.discarded:
            return "discarded"
        acts = self.acts.get(letter_id)
        return f"in plan {acts[-1].id}" if acts else "open"

    def plan(self, plan_id: str) -> Plan | None:
        """Return a plan, or None if it does not exist."""
        parts = self.plans.get(plan_id)
        if parts is None:
            return None
        act = next(iter(parts.values()))
        commands = {
            (partition, command.offset): command for partition, part in parts.items() for command in part.commands
        }
        return Plan(act, commands, frozenset(act.partitions) - parts.keys())
