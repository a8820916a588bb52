"""A lane with its topics in memory, a load of all that can come, and the honest logs that the lane writes of it."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from aiokafka import ConsumerRecord

from chaos.verdict.checker import PartitionRecords
from chaos.verdict.decoding import MAX_COMMAND_BYTES, Record
from order_service.domain.decision import UserCheck
from order_service.domain.entry import Entry as TableEntry
from order_service.domain.messages import Command, Line
from order_service.wire import avro, changelog
from order_service.wire.commands import encode_json_command, partition_of
from order_service.worker.inbox import decode_record
from order_service.worker.lane import Changes, Lane, LanePolicy
from order_service.worker.records import Record as Written
from order_service.worker.table import Table
from tests.support.samples import NOW, SHOP, amend, but, cancel, create, deliver, pay, ship

PARTITION, PARTITIONS = 1, 3
COMMANDS = "orders.commands.v1"
POLICY = LanePolicy(partition_count=PARTITIONS, commands_topic=COMMANDS, user_deadline_s=30.0, payment_due_s=20.0)


def user_of(user_id: str) -> str:
    return next((kind for kind in ("unknown", "inactive") if user_id.startswith(kind)), "active")


CHECKS = {"active": UserCheck.ACTIVE, "unknown": UserCheck.NOT_FOUND, "inactive": UserCheck.NOT_ACTIVE}


def milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


Sent = tuple[bytes | None, bytes | None, Any]
"""Key, value and headers of a command, or of a record that is not a command."""


# The service, in memory: a lane, its topics and a clock


class Topic:
    """The records of one partition of a topic, with holes between its offsets, as transactions leave them."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.end = 0

    def append(self, key: bytes | None, value: bytes | None, timestamp_ms: int, headers: Any = ()) -> Record:
        record = Record(PARTITION, self.end, timestamp_ms, key, value, tuple(headers))
        self.records.append(record)
        self.end += 1
        return record


class Service:
    """A lane that reads and writes topics in memory, and can be taken over by another one."""

    def __init__(self, seed: int, policy: LanePolicy = POLICY) -> None:
        self.random = random.Random(seed)
        self.now = NOW
        self.known: dict[str, UserCheck] = {}
        self.topics: dict[str, Topic] = defaultdict(Topic)
        self.policy = policy
        self.lane = self._new_lane()
        self.outcomes: Counter[str] = Counter()

    def _new_lane(self) -> Lane:
        return Lane(PARTITION, self.policy, self.known.get, lambda _: None)

    def turn(self, sent: Sequence[Sent] = ()) -> None:
        """Take one turn as a worker does: what waits and is answered, what is due, what came in; then write it."""
        while self.lane.settle(self.now):
            pass
        self.lane.cancel_unpaid(self.lane.due_orders(self.now), self.now)
        commands = self.topics["commands"]
        records = []
        for key, value, headers in sent:
            commands.end += self.random.random() < 0.1
            age = timedelta(milliseconds=self.random.randrange(20))  # on its way
            records.append(commands.append(key, value, milliseconds(self.now - age), headers))
        self.lane.decide([decode_record(fetched(record)) for record in records], self.now)
        changes = self.lane.take_changes()
        if changes:
            self._write(changes)

    def _write(self, changes: Changes) -> None:
        position = changelog.Position(changes.next_offset, "owner", changes.next_offset, changes.last_timestamp_ms)
        table: list[Written] = [(order_id.encode(), value, []) for order_id, value in changes.table.items()]
        table.append((changelog.POSITION_KEY, changelog.encode(position), []))
        waiting: list[Written] = [(key, value, []) for key, value in changes.waiting.items()]
        self._append("table", table)
        self._append("waiting", waiting)
        self._append("events", changes.events)
        self._append("rejections", changes.rejections)
        self._append("dead_letters", changes.dead_letters)
        self.outcomes.update(outcome for _, outcome, _ in changes.outcomes.elements())

    def _append(self, name: str, written: list[Written]) -> None:
        for key, value, headers in written:
            self.topics[name].append(key, value, milliseconds(self.now), headers)
        self.topics[name].end += bool(written)  # the control record of the transaction

    def restart(self) -> None:
        """Replace the lane by another one, which knows only what the changelogs say."""
        newest_entries = {record.key or b"": record.value or b"" for record in self.topics["table"].records}
        if changelog.POSITION_KEY not in newest_entries:
            return
        position = changelog.decode_position(newest_entries.pop(changelog.POSITION_KEY))
        table = Table()
        for key, value in newest_entries.items():
            table.restore(key.decode(), value)
        newest = {record.key: record.value for record in self.topics["waiting"].records}
        self.lane = self._new_lane()
        self.lane.restore(
            table, [changelog.decode_waiting(value) for value in newest.values() if value is not None], position
        )

    def answer(self, user_id: str) -> None:
        """Answer as the User Service."""
        self.known[user_id] = CHECKS[user_of(user_id)]
        self.lane.room.add_answer(user_id, self.known[user_id])

    def end(self) -> PartitionRecords:
        """Advance the time until nothing waits any more, and return the whole log."""
        while len(self.lane.room):
            self.now += timedelta(seconds=1)
            self.turn()
        self.topics["commands"].end += 1
        names = ("commands", "events", "rejections", "dead_letters", "table", "waiting")
        records = {name: list(self.topics[name].records) for name in names}
        return PartitionRecords(PARTITION, self.topics["commands"].end, **records)


