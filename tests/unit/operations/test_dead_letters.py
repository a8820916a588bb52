"""What the commands of dead letters would result in, and which plans must not be applied."""

from datetime import UTC, timedelta
from typing import Any

import msgspec
import pytest
from aiokafka.structs import ConsumerRecord, TopicPartition

from order_service.domain.decision import Repeat, UserCheck, answer
from order_service.domain.entry import after_event
from order_service.domain.messages import Event, Rejection
from order_service.errors import DecodeError, KafkaAwayError, OperationRefused, SetupError
from order_service.kafka.topics import topic_names
from order_service.operations.dead_letters import applying, planning
from order_service.operations.dead_letters.applying import ToSend, moved_orders
from order_service.operations.dead_letters.letter import Selection, in_sequence, letter_of, name_of
from order_service.operations.dead_letters.past_operations import PastOperations
from order_service.operations.dead_letters.proposal import check_users, propose
from order_service.operations.dead_letters.scan import LetterScan
from order_service.settings import Settings
from order_service.wire.avro import MAX_CONTENT_BYTES
from order_service.wire.commands import decode_command, encode_json_command
from order_service.wire.headers import dead_letter_headers
from order_service.wire.operations import (
    DeadLettersApplied,
    DeadLettersDiscarded,
    DeadLettersPlanned,
    LaneResumed,
    PlannedCommand,
    encode,
)
from tests.support.samples import NOW, SHOP, but, cancel, create, pay, ship

SECOND = timedelta(seconds=1)
CREATE = but(create, order_id="o-1", actor=SHOP)
PAY = but(pay, order_id="o-1")
SHIP = but(ship, order_id="o-1")
CANCEL = but(cancel, order_id="o-1", actor=SHOP)
ACTIVE = {CREATE.user_id: UserCheck.ACTIVE}


def record(topic, partition, offset, key, value, headers=(), at=NOW):
    return ConsumerRecord(topic, partition, offset, round(at.timestamp() * 1000), 0, key, value, None, 0, 0, headers)


def dead(*arguments, **named):
    """Return a dead letter, as `dead_record` has it."""
    return letter_of(dead_record(*arguments, **named))


def dead_record(command, offset=0, *, key=b"", partition=0, sent=NOW, reason="unknown_schema", headers=()):
    """Return the record of a dead letter of a command, or of bytes; its key is that of the order by default."""
    value = command if isinstance(command, bytes) else encode_json_command(command)
    key = key if key != b"" or isinstance(command, bytes) else command.order_id.encode()
    error = DecodeError(reason, "of a test")
    ms = round(sent.timestamp() * 1000)
    headers = dead_letter_headers(error, "orders.commands.v1", partition, 100 + offset, ms, headers)
    return record("orders.dead-letters.v1", partition, offset, key, value, headers)


def entry_of(*commands):
    """Return the entry of an order after these commands."""
    entry = None
    for command in commands:
        event = answer(command, entry, NOW, UserCheck.ACTIVE)
        assert isinstance(event, Event)
        entry = after_event(entry, event, b"digest")
    return entry


def worker_says(command, entry):
    """Return the outcome of a command in the words of a plan."""
    outcome = answer(command, entry, NOW)
    if isinstance(outcome, Repeat):
        return planning.REPEAT
    assert isinstance(outcome, Event | Rejection)
    return planning.result_of(outcome)


def decided(commands, entry=None, users=ACTIVE, now=NOW):
    letters = [each if not hasattr(each, "order_id") else dead(each, n) for n, each in enumerate(commands)]
    letters = [dead(each, n) if isinstance(each, bytes) else each for n, each in enumerate(letters)]
    return planning.decide(letters, {} if entry is None else {"o-1": entry}, users, now)


def results(decisions):
    return [each.planned.result if each.planned else each.why_not for each in decisions]


# Deciding


