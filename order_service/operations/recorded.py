"""What operators did to one partition, as far as it explains what `verify` compares."""

from msgspec import Struct, field

from order_service.wire.operations import LaneResumed, Operation


class RecordedOperations(Struct):
    """The recorded operations of one partition. Commands in `skipped` have no outcome on purpose.

    `moved_back_ms` is when the position last moved back, because the commands topic was cut or recreated: the outcomes
    up to then contain offsets of the previous topic.
    """

    skipped: list[range] = field(default_factory=list)
    moved_back_ms: int = -1
    lines: list[str] = field(default_factory=list)

    def add(self, operation: Operation, timestamp_ms: int, partition: int) -> None:
        """Add an operation, with the time of its record."""
        if not isinstance(operation, LaneResumed):
            return
        before, after = operation.previous_position, operation.position
        if before is not None and after is not None and after < before:
            self.moved_back_ms = timestamp_ms
            self.skipped.clear()
            self._note(f"position moved back from {before} to {after}", operation, partition)
        elif before is not None and after is not None and after > before:
            self.skipped.append(range(before, after))
            self._note(f"skipped the commands from offset {before} to {after - 1}", operation, partition)
        for name, (start, end) in operation.lost.items():
            self._note(f"accepted a loss: {name} from offset {start} to {end - 1}", operation, partition)

    def has_skipped(self, offset: int) -> bool:
        """Return whether an operator has skipped the command at an offset."""
        return any(offset in skipped for skipped in self.skipped)

    def _note(self, what: str, operation: LaneResumed, partition: int) -> None:
        at = operation.at.isoformat(timespec="seconds")
        self.lines.append(
            f"By an operator, partition {partition}: {what} ({operation.actor}, {at}: {operation.reason})"
        )
