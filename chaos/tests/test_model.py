"""The checker's own rules, and its decoders beside those of the service: two readings of the contract that agree."""

import random
from datetime import timedelta
from typing import Any

import pytest

from chaos.verdict import decoding
from chaos.verdict.decoding import Command, Poison, Record, Unreadable, decode_command, partition_of
from chaos.verdict.model import (
    MAX_AMENDMENTS,
    MAX_REMEMBERED_REFUSALS,
    REPEATED,
    Answer,
    Happens,
    Order,
    Refused,
    after_event,
    after_refusal,
    answer,
    is_in_table,
)
from order_service.domain.identity import command_digest as digest_by_the_service
from order_service.domain.refusals import RULES, Reason, Status
from order_service.errors import DecodeError
from order_service.wire import avro, changelog
from order_service.wire.commands import decode_command as decode_by_the_service
from order_service.wire.commands import encode_json_command
from order_service.wire.commands import partition_of as partition_by_the_service
from tests.support import samples
from tests.support.samples import (
    DANA,
    EVE,
    LATER,
    NOW,
    ORDER_ID,
    SHOP,
    amend,
    but,
    cancel,
    create,
    deliver,
    entry_after,
    pay,
    ship,
)

NOW_MS = round(NOW.timestamp() * 1000)
HEAD = b"h" * 16


def decoded(value: Any) -> Command:
    """Decode a command of the service as the checker does."""
    record = Record(0, 0, NOW_MS, value.order_id.encode(), encode_json_command(value))
    command = decode_command(record, 1)
    assert isinstance(command, Command)
    return command


def told(value: Any, order: Order | None, user: str = "active", now_ms: int = NOW_MS) -> Answer:
    return answer(decoded(value), order, now_ms, user)


def reason(value: Any, order: Order | None, user: str = "active", now_ms: int = NOW_MS) -> str:
    outcome = told(value, order, user, now_ms)
    return outcome.reason if isinstance(outcome, Refused) else type(outcome).__name__


def after(*values: Any, order: Order | None = None) -> Order | None:
    """Fold commands, each decided now."""
    for value in values:
        command = decoded(value)
        match answer(command, order, NOW_MS, "active"):
            case Happens() as happened:
                order = after_event(order, happened, (command.command_id, command.digest), NOW_MS, HEAD)
            case Refused(reason=why):
                order = after_refusal(order, command, why)
    return order


COMMANDS = (create, amend, pay, ship, deliver, cancel)
HISTORIES = {
    "absent": (),
    "created": (create,),
    "paid": (create, pay),
    "shipped": (create, pay, ship),
    "delivered": (create, pay, ship, deliver),
    "cancelled": (create, but(cancel, command_id="cancel-0")),
}


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_checker_and_service_have_the_same_rules(command, status):
    order = after(*HISTORIES[status])
    assert status == ("absent" if order is None else order.status)
    actual, expected = told(but(command, command_id="new"), order), RULES[type(command), status]
    if isinstance(expected, Reason):
        assert isinstance(actual, Refused)
        assert actual.reason == expected
    else:
        assert isinstance(actual, Happens)
        assert actual.type == expected.__name__


PAID = after(create, pay)
CREATED = after(create)