@pytest.mark.parametrize(
    ("before", "commands", "expected"),
    [
        pytest.param([CREATE], [PAY], ["OrderPaid -> version 2"], id="accepted"),
        pytest.param([], [PAY], ["rejected: order_not_found"], id="an order that does not exist"),
        pytest.param([CREATE, PAY], [but(PAY, command_id="pay-2")], ["rejected: already_paid"], id="rejected"),
        pytest.param([CREATE, PAY], [PAY], ["repeat"], id="a command that the order remembers"),
        pytest.param(
            [],
            [CREATE, PAY, SHIP],
            ["OrderCreated -> version 1", "OrderPaid -> version 2", "OrderShipped -> version 3"],
            id="each after the earlier ones of its order",
        ),
        pytest.param(
            [CREATE], [PAY, PAY, SHIP], ["OrderPaid -> version 2", "repeat", "OrderShipped -> version 3"], id="a copy"
        ),
        pytest.param(
            [CREATE, PAY],
            [but(PAY, command_id="pay-2"), but(PAY, command_id="pay-2")],
            ["rejected: already_paid", "repeat"],
            id="a copy of a rejected command",
        ),
        pytest.param(
            [CREATE],
            [PAY, but(PAY, payment_id="other")],
            ["OrderPaid -> version 2", "rejected: command_id_reused"],
            id="another command with the same id",
        ),
        pytest.param(
            [CREATE, PAY],
            [but(SHIP, expected_version=1), but(SHIP, command_id="ship-2")],
            ["rejected: version_conflict", "OrderShipped -> version 3"],
            id="a condition of the command itself",
        ),
        pytest.param(
            [CREATE],
            [but(PAY, decide_by=NOW - SECOND), CANCEL],
            ["rejected: deadline_passed", "OrderCancelled -> version 2"],
            id="a deadline that has passed",
        ),
        pytest.param(
            [CREATE],
            [b"\xffno command", PAY],
            ["still cannot be decoded (unknown_format): discard it", "OrderPaid -> version 2"],
            id="bytes that cannot be decoded",
        ),
    ],
)
def test_what_dead_letters_result_in_now(before, commands, expected):
    assert results(decided(commands, entry_of(*before))) == expected


def test_a_command_gets_the_version_that_its_order_has_in_the_plan():
    decisions = decided([PAY, PAY, but(SHIP, expected_version=2)], entry_of(CREATE))
    planned = [each.planned for each in decisions]
    assert [each.version for each in planned] == [1, 2, 2]
    assert [each.expected_version for each in planned] == [1, 1, None], "a copy is sent as the first one was"
    assert planning.command_to_send(PAY, planned[0]) == but(PAY, expected_version=1)
    assert planning.command_to_send(SHIP, planned[2]) is SHIP


def test_what_is_sent_has_the_outcome_of_the_plan_and_is_refused_if_the_order_has_changed():
    [decision] = decided([PAY], entry_of(CREATE))
    sent = planning.command_to_send(PAY, decision.planned)
    assert worker_says(sent, entry_of(CREATE)) == decision.planned.result == "OrderPaid -> version 2"
    assert worker_says(sent, entry_of(CREATE, CANCEL)) == "rejected: version_conflict"
    after = entry_of(CREATE, sent)
    assert worker_says(sent, after) == "repeat", "sent twice, it has no second effect"
    assert worker_says(PAY, after) == "rejected: command_id_reused", "neither has the original"


def test_a_repeat_is_sent_as_it_was():
    [decision] = decided([PAY], entry_of(CREATE, PAY))
    assert decision.planned.expected_version is None


def test_a_user_that_could_not_be_checked_counts_as_active_and_is_named():
    decisions = decided([CREATE, PAY], users={})
    assert results(decisions) == ["OrderCreated -> version 1", "OrderPaid -> version 2"]
    assert [each.planned.asks_user for each in decisions] == [True, True]
    assert [each.planned.asks_user for each in decided([CREATE, PAY])] == [False, False]


def test_a_user_who_may_not_order_is_a_rejection():
    users = {CREATE.user_id: UserCheck.NOT_ACTIVE}
    assert results(decided([CREATE, PAY], users=users)) == ["rejected: user_not_active", "rejected: order_not_found"]
    assert planning.users_of([dead(CREATE), dead(PAY, 1)]) == {CREATE.user_id}


