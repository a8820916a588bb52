"""Every sequence of commands up to a depth, decided by the service and by the checker of the chaos test.

The checker has rules of its own, written from the contract. The walk is a tree: sequences share the outcomes of their
common beginning, and those that lead to the same order share what can follow, as both sides are pure functions.
"""

from typing import Any

from chaos.verdict import decoding
from chaos.verdict.model import REPEATED, Answer, Happens, Order, Refused, after_event, after_refusal
from chaos.verdict.model import answer as answer_of_checker
from order_service.domain.decision import Repeat
from order_service.domain.entry import Entry
from order_service.domain.messages import Command, Event, Rejection
from order_service.domain.refusals import RULES, Reason
from order_service.wire import avro
from order_service.wire.commands import encode_json_command
from tests.support.samples import EVE, NOW, SHOP, amend, but, cancel, create, deliver, mugs, pay, ship, take

DEPTH = 6
SEQUENCES = sum(12**length for length in range(1, DEPTH + 1))
NOW_MS = round(NOW.timestamp() * 1000)
HEAD = b"h" * 16


def decoded(command: Command) -> decoding.Command:
    """Return a command as the checker decodes it."""
    record = decoding.Record(0, 0, NOW_MS, command.order_id.encode(), encode_json_command(command))
    value = decoding.decode_command(record, 1)
    assert isinstance(value, decoding.Command)
    return value


COMMANDS = [
    (command, decoded(command))
    for command in (
        create,
        but(create, command_id="create-2", actor=SHOP),
        amend,
        but(amend, command_id="amend-at-1", expected_version=1),
        but(amend, command_id="amend-bad", lines=(but(mugs, quantity=0),)),
        pay,
        but(pay, command_id="pay-at-2", expected_version=2),
        ship,
        deliver,
        cancel,
        but(cancel, command_id="cancel-by-eve", actor=EVE),
        # The id of the payment with other content: refused if the order remembers the payment, else a cancellation.
        but(cancel, command_id=pay.command_id),
    )
]


def as_checker(outcome: object) -> Answer:
    """Return an outcome of the service in the form of the checker."""
    match outcome:
        case Event():
            event = decoding.decode_event(avro.encode_event(outcome))
            return Happens(event.type, event.fact)
        case Rejection(reason=reason, status=status, version=version):
            return Refused(reason, status, version)
    assert isinstance(outcome, Repeat)
    return REPEATED


def order_after(order: Order | None, command: decoding.Command, outcome: Answer) -> Order | None:
    """Return the checker's order after an outcome."""
    match outcome:
        case Happens():
            return after_event(order, outcome, (command.command_id, command.digest), NOW_MS, HEAD)
        case Refused(reason=reason):
            return after_refusal(order, command, reason)
    return order


def name_of(outcome: Answer) -> str:
    match outcome:
        case Happens(type=name) | Refused(reason=name):
            return name
    return "repeat"


def walk(order: Order | None, entry: Entry | None, depth: int, outcomes: set[str], counts: dict[Any, int]) -> int:
    """Return the number of sequences that can follow, from `counts` if this order was walked to the same depth."""
    key = (repr(order), repr(entry), depth)
    if key not in counts:
        counts[key] = decide_all(order, entry, depth, outcomes, counts)
    return counts[key]


def decide_all(order: Order | None, entry: Entry | None, depth: int, outcomes: set[str], counts: dict[Any, int]) -> int:
    """Decide every command on this order, and all that can follow. Return the number of sequences.

    `entry` is the order as the service has it, and `order` as the checker has it. `outcomes` collects the names of all
    outcomes.
    """
    count = 0
    for command, read in COMMANDS:
        actual, entry_after = take(command, entry)
        expected = answer_of_checker(read, order, NOW_MS, "active")
        assert as_checker(actual) == expected
        outcomes.add(name_of(expected))
        after = order_after(order, read, expected)
        assert (entry_after is None) == (after is None)
        if entry_after is not None and after is not None:
            assert (entry_after.order.status, entry_after.version) == (after.status, after.version)
        count += 1
        if depth > 1:
            count += walk(after, entry_after, depth - 1, outcomes, counts)
    return count


def test_service_and_checker_decide_every_sequence_of_commands_alike(record_property):
    outcomes: set[str] = set()
    count = walk(None, None, DEPTH, outcomes, {})
    record_property("sequences", count)
    print(f"{count:,} sequences of up to {DEPTH} commands walked")  # noqa: T201
    assert count == SEQUENCES == 3_257_436
    rules = {outcome if isinstance(outcome, Reason) else outcome.__name__ for outcome in RULES.values()}
    assert outcomes == rules | {"repeat", "command_id_reused", "version_conflict", "invalid_order"}