@pytest.mark.parametrize(
    ("command", "order", "said"),
    [
        pytest.param(create, CREATED, "Repeated", id="a command that is remembered is a repeat"),
        pytest.param(but(create, decide_by=NOW), CREATED, "Repeated", id="another deadline makes no other command"),
        pytest.param(but(create, correlation_id="x"), CREATED, "Repeated", id="nor does another conversation"),
        pytest.param(but(create, tax=0), CREATED, "command_id_reused", id="the id of another command is taken"),
        pytest.param(
            but(create, tax=0, decide_by=NOW - timedelta(seconds=1)),
            CREATED,
            "command_id_reused",
            id="which comes before a deadline",
        ),
        pytest.param(
            but(pay, actor=EVE, decide_by=NOW - timedelta(milliseconds=1)),
            CREATED,
            "deadline_passed",
            id="a deadline comes before a permission",
        ),
        pytest.param(but(amend, decide_by=NOW), CREATED, "Happens", id="at its deadline a command is in time"),
        pytest.param(but(pay, actor=DANA), CREATED, "not_allowed", id="a user does not pay"),
        pytest.param(but(create, actor=EVE), None, "not_allowed", id="a user orders for no other user"),
        pytest.param(
            but(amend, actor="dana"), CREATED, "not_allowed", id="who is neither user nor service does nothing"
        ),
        pytest.param(but(amend, actor=EVE), CREATED, "order_not_found", id="an order of somebody else is not there"),
        pytest.param(
            but(create, command_id="c", actor=EVE, user_id="eve"), CREATED, "order_exists", id="but its id is taken"
        ),
        pytest.param(but(amend, expected_version=2), CREATED, "version_conflict", id="a stale version is a conflict"),
        pytest.param(but(amend, expected_version=1), None, "order_not_found", id="unless there is no order"),
        pytest.param(but(create, expected_version=1), None, "version_conflict", id="a create expects none"),
        pytest.param(
            but(amend, expected_version=1, discount=-1), PAID, "version_conflict", id="a conflict comes before content"
        ),
        pytest.param(but(amend, discount=-1), PAID, "invalid_order", id="content comes before the table"),
        pytest.param(but(amend, discount=10**9), PAID, "already_paid", id="but not what only the order can tell"),
        pytest.param(but(amend, discount=3401), CREATED, "invalid_order", id="a discount has its bound"),
        pytest.param(but(amend, discount=3400), CREATED, "Happens", id="which is the subtotal"),
        pytest.param(but(pay, amount=3799), CREATED, "payment_mismatch", id="a cent short is not paid"),
        pytest.param(but(create, tax=2**53), None, "invalid_order", id="a total has its bound"),
    ],
)
def test_answers_come_in_their_order(command, order, said):
    assert reason(command, order) == said


def test_of_a_user_an_order_takes_what_the_user_service_said():
    said = [reason(create, None, user) for user in ("active", "unknown", "inactive", "timed_out")]
    assert said == ["Happens", "user_not_found", "user_not_active", "user_check_timed_out"]


def test_a_user_whose_order_it_is_not_sees_none():
    assert told(but(amend, actor=EVE), CREATED) == Refused("order_not_found", "absent", 0)
    assert told(but(amend, actor=SHOP, expected_version=7), CREATED) == Refused("version_conflict", "created", 1)


def test_an_order_remembers_the_last_16_refusals_and_no_passed_deadline():
    late = but(ship, command_id="late", decide_by=NOW - timedelta(seconds=1))
    refused = [but(ship, command_id=f"ship-{number}") for number in range(MAX_REMEMBERED_REFUSALS + 1)]
    order = after(late, *refused, order=CREATED)
    assert [told(command, order) is REPEATED for command in (late, *refused)] == [False, False, *[True] * 16]


def test_an_order_that_is_not_there_remembers_nothing():
    order = after(ship, create)
    assert reason(ship, order) == "not_paid"


def test_the_51st_amendment_is_one_too_many():
    amendments = [but(amend, command_id=f"a-{number}") for number in range(MAX_AMENDMENTS)]
    order = after(*amendments, order=CREATED)
    assert reason(but(amend, command_id="last"), after(*amendments[1:], order=CREATED)) == "Happens"
    assert reason(but(amend, command_id="last"), order) == "too_many_changes"
    assert reason(pay, order) == "Happens"


@pytest.mark.parametrize("status", [status for status in HISTORIES if status != "absent"])
def test_the_table_of_the_service_has_what_the_model_says(status):
    refused = but(create, command_id="again")
    history = (*HISTORIES[status], refused)
    entry = decoding.decode_entry(changelog.encode(entry_after(history)))
    order = after(*history)
    assert order is not None
    assert is_in_table(but(order, head=entry.head), entry)
    assert not is_in_table(but(order, head=HEAD), entry)
    assert not is_in_table(but(order, head=entry.head, changed_at=0), entry)
    assert not is_in_table(None, entry)
    assert is_in_table(None, None)