async def test_invalid_settings_of_the_user_service_are_named():
    settings = Settings(user_service_url="http://127.0.0.1:1", user_service_token="t\u00f6ken")
    with pytest.raises(SetupError, match="ORDERS_USER_SERVICE_TOKEN must be printable ASCII"):
        await check_users(settings, ["dana"])


def test_a_command_that_would_become_too_large_is_not_sent():
    rest = len(msgspec.msgpack.encode(but(CREATE, metadata={"key": "v" * 100_000}))) - 100_000
    for spare, is_planned in ((100, True), (0, False)):
        large = but(CREATE, metadata={"key": "v" * (MAX_CONTENT_BYTES - rest - spare)})
        assert decode_command(encode_json_command(large)) == large
        [decision] = decided([large])
        assert (decision.planned is not None) is is_planned
        assert decision.why_not[:9] == ("" if is_planned else "too large")


# Dead letters


def test_a_dead_letter_has_its_origin_and_the_headers_of_the_original():
    letter = dead(PAY, 7, partition=3, headers=[("traceparent", b"00-1"), ("dl_reason", b"of the sender")])
    assert (name_of(letter.id), letter.reason, letter.detail) == ("3:7", "unknown_schema", "of a test")
    assert letter.origin == ("orders.commands.v1", "3", "107")
    assert letter.original_headers == [("traceparent", b"00-1"), ("dl_reason", b"of the sender")]
    assert letter.command == PAY
    assert letter.at.tzinfo is UTC


@pytest.mark.parametrize(
    ("letter", "order_id", "is_command"),
    [
        pytest.param(dead(PAY, key=None), "o-1", True, id="no key"),
        pytest.param(dead(PAY, key=b"o-2"), "o-2", False, id="the key of another order"),
        pytest.param(dead(b"{", key=b"o-2"), "o-2", False, id="the key is an id"),
        pytest.param(dead(b"{", key=b"\x1b[0m"), "", False, id="the key is no id"),
        pytest.param(dead(b"{", key=None), "", False, id="neither"),
    ],
)
def test_the_order_of_a_dead_letter(letter, order_id, is_command):
    assert letter.order_id == order_id
    assert isinstance(letter.command, DecodeError) is not is_command


@pytest.mark.parametrize("value", [b"", b"\xff", b"9" * 30, b"-1"])
def test_headers_that_are_damaged_do_not_stop_the_reading(value):
    letter = letter_of(record("t", 0, 0, None, None, [("dl_timestamp", value), ("dl_reason", None)]))
    assert letter.sent_ms == round(NOW.timestamp() * 1000)
    assert letter.reason == ""


class LetterReader:
    """Reads records of the dead-letter topic from memory; all other topics are empty."""

    names = topic_names()

    def __init__(self, *sent):
        """Keep dead letters, each given by its partition, its offset and the second in which its command was sent."""
        self.records = [
            dead_record(
                but(PAY, command_id=f"pay-{partition}-{offset}"), offset, partition=partition, sent=NOW + s * SECOND
            )
            for partition, offset, s in sent
        ]

    async def partitions(self, *topics):
        return [TopicPartition(topic, number) for topic in topics for number in range(3)]

    async def starts(self, partitions):
        return dict.fromkeys(partitions, 0)

    async def ends(self, partitions):
        return dict.fromkeys(partitions, 10)

    async def between(self, starts, ends):
        for partition, start in starts.items():
            yield [
                record
                for record in self.records
                if TopicPartition(record.topic, record.partition) == partition
                and start <= record.offset < ends[partition]
            ]

    async def learn(self, records):
        pass


STEPPED_BACK = ((0, 0, 100), (0, 1, 50), (1, 0, 60), (1, 1, 61))
"""The clock of a broker has stepped back between the first two: 0:1 was sent after 0:0."""


async def scanned(reader, selection):
    return [letter.id for letter in in_sequence([letter async for letter in LetterScan(reader, selection).letters()])]