def fetched(record: Record) -> "ConsumerRecord[bytes, bytes]":
    """Hand a record to the lane as its consumer does."""
    return ConsumerRecord(
        COMMANDS, PARTITION, record.offset, record.timestamp_ms, 0, record.key, record.value, None, 0, 0, record.headers
    )


# A load of all that can come


ORDERS = [name for n in range(400) if partition_of((name := f"order-{n}").encode(), PARTITIONS) == PARTITION]
ELSEWHERE = next(name for n in range(99) if partition_of((name := f"far-{n}").encode(), PARTITIONS) != PARTITION)
USERS = ("dana", "sam", "late-1", "late-2", "late-3", "late-4", "never-1", "unknown-1", "unknown-2", "inactive-1")
MUG = Line(sku="mug", name="Blue mug ☕", quantity=2, unit_price=1250)
CONTENTS: list[dict[str, Any]] = [
    {"lines": (MUG,)},
    {"lines": (MUG, Line(line_id="wall", sku="poster", quantity=1, unit_price=900), MUG)},
    {"discount": 100},
    {"tax": 77, "shipping": 0},
    {"discount": 0, "metadata": {"b": "2", "a": "1", "ä": "☕"}},
    {"metadata": {}},
    {"shipping_address_ref": "Größe-L ☕/50%"},
    {"lines": (Line(sku="x", quantity=1, unit_price=0),)},  # free of charge: any discount is too much
]
BAD_CONTENTS: list[dict[str, Any]] = [
    {"lines": ()},
    {"lines": (but(MUG, quantity=0),)},
    {"lines": (but(MUG, quantity=10**6 + 1),)},
    {"lines": (but(MUG, unit_price=-1),)},
    {"lines": (but(MUG, unit_price=10**12 + 1),)},
    {"lines": (but(MUG, sku="no\nid"),)},
    {"lines": (but(MUG, line_id="\t"),)},
    {"lines": (but(MUG, name="n" * 201),)},
    {"lines": (but(MUG, line_id="2"), MUG)},
    {"lines": (but(MUG, quantity=10**6, unit_price=10**12),)},
    {"lines": (MUG,) * 501},
    {"discount": -1},
    {"discount": 10**9},
    {"tax": -1},
    {"shipping": -5},
    {"tax": 2**53},
    {"shipping_address_ref": "no\x85id"},
    {"metadata": {"k" * 41: ""}},
    {"metadata": {"k": "v" * 501}},
    {"metadata": {str(n): "" for n in range(21)}},
]
BAD_PAYMENTS: list[dict[str, Any]] = [
    {"payment_id": "n" * 256},
    {"currency": "eur"},
    {"currency": "USD"},
    {"amount": 1},
    {"amount": -1},
    {"amount": 2**53 + 1},
]
BAD: dict[str, list[dict[str, Any]]] = {
    "CreateOrder": [*BAD_CONTENTS, {"currency": "eur"}, {"currency": ""}, {"user_id": ""}],
    "AmendOrder": [*BAD_CONTENTS, {"shipping_address_ref": None}],
    "PayOrder": BAD_PAYMENTS,
    "ShipOrder": [{"carrier": ""}, {"tracking_number": "t" * 256}],
    "DeliverOrder": [{}],
    "CancelOrder": [{"reason": "boredom"}, {"note": "n" * 201}],
}
DELIVER = b'{"type": "DeliverOrder", "command_id": "c", "order_id": "o", "actor": "s", %s}'
CREATE = (
    b'{"type": "CreateOrder", "command_id": "c", "order_id": "o", "actor": "s", "user_id": "u", "currency": "EUR", %s}'
)
BAD_SHAPES: list[bytes] = [
    b'{"type": "CreateOrder"}',
    b'{"type": "BuyOrder", "command_id": "c", "order_id": "o", "actor": "service:s"}',
    b'{"command_id": "c", "order_id": "o", "actor": "service:s"}',
    b'{"type": 7}',
    b'{"type": "DeliverOrder", "command_id": "c", "order_id": "o", "actor": 7}',
    b'{"type": "DeliverOrder", "command_id": "", "order_id": "o", "actor": "service:s"}',
    b'{"type": "DeliverOrder", "command_id": "c\\n", "order_id": "o", "actor": "service:s"}',
    b'{"type": "DeliverOrder", "command_id": "c", "order_id": ".o", "actor": "service:s"}',
    DELIVER % b'"more": 1',
    DELIVER % b'"decide_by": "2026-01-05T09:00:00"',
    DELIVER % b'"decide_by": 5',
    DELIVER % b'"decide_by": "0001-01-01T00:00:00+09:00"',
    DELIVER % b'"expected_version": 9223372036854775808',
    DELIVER % b'"expected_version": true',
    DELIVER % b'"expected_version": 1.5',
    DELIVER % b'"expected_version": 1e400',
    CREATE % b'"lines": [], "discount": null',
    CREATE % b'"lines": [{"sku": "s", "quantity": 1, "unit_price": 1, "type": "Line"}]',
    b"{" * 5000,
    b'{"a":' * 3000,
    b"{}",
    b"{} ",
    b"[]",
    b"x",
    b"{\xff}",
    b'{"type": "DeliverOrder", "command_id": "\\ud800"}',
    b"\0",
    b"\0\0\0\0\1",
    b"\0" + (1_000_000_007).to_bytes(4, "big"),
    b"\0" + (1_000_000_001).to_bytes(4, "big") + b"\2a",
    b"\0" + (1_000_000_012).to_bytes(4, "big") + b"\xff" * 12,
    avro.encode_command(deliver) + b"\0",
    avro.encode_command(deliver)[:-1],
    b"\xef\xbb\xbf[]",
    b"{" + b" " * MAX_COMMAND_BYTES,
    b"",
]


