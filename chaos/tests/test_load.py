"""The load: the same of the same seed, and with something of everything in it, as its bytes say and not as it says.

The bounds are about half of what there is: a kind that is dealt no more falls below its own.
"""

from collections import Counter, defaultdict
from collections.abc import Callable

import pytest
from msgspec import structs

from chaos.load import Load
from chaos.tests.short_run import SIZES
from chaos.verdict.decoding import Command, Poison, Record, decode_command, partition_of
from chaos.verdict.model import Happens, Order, Refused, after_event, after_refusal, answer

PARTITIONS = 4
NOW_MS = 1_790_000_000_000
USERS = {"unknown": "unknown", "inactive": "inactive", "slow-30000-": "timed_out"}


def records_of(seed: int) -> list[Record]:
    """Return the load of CI as the topic has it."""
    sent = list(Load(structs.replace(SIZES, seed=seed)).records())
    return [
        Record(partition_of(record.key or b"", PARTITIONS), offset, NOW_MS, record.key, record.value, record.headers)
        for offset, record in enumerate(sent)
    ]


RECORDS = records_of(SIZES.seed)
DECODED = [decode_command(record, PARTITIONS) for record in RECORDS]
COMMANDS = [command for command in DECODED if isinstance(command, Command)]
POISON = [(record, poison) for record, poison in zip(RECORDS, DECODED, strict=True) if isinstance(poison, Poison)]
OWNERS = {command.order_id: command.body["user_id"] for command in COMMANDS[::-1] if command.type == "CreateOrder"}


def test_the_same_seed_makes_the_same_records_and_another_seed_others():
    assert len(RECORDS) == SIZES.commands
    assert records_of(SIZES.seed) == RECORDS
    others = records_of(SIZES.seed + 1)
    assert sum(one.value != other.value for one, other in zip(RECORDS, others, strict=True)) > SIZES.commands / 2


# Commands


def outcomes() -> Counter[str]:
    """Count what the rules make of the load, if all goes well: events by type, rejections by reason, repeats."""
    orders: dict[str, Order | None] = defaultdict(lambda: None)
    counts: Counter[str] = Counter()
    for command in COMMANDS:
        order = orders[command.order_id]
        said = answer(command, order, NOW_MS, user_of(command))
        match said:
            case Happens(type=name):
                orders[command.order_id] = after_event(order, said, (command.command_id, command.digest), NOW_MS, b"")
                counts[name] += 1
            case Refused(reason=reason):
                orders[command.order_id] = after_refusal(order, command, reason)
                counts[reason] += 1
            case _:
                counts["repeated"] += 1
    return counts


def user_of(command: Command) -> str:
    user_id = command.body.get("user_id") or ""
    return next((said for prefix, said in USERS.items() if user_id.startswith(prefix)), "active")


LEAST = {
    "OrderCreated": 350,
    "OrderAmended": 300,
    "OrderPaid": 240,
    "OrderShipped": 170,
    "OrderDelivered": 150,
    "OrderCancelled": 110,
    "repeated": 120,
    "order_not_found": 240,
    "order_cancelled": 140,
    "already_delivered": 140,
    "order_exists": 140,
    "already_paid": 70,
    "version_conflict": 55,
    "user_not_found": 35,
    "command_id_reused": 35,
    "invalid_order": 30,
    "not_allowed": 30,
    "deadline_passed": 25,
    "not_paid": 25,
    "user_not_active": 20,
    "payment_mismatch": 15,
    "user_check_timed_out": 8,
    "already_shipped": 7,
    "not_shipped": 2,
}


def test_the_rules_make_something_of_everything_of_it():
    counts = outcomes()
    assert {name: counts[name] for name in LEAST if counts[name] < LEAST[name]} == {}
    assert counts.keys() <= LEAST.keys()


def repeats(*, conversation_changes: bool) -> int:
    """Count commands that came before, to the digest, in the same conversation or another."""
    seen: dict[tuple[str, bytes], str | None] = {}
    count = 0
    for command in COMMANDS:
        known = (command.order_id, command.digest)
        count += known in seen and (seen[known] != command.correlation_id) == conversation_changes
        seen.setdefault(known, command.correlation_id)
    return count