# Decoders


@pytest.mark.parametrize("command", samples.commands)
@pytest.mark.parametrize("encode", [encode_json_command, avro.encode_command])
def test_a_command_is_the_same_in_both_forms_and_to_both_readers(command, encode):
    command = but(command, decide_by=LATER, expected_version=3)
    found = decode_command(Record(0, 0, 0, ORDER_ID.encode(), encode(command)), 1)
    assert isinstance(found, Command)
    assert (found.type, found.digest) == (type(command).__name__, digest_by_the_service(command))
    assert found.decide_by_ms == round(LATER.timestamp() * 1000)


@pytest.mark.parametrize("length", range(1, 10))
def test_a_key_lies_in_the_same_partition_to_both_readers(length):
    for key in (bytes(range(250, 250 - length, -1)), b"o" * length):
        assert partition_of(key, 97) == partition_by_the_service(key, 97)


TOKENS = (
    *(
        b"null",
        b"true",
        b"1.0",
        b"1e3",
        b"-0",
        b"9223372036854775808",
        b'"x"',
        b"{}",
        b"[]",
        b"\\u0041",
        b"\\ud83d\\ude00",
    ),
    *(
        b"\xff",
        b"\xef\xbb\xbf",
        b"\r\n",
        b"\0",
        b",",
        b'"',
        b" ",
        b"9223372036854775807",
        b'"2026-01-05t09:00:00z"',
        b"\xff" * 9 + b"\1",
    ),
)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_bytes_are_a_command_to_one_reader_are_the_same_to_the_other(seed):
    chance = random.Random(seed)
    commands = [but(command, decide_by=LATER, expected_version=3) for command in samples.commands]
    whole = [encode(command) for command in commands for encode in (encode_json_command, avro.encode_command)]
    for _ in range(1500):
        value = damaged(chance.choice(whole), chance)
        command = by_the_service(value)
        key = b"key" if isinstance(command, str) else command.order_id.encode()
        found = decode_command(Record(0, 0, 0, key, value), 1)
        if isinstance(command, str):
            assert isinstance(found, Poison), value
            assert command in found.reasons, value
        else:
            assert isinstance(found, Command), value
            assert (found.digest, found.correlation_id) == (digest_by_the_service(command), command.correlation_id)


def by_the_service(value: bytes) -> Any:
    """Decode a command, or return why the bytes are not a command."""
    try:
        return decode_by_the_service(value)
    except DecodeError as error:
        return str(error.reason)


def damaged(value: bytes, chance: random.Random) -> bytes:
    """Replace some bytes by one that can mean something, or by nothing."""
    start = chance.randrange(len(value))
    end = start + chance.choice((0, 1, 1, 4, 12))
    return value[:start] + chance.choice((*TOKENS, b"", bytes([chance.randrange(256)]))) + value[end:]


@pytest.mark.parametrize("event", samples.all_events)
def test_an_event_cut_short_or_longer_cannot_be_read(event):
    value = avro.encode_event(event)
    assert decoding.decode_event(value).event_id == event.event_id
    for cut in (*(value[:length] for length in range(len(value))), value + b"\0", None, avro.encode_command(pay)):
        with pytest.raises(Unreadable):
            decoding.decode_event(cut)


def test_a_rejection_is_no_event_and_an_event_no_rejection():
    rejection = avro.encode_rejection(samples.ship_refused)
    assert decoding.decode_rejection(rejection).reason == "not_paid"
    for decode, value in (
        (decoding.decode_event, rejection),
        (decoding.decode_rejection, avro.encode_event(samples.order_paid)),
    ):
        with pytest.raises(Unreadable):
            decode(value)


def test_an_entry_or_position_of_another_form_cannot_be_read():
    entry = changelog.encode(entry_after((create,)))
    for value in (b"", b"\2" + entry[1:], entry[:-1], b"\1\x90", b"\1\xc0", entry + b"\0"):
        with pytest.raises(Unreadable):
            decoding.decode_entry(value)
        with pytest.raises(Unreadable):
            decoding.decode_position(value)