class Load:
    """Draws commands of every kind, most of them sensible, for many orders at once."""

    def __init__(self, seed: int, service: Service) -> None:
        self.random = random.Random(f"load {seed}")
        self.service = service
        self.sent: dict[str, list[Command]] = defaultdict(list)
        self.count = 0

    def records(self, order_id: str) -> list[Sent]:
        """Draw what is sent of one order at once: one record mostly."""
        draw = self.random.random()
        if draw < 0.03:
            return [self._poison(order_id)]
        if draw < 0.10 and self.sent[order_id]:
            return [self._record(self._again(self.random.choice(self.sent[order_id])))]
        if draw < 0.12:
            return [self._record(self._command(order_id)) for _ in range(self.random.choice((3, 20, 45)))]
        if draw < 0.13:
            return [self._record(self._amendment(order_id)) for _ in range(60)]
        return [self._record(self._command(order_id))]

    def _record(self, command: Command) -> Sent:
        self.sent[command.order_id].append(command)
        encode = self.random.choice((encode_json_command, avro.encode_command))
        headers = self.random.choice(((), (("traceparent", b"00-1"), ("empty", None))))
        return command.order_id.encode(), encode(command), headers

    def _again(self, command: Command) -> Command:
        """Repeat a command, as it was or with what does not count; or use its id for another."""
        match self.random.randrange(4):
            case 0:
                return but(command, correlation_id=f"again-{self.count}")
            case 1:
                return but(self._command(command.order_id), command_id=command.command_id)
        return command

    def _poison(self, order_id: str) -> Sent:
        key, value = order_id.encode(), encode_json_command(self._command(order_id))
        if self.random.random() < 0.5:
            value = avro.encode_command(self._command(order_id))
        match self.random.randrange(6):
            case 0:
                return self.random.choice((None, b"", b"another")), value, ()
            case 1:
                far = but(self._command(order_id), order_id=ELSEWHERE)
                return ELSEWHERE.encode(), encode_json_command(far), ()
            case 2:
                return self.random.choice((key, None)), None, ()
            case 3:  # any byte another: often still a command, or one of other content
                place = self.random.randrange(len(value))
                return key, value[:place] + self.random.randbytes(1) + value[place + 1 :], ()
            case 4:
                return key, value[: self.random.randrange(len(value))], (("trace", b"1"), ("trace", None))
        return key, self.random.choice(BAD_SHAPES), (("h", b"1"),) * self.random.randrange(3)

    def _amendment(self, order_id: str) -> Command:
        self.count += 1
        return but(amend, order_id=order_id, command_id=f"c-{self.count}", actor=SHOP)

    def _command(self, order_id: str) -> Command:
        self.count += 1
        entry = self.service.lane.table.get(order_id)
        command: Command = but(self._sensible(entry), order_id=order_id, command_id=f"c-{self.count}")
        return but(command, **self._envelope(entry), **self._content(command))

    def _sensible(self, entry: TableEntry | None) -> Any:
        """Draw what can be done with an order, mostly."""
        if entry is None and self.random.random() < 0.8:
            user_id = self.random.choice(USERS)
            return but(create, user_id=user_id, actor=self.random.choice((SHOP, f"user:{user_id}")))
        status = "absent" if entry is None else entry.order.status
        if status == "created" and self.random.random() < 0.25:
            order: Any = entry and entry.order
            return but(pay, amount=order.total, currency=order.currency)
        if status == "created" and self.random.random() < 0.85:
            return amend
        if self.random.random() < 0.8:
            return {"paid": ship, "shipped": deliver}.get(status, cancel)
        return self.random.choice((create, amend, pay, ship, deliver, cancel))

    def _envelope(self, entry: TableEntry | None) -> dict[str, Any]:
        """Draw a version that is expected, a deadline, or somebody else who asks."""
        version = 0 if entry is None else entry.version
        now = self.service.now
        match self.random.randrange(40):
            case 0 | 1:
                return {"expected_version": version}
            case 2:
                return {"expected_version": self.random.choice((version + 1, 0, 1, -1))}
            case 3:
                return {"decide_by": now + timedelta(milliseconds=self.random.choice((-1, 0, 1, 900, 9000)))}
            case 4:
                return {"decide_by": now + timedelta(seconds=self.random.choice((-60, 5, 29, 31)), microseconds=999)}
            case 5:
                return {"actor": self.random.choice(("user:eve", "user:dana", "service:s", "user:late-1"))}
            case 6:
                return {"actor": self.random.choice(("eve", "user:", "service:\t", "robot:x", "user:a\x7f", ""))}
        return {}

    def _content(self, command: Command) -> dict[str, Any]:
        kind = type(command).__name__
        if self.random.random() < 0.06:
            return self.random.choice(BAD[kind])
        return self.random.choice(CONTENTS) if kind in {"CreateOrder", "AmendOrder"} else {}