def reused_ids() -> int:
    """Count commands whose id another command of their order had before."""
    seen: dict[tuple[str, str], bytes] = {}
    return sum(
        seen.setdefault((command.order_id, command.command_id), command.digest) != command.digest
        for command in COMMANDS
    )


def commands_with(test: Callable[[Command], bool]) -> Callable[[], int]:
    return lambda: sum(map(test, COMMANDS))


def by_stranger(command: Command) -> bool:
    return command.actor.startswith("user:") and command.actor != f"user:{OWNERS.get(command.order_id)}"


def by_users_called(prefix: str) -> Callable[[], int]:
    return commands_with(lambda command: command.body.get("user_id", "").startswith(prefix))


@pytest.mark.parametrize(("count", "least"), [
    pytest.param(lambda: repeats(conversation_changes=False), 60, id="a command comes again"),
    pytest.param(lambda: repeats(conversation_changes=True), 60, id="a command comes again in another conversation"),
    pytest.param(reused_ids, 35, id="an id is used for another command"),
    pytest.param(commands_with(lambda command: command.expected_version is not None), 70, id="a version is expected"),
    pytest.param(commands_with(lambda command: (command.decide_by_ms or NOW_MS) < NOW_MS), 25, id="it is too late"),
    pytest.param(commands_with(lambda command: (command.decide_by_ms or 0) > NOW_MS), 15, id="there is time enough"),
    pytest.param(commands_with(by_stranger), 30, id="a stranger comes"),
    pytest.param(
        commands_with(lambda command: command.type == "PayOrder" and command.actor.startswith("user:")),
        30,
        id="a user does what is a service's",
    ),
    *(
        pytest.param(by_users_called(prefix), least, id=f"a user is called {prefix}")
        for prefix, least in {"unknown-": 35, "inactive-": 20, "flaky-": 9, "slow-400-": 16, "slow-30000-": 8}.items()
    ),
])  # fmt: skip
def test_of_each_kind_of_command_there_are_enough(count, least):
    assert count() >= least


def test_both_forms_come_with_a_trace_and_without():
    forms = Counter(
        ((record.value or b"")[:1] == b"\0", record.header("traceparent") is not None) for record in RECORDS
    )
    assert min(forms[is_avro, is_traced] for is_avro in (False, True) for is_traced in (False, True)) > 100


# Poison


def with_value(test: Callable[[bytes], bool]) -> Callable[[Record], bool]:
    return lambda record: record.value is not None and test(record.value)


def any_record(_: Record) -> bool:
    return True


@pytest.mark.parametrize(("reasons", "which", "least"), [
    pytest.param(("unknown_format",), any_record, 8, id="noise"),
    pytest.param(("empty",), lambda record: record.value == b"", 4, id="no bytes"),
    pytest.param(("empty",), lambda record: record.value is None, 4, id="no value"),
    pytest.param(("not_avro", "bad_shape"), any_record, 3, id="Avro cut short"),
    pytest.param(("not_avro",), with_value(lambda value: value[-1] == 0), 4, id="Avro with more behind it"),
    pytest.param(("unknown_schema",), with_value(lambda value: value[:5] == b"\0\0\0\0\7"), 3, id="not our schema"),
    pytest.param(("bad_shape",), with_value(lambda value: b"EatOrder" in value), 4, id="not our command"),
    pytest.param(("bad_shape",), with_value(lambda value: b"colour" in value), 4, id="a field too many"),
    pytest.param(("bad_shape",), with_value(lambda value: b'".."' in value), 4, id="an invalid id"),
    pytest.param(("not_json", "bad_shape"), with_value(lambda value: b"\xff" in value), 4, id="invalid text"),
    pytest.param(("key_mismatch",), any_record, 4, id="the key of another order"),
    pytest.param(("key_missing",), any_record, 4, id="no key"),
])  # fmt: skip
def test_of_each_kind_of_poison_there_is_enough(reasons, which, least):
    assert sum(poison.reasons == reasons and which(record) for record, poison in POISON) >= least


def test_poison_comes_with_headers_that_must_be_kept():
    assert sum(record.header("x-origin") is not None for record, _ in POISON) >= 8