async def test_dead_letters_are_in_the_sequence_of_their_commands_also_across_partitions():
    reader = LetterReader(*STEPPED_BACK, (2, 9, 40))
    assert await scanned(reader, Selection()) == [(2, 9), (1, 0), (1, 1), (0, 0), (0, 1)]
    ids = frozenset({(0, 1), (1, 1)})
    assert await scanned(reader, Selection(ids=ids)) == [(1, 1), (0, 1)], "as the plan that has them among others"


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
async def test_a_limited_plan_has_the_earliest_commands_of_an_order(limit):
    reader: Any = LetterReader(*STEPPED_BACK)
    proposal = await propose(reader, Settings(), PastOperations(), Selection(), limit=limit, now=NOW)
    decided_ids = [decision.letter.id for decision in proposal.decisions]
    assert decided_ids == [(1, 0), (1, 1), (0, 0), (0, 1)][:limit]
    assert all(decision.letter.value is None for decision in proposal.decisions)
    assert proposal.left == 4 - limit


@pytest.mark.parametrize(
    ("selection", "is_selected"),
    [
        (Selection(), True),
        (Selection(ids=frozenset({(0, 4)})), True),
        (Selection(ids=frozenset({(1, 4)})), False),
        (Selection(reasons=frozenset({"unknown_schema", "empty"})), True),
        (Selection(reasons=frozenset({"empty"})), False),
        (Selection(order_id="o-1"), True),
        (Selection(order_id="o-2"), False),
        (Selection(since=NOW), True),
        (Selection(since=NOW + SECOND), False),
        (Selection(until=NOW), False),
        (Selection(until=NOW + SECOND), True),
    ],
)
def test_which_dead_letters_a_selection_has(selection, is_selected):
    assert selection.has(dead(PAY, 4)) is is_selected


# Operations before


ACT: dict[str, Any] = {"at": NOW, "actor": "user:dana", "reason": "test"}
PLANNED = PlannedCommand(offset=4, order_id="o-1", command_id="pay-1", version=1, result="OrderPaid -> version 2")
PLAN = DeadLettersPlanned(id="plan", commands=(PLANNED,), partitions=(0, 1), **ACT)
APPLIED = DeadLettersApplied(id="act", plan_id="plan", sent={4: 77}, order_ids=("o-1",), **ACT)
DISCARDED = DeadLettersDiscarded(id="act", offsets=(4,), **ACT)


def past_of(*operations):
    """Return the past of operations, each with its partition."""
    past = PastOperations()
    for offset, (partition, operation) in enumerate(operations):
        value = operation if isinstance(operation, bytes) else encode(operation)
        past.add(record("orders.operations.v1", partition, offset, b"id", value))
    return past


@pytest.mark.parametrize(
    ("operations", "state", "is_settled"),
    [
        ([], "open", False),
        ([(1, DISCARDED)], "open", False),
        ([(0, LaneResumed(id="act", **ACT))], "open", False),
        ([(0, PLAN)], "in plan plan", False),
        ([(0, PLAN), (0, APPLIED)], "applied by plan plan", True),
        ([(0, DISCARDED)], "discarded", True),
    ],
)
def test_the_state_of_a_dead_letter(operations, state, is_settled):
    past = past_of(*operations)
    assert (past.state((0, 4)), past.is_settled((0, 4))) == (state, is_settled)


ELSEWHERE = but(PLAN, commands=(but(PLANNED, offset=9),))


