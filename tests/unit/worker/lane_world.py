"""A lane and its users without a broker, wishes that it decides, and the log that it writes."""

from collections import defaultdict
from typing import Any

from aiokafka import ConsumerRecord
from hypothesis import strategies as st

from order_service.domain.decision import UserCheck
from order_service.domain.entry import Entry
from order_service.domain.messages import Event
from order_service.wire import avro
from order_service.wire.changelog import Position, decode_entry, decode_waiting
from order_service.wire.commands import encode_json_command
from order_service.worker.inbox import decode_record
from order_service.worker.lane import Lane, LanePolicy
from tests.support.samples import NOW, amend, but, cancel, create, pay, ship
from tests.support.tables import table_of

POLICY = LanePolicy(partition_count=1, commands_topic="commands")


class World:
    """A lane, the users that are known to it, and those that it asks about."""

    def __init__(self, policy=POLICY, *, spans=None, **known):
        self.spans = spans
        self.known = known
        self.asked: list[str] = []
        self.lane = Lane(0, policy, self.known.get, self.asked.append, spans)
        self.offset = 0
        self.outcomes = []

    def record(self, value, key=None, headers=()):
        record = ConsumerRecord("commands", 0, self.offset, 7, 0, key, value, None, 0, 0, headers)
        self.offset += 1
        return record

    def send(self, *commands, now=NOW):
        records = [self.record(encode_json_command(c), c.order_id.encode()) for c in commands]
        self.lane.decide([decode_record(record) for record in records], now)
        return self.changes()

    def learn(self, user_id, check, now=NOW):
        self.known[user_id] = check
        self.lane.room.add_answer(user_id, check)
        return self.settle(now)

    def settle(self, now=NOW):
        self.lane.settle(now)
        return self.changes()

    def restart(self, log):
        """Take the lane over, as a worker that knows nothing of its users."""
        self.known.clear()
        self.asked.clear()
        self.lane = Lane(0, self.lane.policy, self.known.get, self.asked.append, self.spans)
        waiting = [decode_waiting(value) for value in log.waiting.values()]
        self.lane.restore(table_of(log.table), waiting, Position(log.next_offset, "owner", log.next_offset, None))
        self.asked += self.lane.room.users()

    def changes(self):
        changes = self.lane.take_changes()
        self.outcomes += [avro.decode_event(value or b"") for _, value, _ in changes.events]
        self.outcomes += [avro.decode_rejection(value or b"") for _, value, _ in changes.rejections]
        return changes

    def answers(self):
        """Return the outcome of each command, by its id: the version that it made, or why it was refused."""
        return {
            outcome.command_id: outcome.version if isinstance(outcome, Event) else outcome.reason
            for outcome in self.outcomes
        }


ORDERS = ("o-1", "o-2", "o-3")
CHECKS = {"u-1": UserCheck.ACTIVE, "u-2": UserCheck.NOT_FOUND, "u-3": UserCheck.NOT_ACTIVE}
users = st.sampled_from(sorted(CHECKS))


def wish(number, kind, order_id, user_id, expected_version):
    """Make a command; the same number again is a repeat, or another command under a used id."""
    command = {"create": create, "amend": amend, "pay": pay, "ship": ship, "cancel": cancel}[kind]
    changes = {"user_id": user_id} if kind == "create" else {}
    named = but(command, order_id=order_id, command_id=f"c-{number}", actor="service:shop", **changes)
    return but(named, expected_version=expected_version)


wishes = st.builds(
    wish,
    st.integers(1, 12),
    st.sampled_from(["create", "create", "amend", "pay", "ship", "cancel"]),
    st.sampled_from(ORDERS),
    users,
    st.sampled_from([None, None, None, 0, 1]),
)


class Log:
    """What a lane has written, as its next owner and its subscribers see it."""

    def __init__(self):
        self.table: dict[str, Entry] = {}
        self.waiting: dict[bytes, bytes] = {}
        self.outcomes: dict[str, list[Outcome]] = defaultdict(list)
        self.next_offset = 0

    def write(self, changes):
        """Write a turn; of an order, outcomes stand in the order in which their commands were sent."""
        self.table |= {order_id: decode_entry(value) for order_id, value in changes.table.items()}
        self.waiting |= {key: value for key, value in changes.waiting.items() if value is not None}
        for key in [key for key, value in changes.waiting.items() if value is None]:
            del self.waiting[key]  # a tombstone without its record is an error
        self.next_offset = changes.next_offset
        outcomes: list[tuple[Any, Any]] = [
            *((avro.decode_event(value or b""), headers) for _, value, headers in changes.events),
            *((avro.decode_rejection(value or b""), headers) for _, value, headers in changes.rejections),
        ]
        for outcome, headers in sorted(outcomes, key=lambda found: offset_of(found[1])):
            said = outcome.version if isinstance(outcome, Event) else outcome.reason
            self.outcomes[outcome.order_id].append((offset_of(headers), outcome.command_id, said))


Outcome = tuple[int, str, int | str]
"""The offset and the id of a command, and the version that it made or why it was refused."""


def offset_of(headers):
    return int(dict(headers)["command_offset"])
