"""The checker on honest logs, which the real lane has written, and on logs that somebody has tampered with."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from math import inf
from typing import Any

import pytest
from msgspec import structs

from chaos.tests.honest_log import (
    COMMANDS,
    LATE,
    MAIN,
    NOBODYS,
    ORDERS,
    PARTITION,
    PARTITIONS,
    POLICY,
    SIDE,
    UNPAID,
    Service,
    honest_log,
    milliseconds,
    sent,
    short_log,
    user_of,
)
from chaos.verdict.checker import (
    KINDS,
    TIME_FAR_MS,
    Findings,
    PartitionRecords,
    Terms,
    check_liveness,
    check_partition,
    nobody,
    verdict_of,
)
from chaos.verdict.decoding import (
    POSITION_KEY,
    Record,
    decode_entry,
    decode_event,
    decode_rejection,
    id_of,
    waiting_offset,
)
from chaos.verdict.liveness import Served, Touch, Watched
from chaos.verdict.model import MAX_AMENDMENTS, MAX_REMEMBERED_REFUSALS
from chaos.verdict.reading import ends_of, read, read_partition
from order_service.domain.decision import UserCheck
from order_service.domain.messages import FACT_TYPES, Command
from order_service.domain.refusals import Reason
from order_service.wire import avro, changelog
from order_service.wire.commands import encode_json_command
from order_service.wire.dead_letters import DeadLetterReason
from tests.support.claiming import open_transaction
from tests.support.samples import DANA, LATER, NOW, SHOP, amend, but, cancel, create, entry_after, pay, short_of
from tests.support.service import vars_of


def anybody(_user_id: str) -> bool:
    return True


TERMS = Terms(
    partition_count=PARTITIONS,
    commands_topic=COMMANDS,
    user_of=user_of,
    user_deadline_s=30.0,
    payment_due_s=20.0,
    may_time_out=anybody,
    on_its_way_s=0.02,
)


@pytest.mark.parametrize("seed", range(4))
def test_of_an_honest_log_nothing_is_found(seed):
    log, _ = honest_log(seed)
    assert check_partition(log, TERMS).found == []


@pytest.mark.parametrize("pointer", [None, "", "/", "/lines/501/sku", "/lines/0/price", "/lines/sku", "carrier"])
def test_a_refused_value_that_is_not_pointed_to_is_found(pointer):
    log, _ = honest_log(0, 500)
    place = place_of(log.rejections, lambda record: decode_rejection(record.value).pointer is not None)
    log.rejections[place] = rejection_with(pointer=pointer)(log.rejections[place])
    assert Counter(finding.kind for finding in check_partition(log, TERMS).found) == {"disorder": 1}


def test_what_is_counted_is_what_the_lane_has_counted():
    log, service = honest_log(0, 500)
    outcomes = check_partition(log, TERMS).outcomes
    assert outcomes["events"].total() == service.outcomes["accepted"]
    assert outcomes["rejections"].total() == service.outcomes["rejected"]
    assert outcomes["repeats"].total() == service.outcomes["repeated"] > 0
    assert outcomes["dead_letters"].total() == len(log.dead_letters) > 0


def test_the_load_has_all_that_can_happen():
    logs = [honest_log(seed) for seed in range(4)]
    rejections = [decode_rejection(record.value) for log, _ in logs for record in log.rejections]
    events = [decode_event(record.value) for log, _ in logs for record in log.events]
    letters = [record for log, _ in logs for record in log.dead_letters]
    entries = [record.value or b"" for log, _ in logs for record in log.table if record.key != POSITION_KEY]
    assert {rejection.reason for rejection in rejections} == set(Reason)
    assert {event.type for event in events} == {fact.__name__ for fact in FACT_TYPES}
    assert {letter.header("dl_reason") for letter in letters} == {reason.encode() for reason in DeadLetterReason}
    assert sum(event.command_id == id_of(event.order_id, "payment_timeout") for event in events) > 20
    assert max(event.version for event in events) > MAX_AMENDMENTS
    assert max(len(decode_entry(entry).refused) for entry in entries) == MAX_REMEMBERED_REFUSALS
    assert sum(service.outcomes["repeated"] for _, service in logs) > 100


# Logs that somebody has tampered with: each case says exactly what is found


def test_of_the_short_log_nothing_is_found():
    assert check_partition(short_log(), TERMS).found == []


Tampering = Callable[[PartitionRecords], None]
Which = Callable[[Record], bool]


def dropped(name: str, which: Which) -> Tampering:
    return lambda log: getattr(log, name).pop(place_of(getattr(log, name), which))


def doubled(name: str, which: Which, change: Callable[[Record], Record] = lambda record: record) -> Tampering:
    def tamper(log: PartitionRecords) -> None:
        records = getattr(log, name)
        again = change(records[place_of(records, which)])
        records.append(but(again, offset=records[-1].offset + 1))

    return tamper


def altered(name: str, which: Which, change: Callable[[Record], Record]) -> Tampering:
    def tamper(log: PartitionRecords) -> None:
        records = getattr(log, name)
        place = place_of(records, which)
        records[place] = change(records[place])

    return tamper


def swapped(name: str, one: Which, other: Which) -> Tampering:
    def tamper(log: PartitionRecords) -> None:
        records = getattr(log, name)
        first, second = place_of(records, one), place_of(records, other)
        records[first], records[second] = (
            but(records[second], offset=records[first].offset),
            but(records[first], offset=records[second].offset),
        )

    return tamper


def place_of(records: list[Record], which: Which) -> int:
    """Find the newest record of a kind."""
    return max(place for place, record in enumerate(records) if which(record))


def event(order_id: str, version: int) -> Which:
    return lambda record: (
        (order_id, version) == (decode_event(record.value).order_id, decode_event(record.value).version)
    )


def rejection(order_id: str, command_id: str) -> Which:
    def which(record: Record) -> bool:
        said = decode_rejection(record.value)
        return (said.order_id, said.command_id) == (order_id, command_id)

    return which


def newest(_: Record) -> bool:
    return True


def of(key: bytes) -> Which:
    return lambda record: record.key == key


def value_with(old: bytes, new: bytes) -> Callable[[Record], Record]:
    def change(record: Record) -> Record:
        assert record.value is not None
        assert record.value.count(old) == 1
        return but(record, value=record.value.replace(old, new))

    return change


def event_with(**changes: Any) -> Callable[[Record], Record]:
    return lambda record: but(record, value=avro.encode_event(but(avro.decode_event(record.value or b""), **changes)))


def rejection_with(**changes: Any) -> Callable[[Record], Record]:
    return lambda record: but(
        record, value=avro.encode_rejection(but(avro.decode_rejection(record.value or b""), **changes))
    )


def entry_with(**changes: Any) -> Callable[[Record], Record]:
    return lambda record: but(
        record, value=changelog.encode(but(changelog.decode_entry(record.value or b""), **changes))
    )


def header_with(name: str, value: bytes | None) -> Callable[[Record], Record]:
    """Change a header; None takes it away."""

    def change(record: Record) -> Record:
        kept = tuple((found, old if found != name else value) for found, old in record.headers)
        return but(record, headers=tuple(header for header in kept if header != (name, None)))

    return change


def moved(by: int) -> Callable[[Record], Record]:
    def change(record: Record) -> Record:
        position = changelog.decode_position(record.value or b"")
        return but(record, value=changelog.encode(but(position, next_offset=position.next_offset + by)))

    return change


def value(said: bytes | None) -> Callable[[Record], Record]:
    return lambda record: but(record, value=said)


def never_taken(log: PartitionRecords) -> None:
    """Leave a command behind the position."""
    newest = log.commands[-1]
    key, said, _ = sent(but(cancel, command_id="cancel-9"), SIDE)
    log.commands.append(but(newest, offset=newest.offset + 1, key=key, value=said))


def still_waiting(log: PartitionRecords) -> None:
    """Keep what has waited waiting: no outcome, no tombstone, no order."""
    for tamper in (
        dropped("events", event(LATE, 1)),
        dropped("rejections", rejection(LATE, "amend-1")),
        dropped("table", of(LATE.encode())),
        dropped("waiting", newest),
        dropped("waiting", newest),
    ):
        tamper(log)


def decided_again(log: PartitionRecords) -> None:
    """Add the second outcome of a command, decided after all others by a worker that should be dead."""
    newest = decode_event(log.events[place_of(log.events, event(SIDE, 2))].value)
    doubled("events", event(SIDE, 2), event_with(event_id=id_of(SIDE, "3"), version=3))(log)
    assert newest.version == 2


TAMPERED = [
    pytest.param(dropped("events", event(MAIN, 1)), {"lost": 1}, id="the first event is dropped"),
    pytest.param(dropped("events", event(MAIN, 3)), {"lost": 1}, id="an event is dropped"),
    pytest.param(dropped("events", event(MAIN, 5)), {"lost": 1}, id="the last event is dropped"),
    pytest.param(dropped("rejections", rejection(SIDE, "ship-1")), {"lost": 1}, id="a rejection is dropped"),
    pytest.param(dropped("rejections", rejection(NOBODYS, "create-1")), {"lost": 1}, id="a refused create is dropped"),
    pytest.param(dropped("events", event(UNPAID, 2)), {"state": 1}, id="an order's own cancellation is dropped"),
    pytest.param(never_taken, {"lost": 1, "state": 1}, id="a command stays behind the position"),
    pytest.param(doubled("events", event(MAIN, 2)), {"duplicate": 1}, id="an event is doubled"),
    pytest.param(doubled("events", event(UNPAID, 2)), {"duplicate": 1}, id="an order's own cancellation is doubled"),
    pytest.param(doubled("rejections", newest), {"duplicate": 1}, id="a rejection is doubled"),
    pytest.param(doubled("dead_letters", newest), {"duplicate": 1}, id="a dead letter is doubled"),
    pytest.param(decided_again, {"duplicate": 1}, id="a command is decided twice"),
    pytest.param(
        doubled("rejections", rejection(SIDE, "ship-1"), header_with("command_offset", b"7")),
        {"duplicate": 1},
        id="a repeat is answered",
    ),
    pytest.param(
        doubled("events", newest, header_with("command_offset", b"999")),
        {"phantom": 1},
        id="an event answers no command",
    ),
    pytest.param(
        doubled("events", newest, header_with("command_offset", None)), {"phantom": 1}, id="an event names no command"
    ),
    pytest.param(
        doubled("rejections", newest, header_with("command_offset", b"0")),
        {"phantom": 1},
        id="another order is refused",
    ),
    pytest.param(
        doubled("dead_letters", newest, header_with("command_offset", b"999")),
        {"phantom": 1},
        id="a dead letter answers no command",
    ),
    pytest.param(
        altered("events", event(MAIN, 2), header_with("command_offset", b"0")),
        {"phantom": 1, "lost": 1},
        id="an event answers another command",
    ),
    pytest.param(swapped("events", event(MAIN, 2), event(MAIN, 3)), {"disorder": 1}, id="two events are swapped"),
    pytest.param(swapped("events", event(MAIN, 1), event(SIDE, 1)), {}, id="of different orders any may come first"),
    pytest.param(
        swapped("rejections", rejection(SIDE, "ship-1"), rejection(SIDE, "ship-2")),
        {"disorder": 1},
        id="two rejections are swapped",
    ),
    pytest.param(
        altered("events", event(MAIN, 1), value_with(b"mug-blue", b"mug-blua")),
        {"disorder": 1, "chain": 1},
        id="a byte of an event is changed",
    ),
    pytest.param(
        altered("events", event(MAIN, 4), value_with(b"DHL", b"DHM")),
        {"disorder": 1, "chain": 1},
        id="a byte of a later event is changed",
    ),
    pytest.param(
        altered("events", event(MAIN, 5), value_with(b"deliver-1", b"deliver-2")),
        {"phantom": 1, "lost": 1},
        id="a byte of a command's name is changed",
    ),
    pytest.param(
        altered("events", event(LATE, 1), value_with(b"mug-blue", b"mug-blua")),
        {"disorder": 1, "state": 1},
        id="a byte of the newest event is changed, whose digest is in the table",
    ),
    pytest.param(altered("events", event(MAIN, 3), value(b"\0")), {"chain": 1}, id="an event cannot be read"),
    pytest.param(altered("rejections", newest, value(b"{}")), {"chain": 1}, id="a rejection cannot be read"),
    pytest.param(
        altered("events", event(MAIN, 3), event_with(previous_digest=bytes(16))),
        {"chain": 2},
        id="an event follows another one",
    ),
    pytest.param(
        altered("events", event(MAIN, 3), event_with(command_digest=bytes(16))),
        {"chain": 2},
        id="an event is of another command by its digest",
    ),
    pytest.param(
        altered("rejections", rejection(SIDE, "ship-1"), rejection_with(command_digest=bytes(16))),
        {"chain": 1},
        id="a rejection is of another command by its digest",
    ),
    pytest.param(
        altered("events", event(MAIN, 2), event_with(occurred_at=NOW - timedelta(milliseconds=1))),
        {"disorder": 1, "chain": 1},
        id="time runs backwards",
    ),
    pytest.param(
        altered("events", event(MAIN, 2), event_with(version=7)), {"disorder": 1, "chain": 1}, id="a version is skipped"
    ),
    pytest.param(
        altered("rejections", rejection(SIDE, "ship-1"), rejection_with(reason="already_paid")),
        {"disorder": 1},
        id="a command is refused for another reason",
    ),
    pytest.param(
        altered("rejections", rejection(SIDE, "ship-1"), rejection_with(status="paid")),
        {"disorder": 1},
        id="a command is refused in another status",
    ),
    pytest.param(
        altered("rejections", rejection(SIDE, "ship-1"), rejection_with(pointer="/carrier")),
        {"disorder": 1},
        id="a refusal for a status points to a field",
    ),
    pytest.param(
        altered("rejections", rejection(NOBODYS, "create-1"), rejection_with(reason="user_check_timed_out")),
        {"disorder": 1},
        id="a user check times out too early",
    ),
    pytest.param(
        altered("rejections", rejection(NOBODYS, "create-1"), rejection_with(reason="too_many_waiting")),
        {"disorder": 1},
        id="nothing waits that would be too much",
    ),
    pytest.param(
        altered("rejections", rejection(NOBODYS, "create-1"), rejection_with(reason="deadline_passed")),
        {"disorder": 1},
        id="a deadline that no command set has passed",
    ),
    pytest.param(
        doubled(
            "events",
            event(UNPAID, 2),
            lambda record: but(
                event_with(order_id=MAIN, event_id=id_of(MAIN, "6"), version=6)(record), key=MAIN.encode()
            ),
        ),
        {"phantom": 1},
        id="an order cancels itself by another's command",
    ),
    pytest.param(altered("table", of(POSITION_KEY), moved(2)), {"state": 1}, id="the position is past the end"),
    pytest.param(altered("table", of(POSITION_KEY), moved(-1)), {"state": 1}, id="the position is behind"),
    pytest.param(altered("table", of(POSITION_KEY), value(b"\1\x90")), {"state": 1}, id="the position is invalid"),
    pytest.param(lambda log: log.table.clear(), {"state": 5}, id="the table is empty"),
    pytest.param(altered("table", of(MAIN.encode()), value(None)), {"state": 1}, id="an order is not in the table"),
    pytest.param(altered("table", of(MAIN.encode()), value(b"\2")), {"state": 1}, id="an entry cannot be read"),
    pytest.param(
        doubled("table", of(MAIN.encode()), lambda record: but(record, key=NOBODYS.encode())),
        {"state": 1},
        id="an order is in the table that was refused",
    ),
    pytest.param(
        doubled("table", of(MAIN.encode()), lambda record: but(record, key=b"nothing")),
        {"state": 1},
        id="an order is in the table without a create",
    ),
    pytest.param(
        altered("table", of(SIDE.encode()), entry_with(head=bytes(16))), {"state": 1}, id="an entry has another head"
    ),
    pytest.param(
        altered("table", of(SIDE.encode()), entry_with(created_at=LATER)), {"state": 1}, id="an entry has another time"
    ),
    pytest.param(
        altered("table", of(SIDE.encode()), entry_with(refused=())), {"state": 1}, id="an entry forgets refusals"
    ),
    pytest.param(
        altered("table", of(LATE.encode()), value_with(b"mug-blue", b"mug-blua")),
        {"state": 1},
        id="a byte of an entry is changed",
    ),
    pytest.param(dropped("waiting", newest), {"waiting": 1}, id="a command that is decided stays in the waiting room"),
    pytest.param(still_waiting, {"waiting": 2}, id="commands wait for ever"),
    pytest.param(dropped("dead_letters", newest), {"dead": 1}, id="a dead letter is dropped"),
    pytest.param(
        altered("dead_letters", of(b"key"), value_with(b"{poison}", b"{poisoN}")),
        {"dead": 1},
        id="a byte of a dead letter is changed",
    ),
    pytest.param(
        altered("dead_letters", of(b"key"), header_with("orig_trace", None)),
        {"dead": 1},
        id="a dead letter lacks a header of its command",
    ),
    *(
        pytest.param(
            altered("dead_letters", of(b"key"), header_with(name, changed)),
            {"dead": 1},
            id=f"a dead letter has another {name}",
        )
        for name in ("dl_reason", "dl_topic", "dl_partition", "dl_offset", "dl_timestamp")
        for changed in (None, b"7")
    ),
    pytest.param(
        doubled("dead_letters", of(b"key"), header_with("command_offset", b"0")),
        {"dead": 1},
        id="a command is buried that was decided as well",
    ),
]


@pytest.mark.parametrize(("tamper", "counts"), TAMPERED)
def test_a_log_that_was_tampered_with_shows_just_that(tamper, counts):
    log = short_log()
    tamper(log)
    assert check_partition(log, TERMS).counts == counts


@pytest.mark.parametrize(("terms", "counts"), [
    pytest.param(but(TERMS, user_of=lambda _: "unknown"), {"disorder": 4}, id="users are served who are unknown"),
    pytest.param(but(TERMS, user_of=lambda _: "active"), {"disorder": 1}, id="a user is refused who is active"),
    pytest.param(but(TERMS, partition_count=1), {"dead": 15, "phantom": 15, "state": 4}, id="keys lie elsewhere"),
])  # fmt: skip
def test_on_other_terms_an_honest_log_is_not_right(terms, counts):
    assert check_partition(short_log(), terms).counts == counts


# What has its time


def unpaid_log(*late: Command, payment_due_s: float = 20.0) -> PartitionRecords:
    """Return the log of an order that cancels itself when its payment is due; what is late is decided after that."""
    service = Service(0, but(POLICY, payment_due_s=payment_due_s))
    service.known["dana"] = UserCheck.ACTIVE
    service.turn([sent(create, UNPAID)])
    service.now += timedelta(seconds=payment_due_s)
    service.turn([sent(command, UNPAID) for command in late])
    return service.end()


def came(before_due: timedelta, log: PartitionRecords) -> PartitionRecords:
    """Date all but the create so long before the payment was due, and earlier by the time on its way."""
    came_at = milliseconds(NOW + timedelta(seconds=20.0 - TERMS.on_its_way_s) - before_due)
    commands = [log.commands[0], *(but(record, timestamp_ms=came_at) for record in log.commands[1:])]
    return but(log, commands=commands)


@pytest.mark.parametrize(
    ("off_ms", "counts"),
    [
        pytest.param(TIME_FAR_MS, {}, id="as far as it may be"),
        pytest.param(TIME_FAR_MS + 1, {"disorder": 1}, id="a clock that was behind"),
        pytest.param(-TIME_FAR_MS - 1, {"disorder": 1}, id="a clock that was ahead"),
    ],
)
def test_the_time_in_an_outcome_is_near_the_broker_s(off_ms, counts):
    log = unpaid_log()
    created, *others = log.events
    appended = but(created, timestamp_ms=decode_event(created.value).occurred_at + off_ms)
    assert check_partition(but(log, events=[appended, *others]), TERMS).counts == counts


JUST, NOT = timedelta(milliseconds=1), timedelta(0)


@pytest.mark.parametrize(("late", "before_due", "counts"), [
    pytest.param([pay], JUST, {"disorder": 1}, id="a payment that came in time is overtaken"),
    pytest.param([pay], NOT, {}, id="one that came when it was due may be"),
    pytest.param([pay, but(pay, command_id="pay-2")], JUST, {"disorder": 1}, id="two are no other fault"),
    pytest.param([but(pay, amount=1)], JUST, {"disorder": 1}, id="of another amount it is overtaken as well"),
    pytest.param([but(pay, expected_version=1)], JUST, {"disorder": 1}, id="or of the version that it knew"),
    pytest.param([but(pay, expected_version=7)], JUST, {}, id="it is refused so in either order"),
    pytest.param([but(pay, actor=DANA)], JUST, {}, id="it is not allowed in either order"),
    pytest.param([but(pay, decide_by=NOW)], JUST, {}, id="it is too late in either order"),
    pytest.param([amend], JUST, {}, id="nothing is said of what is no payment"),
])  # fmt: skip
def test_a_payment_that_came_before_it_was_due_is_not_overtaken(late, before_due, counts):
    assert check_partition(came(before_due, unpaid_log(*late)), TERMS).counts == counts


def test_an_order_that_is_cancelled_by_somebody_is_not_paid_either():
    service = Service(0)
    service.known["dana"] = UserCheck.ACTIVE
    service.turn([sent(create, UNPAID), sent(cancel, UNPAID), sent(pay, UNPAID)])
    assert check_partition(service.end(), TERMS).counts == {}


@pytest.mark.parametrize(("payment_due_s", "counts"), [
    pytest.param(20.0, {}, id="when it is due"),
    pytest.param(20.001, {"disorder": 1}, id="a millisecond too early"),
    pytest.param(3600.0, {"disorder": 1}, id="far too early, and the payment that comes then is no other fault"),
    pytest.param(None, {"disorder": 1}, id="though nothing is ever due"),
    pytest.param(0, {"disorder": 1}, id="though nothing is ever due, in another word"),
])  # fmt: skip
def test_an_order_cancels_itself_when_its_payment_is_due(payment_due_s, counts):
    assert check_partition(unpaid_log(pay), but(TERMS, payment_due_s=payment_due_s)).counts == counts


def test_a_lane_that_cancels_unpaid_orders_at_once_is_seen():
    assert check_partition(unpaid_log(pay, payment_due_s=0.001), TERMS).counts == {"disorder": 1}


@pytest.mark.parametrize(("copied", "counts"), [("a copy", {}), ("another", {"lost": 1})])
def test_a_copy_of_a_command_that_waits_in_a_full_room_needs_no_outcome(copied, counts):
    service = Service(1)
    user_id, order_id = "late-1", ORDERS[0]
    first = but(create, order_id=order_id, user_id=user_id, actor=SHOP)
    waiting: list[Command] = [
        first,
        *(but(amend, order_id=order_id, command_id=f"a{n}", actor=SHOP) for n in range(31)),
    ]
    service.turn([(command.order_id.encode(), encode_json_command(command), ()) for command in waiting])
    service.now += timedelta(seconds=1)
    last: Command = first if copied == "a copy" else but(cancel, order_id=order_id, command_id="one-more", actor=SHOP)
    service.turn([(order_id.encode(), encode_json_command(last), ())])
    service.topics["rejections"].records.clear()  # that another one is refused is lost
    service.now += timedelta(seconds=1)
    service.answer(user_id)
    assert check_partition(service.end(), TERMS).counts == counts


@pytest.mark.parametrize(("may_time_out", "counts"), [
    pytest.param(anybody, {}, id="when the User Service is away"),
    pytest.param(lambda user_id: user_id.startswith("never"), {}, id="who is known for it"),
    pytest.param(lambda user_id: user_id.startswith("late"), {"disorder": 1}, id="but not another one"),
    pytest.param(nobody, {"disorder": 1}, id="but no other user"),
])  # fmt: skip
def test_a_user_is_not_forgotten_until_the_deadline(may_time_out, counts):
    service = Service(0)
    service.turn([sent(but(create, user_id="never-1", actor=SHOP), LATE)])
    found = check_partition(service.end(), but(TERMS, may_time_out=may_time_out))
    assert found.counts == counts
    assert found.outcomes["rejections"] == {"user_check_timed_out": 1}


@pytest.mark.parametrize("seed", range(3))
def test_one_fault_in_a_long_log_is_found_and_does_not_count_many_times(seed):
    log, _ = honest_log(seed, 120)
    chance = random.Random(seed)
    for _ in range(30):
        name = chance.choice(("events", "rejections", "dead_letters"))
        records = getattr(log, name)
        place = chance.randrange(len(records))
        tampered = structs.replace(log, **{name: records[:place] + records[place + 1 :]})
        found = check_partition(tampered, TERMS).counts
        assert 1 <= sum(found.values()) <= 2, (name, records[place], found)


@pytest.mark.parametrize("seed", range(3))
def test_any_byte_that_is_changed_in_an_event_is_found(seed):
    log, _ = honest_log(seed, 120)
    chance = random.Random(seed)
    for _ in range(30):
        place = chance.randrange(len(log.events))
        said = bytearray(log.events[place].value or b"")
        said[chance.randrange(len(said))] ^= chance.randrange(1, 256)
        events = [*log.events[:place], but(log.events[place], value=bytes(said)), *log.events[place + 1 :]]
        found = check_partition(structs.replace(log, events=events), TERMS).counts
        assert 1 <= sum(found.values()) <= 4, (log.events[place], bytes(said), found)


# Whether the partition kept moving

PROMPT_S, HELD_UP_S, BOUND_S = 0.1, 20.0, 5.0


def watched_of(log: PartitionRecords, *, held_up_from: float = inf, touches: Sequence[Touch] = ()) -> Watched:
    """Return when a consumer saw a log: a command a second, each outcome at once.

    From `held_up_from` on there is no outcome for 20 s.

    What waited for its user is seen a minute later.
    """
    waited = {waiting_offset(record.key or b"") for record in log.waiting}
    watched = Watched(BOUND_S, BOUND_S, touches=list(touches))
    seen = watched.seen[PARTITION]
    seen.commands = {record.offset: float(record.offset) for record in log.commands}
    for record in (*log.events, *log.rejections, *log.dead_letters):
        offset = record.command_offset
        if offset is not None:
            decided_s = offset if offset < held_up_from else max(offset, held_up_from + HELD_UP_S)
            seen.outcomes.append((decided_s + (60.0 if offset in waited else PROMPT_S), offset))
    seen.outcomes.sort()
    return watched


def liveness_of(log: PartitionRecords, watched: Watched) -> Findings:
    findings = Findings(PARTITION)
    check_liveness(log, TERMS, watched, findings)
    return findings


def test_prompt_decisions_and_commands_that_wait_for_a_user_leave_no_silence():
    log = short_log()
    assert any(waiting_offset(record.key or b"") is not None for record in log.waiting)
    findings = liveness_of(log, watched_of(log))
    assert findings.counts == {}
    assert 0.0 < findings.silence_s <= PROMPT_S + 0.001


HERE, ELSEWHERE_ONLY = frozenset({PARTITION}), frozenset({PARTITION + 1})


@pytest.mark.parametrize(
    ("touches", "counts"),
    [
        pytest.param([], {"silence": 1}, id="no fault"),
        pytest.param([Touch(6.0, 6.0, HERE, "kill")], {}, id="its worker was killed"),
        pytest.param([Touch(6.0, 6.0, None, "broker")], {}, id="a broker was away"),
        pytest.param([Touch(6.0, 6.0, ELSEWHERE_ONLY, "kill")], {"silence": 1}, id="another worker was killed"),
        pytest.param([Touch(1.0, 2.0, HERE, "pause")], {"silence": 1}, id="its worker was hit long before"),
        pytest.param([Touch(1.0, 5.0, HERE, "pause")], {}, id="its worker slept until then"),
        pytest.param([Touch(90.0, 90.0, HERE, "kill")], {"silence": 1}, id="its worker was hit long after"),
    ],
)
def test_a_silence_is_found_that_no_fault_of_its_partition_explains(touches, counts):
    log = short_log()
    findings = liveness_of(log, watched_of(log, held_up_from=5.0, touches=touches))
    assert findings.counts == counts
    assert (findings.silence_s > HELD_UP_S) == bool(counts)


def served(*seconds: float, running: frozenset[int] = HERE, parked: frozenset[int] = frozenset()) -> list[Served]:
    return [Served(at_s, running, parked) for at_s in seconds]


@pytest.mark.parametrize(
    ("samples", "times"),
    [
        pytest.param(served(1, 2, 6, 7), 0, id="a lane that runs"),
        pytest.param([*served(1), *served(2, 9, running=frozenset(), parked=HERE)], 0, id="a lane that is parked"),
        pytest.param([*served(1), *served(2, 5, running=ELSEWHERE_ONLY), *served(6)], 0, id="a takeover in time"),
        pytest.param([*served(1), *served(2, 6, running=ELSEWHERE_ONLY), *served(7)], 1, id="a takeover too late"),
        pytest.param([*served(1), *served(2, running=ELSEWHERE_ONLY)], 1, id="a lane that does not run at the end"),
        pytest.param(served(2, 4, running=frozenset()), 1, id="a lane that never ran"),
        pytest.param([*served(1, running=frozenset()), *served(9)], 1, id="a lane that ran late"),
    ],
)
def test_a_lane_is_stuck_that_neither_runs_nor_is_parked(samples, times):
    log = short_log()
    watched = but(watched_of(log), served=samples)
    findings = liveness_of(log, watched)
    assert findings.counts == ({"stuck": times} if times else {})
    assert verdict_of([but(findings, commands=1)], faults=0, seed=0).is_clean == (times == 0)


@pytest.mark.parametrize(
    ("touches", "times"),
    [
        pytest.param([Touch(2.0, 3.0, None, "broker")], 1, id="a broker was away for a moment"),
        pytest.param([Touch(0.0, 3.0, None, "broker"), Touch(2.0, 9.0, None, "broker")], 0, id="a broker was away"),
        pytest.param([Touch(3.0, 4.5, None, "broker")] * 2, 1, id="the same time counts once"),
        pytest.param([Touch(0.0, 9.0, HERE, "pause")], 1, id="its worker slept"),
    ],
)
def test_the_time_without_brokers_does_not_make_a_lane_stuck(touches, times):
    log = short_log()
    samples = [*served(1), *served(2, 8, running=frozenset()), *served(8)]
    findings = liveness_of(log, but(watched_of(log, touches=touches), served=samples))
    assert findings.counts == ({"stuck": times} if times else {})


# Orders of an earlier time


@pytest.mark.parametrize(
    ("value", "counts"),
    [
        pytest.param(b"as it was", {}, id="an old order is as it was"),
        pytest.param(b"otherwise", {"state": 1}, id="an old order has changed"),
        pytest.param(None, {"state": 1}, id="an old order is gone"),
    ],
)
def test_old_orders_must_stay_in_the_table(value, counts):
    log = short_log()
    log.table.append(Record(PARTITION, 10**6, 0, b"old-1", value))
    assert check_partition(log, but(TERMS, old={b"old-1": b"as it was"})).counts == counts


def test_old_orders_may_forget_their_commands_and_nothing_else():
    old = changelog.encode(entry_after([create, cancel]))
    short = short_of(changelog.decode_entry(old))
    counts = []
    for value in (changelog.encode(short), changelog.encode(but(short, version=3))):
        for may_forget in (True, False):
            log = short_log()
            log.table.append(Record(PARTITION, 10**6, 0, b"old-1", value))
            found = check_partition(log, but(TERMS, old={b"old-1": old}, may_forget=may_forget))
            counts.append((found.forgotten, found.counts))
    assert counts == [(1, {}), (0, {"state": 1}), (0, {"state": 1}), (0, {"state": 1})]


# The verdict


def test_the_verdict_is_one_line_of_all_partitions():
    honest, tampered = short_log(), short_log()
    tampered.events.pop()
    verdict = verdict_of([check_partition(log, TERMS) for log in (honest, tampered)], faults=3, seed=7)
    assert str(verdict) == (
        "lost=1 duplicate=0 phantom=0 disorder=0 state=0 chain=0 waiting=0 dead=0 silence=0.0 stuck=0"
        " wrong_answers=0 unseen=0 ended=0 commands=34 faults=3 seed=7"
    )
    assert not verdict.is_clean
    assert verdict_of([check_partition(honest, TERMS)], faults=0, seed=0).is_clean


def test_the_verdict_says_what_came_of_all_commands():
    verdict = verdict_of([check_partition(short_log(), TERMS) for _ in range(2)], faults=0, seed=0)
    assert list(verdict.outcome_lines()) == [
        "events: OrderAmended=4 OrderCreated=8 OrderDelivered=2 OrderPaid=4 OrderShipped=2 payment_timeout=2",
        "rejections: not_paid=4 order_not_found=2 user_not_found=2",
        "dead_letters: empty=2 not_json=2",
        "repeats: ShipOrder=2",
    ]
    assert list(verdict_of([], faults=0, seed=0).outcome_lines())[-1] == "repeats: none"


def test_of_no_commands_nothing_is_proved():
    nothing = check_partition(PartitionRecords(PARTITION, 0), TERMS)
    assert nothing.found == []
    assert not verdict_of([nothing], faults=0, seed=0).is_clean


def test_a_finding_says_what_and_where_and_no_payload():
    log = short_log()
    dropped("events", event(MAIN, 3))(log)
    [finding] = check_partition(log, TERMS).found
    assert (finding.kind, finding.partition, finding.order_id, finding.command_id) == ("lost", PARTITION, MAIN, "pay-1")
    assert finding.what == "A command has no outcome."
    assert finding.kind in KINDS


# Reading, on a real broker


def test_what_lies_behind_an_open_transaction_is_waited_for_and_never_passed_over(service):
    servers, names, topic = service.bootstrap_servers, vars_of(service.names), service.names.events
    service.producer.produce(topic, value=b"before", partition=1)
    service.producer.flush(30)
    with open_transaction(service, topic, 1) as stranger:
        service.producer.produce(topic, value=b"behind", partition=1)
        service.producer.flush(30)
        ends = ends_of(servers, list(names.values()), 1)
        with pytest.raises(TimeoutError, match=rf": {topic} \[1\] at 1 of 3$"):
            list(read(servers, ends, 1, patience_s=10.0))
        reading = read(servers, ends, 1)
        assert next(reading).value() == b"before"
        stranger.commit_transaction(30)
    assert [message.value() for message in reading] == [b"stranger", b"behind"]
    records = read_partition(servers, names, 1)
    assert [record.value for record in records.events] == [b"before", b"stranger", b"behind"]
    assert records.commands_end == 0