def honest_log(seed: int, turns: int = 1500) -> tuple[PartitionRecords, Service]:
    """Run the service on a load, with answers late or never, clocks set back, and other lanes taking over."""
    service = Service(seed)
    load, chance = Load(seed, service), service.random
    active = ORDERS[:6]
    for turn in range(turns):
        if turn % 16 == 0:
            active[chance.randrange(6)] = ORDERS[turn // 16 % len(ORDERS)]
        step = chance.choice((0, 3, 40, 300))
        if len(service.lane.room) == 0 and chance.random() < 0.05:
            step = -25
        service.now += timedelta(milliseconds=step)
        for user_id in list(service.lane.room.users()):
            if chance.random() < 0.05 and not user_id.startswith("never"):
                service.answer(user_id)
        for user_id in USERS[:2]:
            service.known[user_id] = UserCheck.ACTIVE
        if chance.random() < 0.1:
            service.known.pop(chance.choice(USERS), None)
        service.turn([record for _ in range(chance.randrange(4)) for record in load.records(chance.choice(active))])
        if chance.random() < 0.02:
            service.restart()
    return service.end(), service


MAIN, SIDE, NOBODYS, UNPAID, LATE = ORDERS[:5]


def short_log() -> PartitionRecords:
    """Return a log of few orders: one to its end, one amended, one refused, one never paid, one that waited."""
    service = Service(0)
    service.known |= {"dana": UserCheck.ACTIVE, "unknown-1": UserCheck.NOT_FOUND}
    service.turn([sent(create, MAIN), sent(create, SIDE), (b"key", b"{poison}", (("trace", b"1"),))])
    service.turn([sent(amend, MAIN), sent(ship, SIDE), sent(but(ship, command_id="ship-2"), SIDE), sent(ship, SIDE)])
    service.turn([sent(but(create, user_id="unknown-1", actor=SHOP), NOBODYS), sent(pay, MAIN), sent(ship, MAIN)])
    service.turn([sent(deliver, MAIN), sent(but(amend, discount=0), SIDE), (None, None, ())])
    service.turn([sent(create, UNPAID), sent(but(pay, amount=4200), SIDE)])
    service.now += timedelta(seconds=25)
    service.turn([sent(but(create, user_id="late-1", actor=SHOP), LATE), sent(amend, LATE)])
    service.now += timedelta(seconds=1)
    service.answer("late-1")
    return service.end()


def sent(command: Command, order_id: str) -> Sent:
    return order_id.encode(), encode_json_command(but(command, order_id=order_id)), ()
