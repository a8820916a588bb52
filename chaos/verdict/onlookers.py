"""What those saw who stand outside: the answers that HTTP gave, and the events that readers of streams were shown.

Each is compared with the log. Nothing here asks the service.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct, field

from chaos.verdict.checker import PartitionRecords
from chaos.verdict.decoding import (
    Command,
    Event,
    Record,
    Rejection,
    Unreadable,
    decode_command,
    decode_event,
    decode_rejection,
)

STATUS_AFTER: Final = {
    "OrderCreated": "created",
    "OrderAmended": "created",
    "OrderPaid": "paid",
    "OrderShipped": "shipped",
    "OrderDelivered": "delivered",
    "OrderCancelled": "cancelled",
}


class Answered(Struct, frozen=True):
    """The final answer to a request, which its correlation id names.

    Of a success `status` and `version` are those of the order in it; of a refusal there is a `reason`.
    """

    correlation_id: str
    http_status: int
    order_id: str | None
    version: int | None
    status: str | None
    reason: str | None

    @property
    def is_success(self) -> bool:
        """Whether HTTP said that it happened."""
        return self.http_status < 300 and self.reason is None


class Shown(Struct, frozen=True, gc=False):
    """An event that a reader was shown, and where it stands in the log."""

    partition: int
    offset: int
    order_id: str
    version: int


class Reader(Struct):
    """What one reader was shown, life by life.

    It must have seen all of a partition `since` one offset and before another, `until`.
    `may_repeat` says whether a new life may be shown again what an earlier one was.
    """

    name: str
    lives: list[list[Shown]]
    since: dict[int, int]
    may_repeat: bool
    until: dict[int, int] = {}

    def offsets_of(self, partition: int) -> set[int]:
        """Return the offsets of the events of a partition that were shown."""
        return {shown.offset for life in self.lives for shown in life if shown.partition == partition}


class End(Struct, frozen=True):
    """How a process that is no worker ended during a run; `log` is the name of its log."""

    name: str
    log: str
    code: int
    was_killed: bool

    @property
    def kind(self) -> str:
        """What it was: projector, web or subscriber."""
        return self.name.partition("-")[0]


Outcome = Event | Rejection


class Request(Struct):
    """A request as the log has it: how many copies of its command there are, and all that came of them."""

    copies: int = 0
    outcomes: list[Outcome] = field(default_factory=list)


def requests_of(records: PartitionRecords, partition_count: int, prefix: str) -> dict[str, Request]:
    """Return the requests whose commands lie in a partition, by their correlation ids."""
    found: dict[str, Request] = defaultdict(Request)
    request_of: dict[int, Request] = {}
    for record in records.commands:
        command = decode_command(record, partition_count)
        if isinstance(command, Command) and (command.correlation_id or "").startswith(prefix):
            request = request_of[record.offset] = found[command.correlation_id or ""]
            request.copies += 1
    for topic, decode in ((records.events, decode_event), (records.rejections, decode_rejection)):
        for record in topic:
            answered = request_of.get(-1 if record.command_offset is None else record.command_offset)
            if answered is not None:
                answered.outcomes += _readable(record, decode)
    return dict(found)


def why_wrong(answer: Answered, outcomes: list[Outcome]) -> str | None:
    """Return why an answer is not the outcome of its command, None if it is."""
    events = [outcome for outcome in outcomes if isinstance(outcome, Event)]
    if answer.is_success:
        return _why_no_success(answer, events)
    if events:
        return f"HTTP refused it with {answer.reason}, and it happened as version {events[0].version}"
    if answer.reason not in {outcome.reason for outcome in outcomes if isinstance(outcome, Rejection)}:
        return f"HTTP refused it with {answer.reason} ({answer.http_status}), and the log does not"
    return None


def _why_no_success(answer: Answered, events: list[Event]) -> str | None:
    if len(events) != 1:
        return f"HTTP said that it happened, and the log has {len(events)} events of it"
    [event] = events
    if (answer.order_id, answer.version or 0) < (event.order_id, event.version) or answer.order_id != event.order_id:
        return f"HTTP showed {answer.order_id} at version {answer.version}, and it made version {event.version}"
    if answer.version == event.version and answer.status != STATUS_AFTER[event.type]:
        return f"HTTP showed the status {answer.status} after {event.type}"
    return None


def events_of(records: PartitionRecords) -> dict[int, tuple[str, int]]:
    """Return order and version of each event of a partition, by its offset."""
    decoded = ((record.offset, event) for record in records.events for event in _readable(record, decode_event))
    return {offset: (event.order_id, event.version) for offset, event in decoded if isinstance(event, Event)}


def unseen(reader: Reader, partition: int, events: Mapping[int, tuple[str, int]]) -> list[tuple[int, str]]:
    """Return offsets and what is wrong about what a reader saw of a partition; `events` gives order and version.

    A reader must see each event from its beginning to its end, those of an order by their versions. In one life it sees
    each once; a new life may go on earlier, but leaves nothing out.
    """
    found = []
    newest: dict[str, int] = defaultdict(int)
    for life in reader.lives:
        last: dict[str, int] = {}
        for shown in life:
            order_id, version = shown.order_id, shown.version
            if shown.partition != partition:
                continue
            what = f"{reader.name} saw version {version} of {order_id}"
            if events.get(shown.offset) != (order_id, version):
                found.append((shown.offset, f"{what}, which is not there"))
            elif version > newest[order_id] + 1 or version != last.get(order_id, version - 1) + 1:
                found.append((shown.offset, f"{what} after {last.get(order_id, newest[order_id])}"))
            elif version <= newest[order_id] and not reader.may_repeat:
                found.append((shown.offset, f"{what} again"))
            last[order_id] = version
            newest[order_id] = max(newest[order_id], version)
    missing = events.keys() - reader.offsets_of(partition)
    since = reader.since.get(partition, 0)
    return found + [
        (offset, "{} did not see {} at version {}".format(reader.name, *events[offset]))
        for offset in sorted(missing)
        if since <= offset < reader.until.get(partition, math.inf)
    ]


def _readable(record: Record, decode: Callable[[bytes | None], Outcome]) -> list[Outcome]:
    """Return what a record holds; one that cannot be read is reported elsewhere."""
    try:
        return [decode(record.value)]
    except Unreadable:
        return []