@pytest.mark.parametrize(
    ("operations", "age", "why"),
    [
        pytest.param([], SECOND, "there is no plan plan", id="unknown"),
        pytest.param([(0, PLAN)], SECOND, "lacks its records in the partitions 1", id="incomplete"),
        pytest.param(
            [(0, PLAN), (1, ELSEWHERE)], timedelta(hours=25), "is 25.0 h old, at most 24 h are allowed", id="old"
        ),
        pytest.param(
            [(0, PLAN), (1, ELSEWHERE), (0, DISCARDED)], SECOND, "others have discarded or applied 0:4", id="discarded"
        ),
        pytest.param(
            [(0, PLAN), (1, ELSEWHERE), (0, but(APPLIED, plan_id="other"))],
            SECOND,
            "others have discarded or applied 0:4",
            id="applied by another plan",
        ),
        pytest.param(
            [(0, PLAN), (1, ELSEWHERE), (0, APPLIED), (1, but(APPLIED, sent={9: 78}))],
            timedelta(hours=25),
            "was applied before",
            id="applied",
        ),
        pytest.param([(0, PLAN), (0, b"{}")], SECOND, "offset 1 of orders.operations.v1-0", id="a newer operation"),
    ],
)
def test_a_plan_that_must_not_be_applied(operations, age, why):
    with pytest.raises(OperationRefused, match=why):
        applying._checked(past_of(*operations), "plan", timedelta(hours=24), NOW + age)


def test_a_plan_that_was_applied_in_part_is_continued():
    past = past_of((0, PLAN), (1, ELSEWHERE), (0, APPLIED))
    plan = applying._checked(past, "plan", timedelta(hours=24), NOW)
    assert [each for each in plan.commands if each not in past.applied] == [(1, 9)]


# Applying


def to_send(*decisions):
    return [applying._to_send(each.letter, each.planned) for each in decisions]


def test_an_order_that_is_not_at_the_version_of_its_first_command_has_moved():
    commands = to_send(*decided([PAY, SHIP], entry_of(CREATE)))
    assert moved_orders(commands, {"o-1": entry_of(CREATE)}) == []
    assert moved_orders(commands[1:], {"o-1": entry_of(CREATE, PAY)}) == []
    assert moved_orders(commands, {}) == ["order o-1 is at version 0, the plan expects 1"]
    assert moved_orders(commands, {"o-1": entry_of(CREATE, CANCEL)}) == [
        "order o-1 is at version 2, the plan expects 1"
    ]


def test_only_ten_orders_are_named():
    commands = to_send(*decided([but(CREATE, order_id=f"o-{n}") for n in range(12)]))
    moved = moved_orders(commands, {f"o-{n}": entry_of(CREATE) for n in range(12)})
    assert (len(moved), moved[-1]) == (11, "and 2 orders more")


def test_the_original_bytes_are_sent_unless_the_plan_adds_a_version():
    spaced = encode_json_command(but(PAY, expected_version=1)).replace(b",", b", ")
    headers = [("traceparent", b"00-1")]
    letters = [dead(spaced, 0, key=b"o-1", headers=headers), dead(PAY, 1, key=None)]
    [own, other] = to_send(*planning.decide(letters, {"o-1": entry_of(CREATE)}, {}, NOW))
    assert own.record == (b"o-1", spaced, headers)
    key, value, _ = other.record
    assert (key, decode_command(value)) == (b"o-1", but(PAY, expected_version=2))


@pytest.mark.parametrize(
    ("letter", "why"),
    [
        (dead(b"{", key=b"o-1"), "cannot be decoded here"),
        (dead(but(PAY, command_id="pay-2")), "is not the one of the plan"),
    ],
)
def test_another_record_than_that_of_the_plan_is_not_sent(letter, why):
    with pytest.raises(OperationRefused, match=f"nothing was sent: dead letter 0:0 {why}"):
        applying._to_send(letter, PLANNED)


@pytest.mark.parametrize("kind", [OperationRefused, KafkaAwayError])
def test_an_apply_that_ends_early_says_how_many_commands_it_has_sent(kind):
    error = applying._after_some(kind("another operator has started a tool"), 3)
    assert type(error) is kind
    assert str(error) == (
        "another operator has started a tool; commands sent before: 3; apply the plan again for the rest"
    )


def test_the_batches_have_every_command_once_in_sequence():
    commands = [ToSend(dead(PAY, n), PLANNED, PAY) for n in range(7)]
    batches = list(applying._batches(commands, 3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert [each.letter.id[1] for batch in batches for each in batch] == list(range(7))
