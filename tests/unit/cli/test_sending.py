"""What is known of a sent command, from single records of its partition; `test_commands.py` has the real ones."""

import pytest
from aiokafka.structs import ConsumerRecord
from msgspec import structs

from order_service.domain.decision import reject
from order_service.domain.messages import Rejection
from order_service.domain.refusals import Reason, Refusal
from order_service.errors import HistoryError
from order_service.kafka.topics import topic_names
from order_service.sdk.outcomes import Unreadable, Watch
from order_service.sdk.testing.samples import UNKNOWN_ID, as_unknown
from order_service.wire.avro import encode_event, encode_rejection
from order_service.wire.changelog import POSITION_KEY, Position, encode, waiting_key
from order_service.wire.headers import event_headers, rejection_headers
from order_service.wire.schemas.catalogue import prefix_of
from tests.support.samples import NOW, ORDER_ID, order_paid, pay

NAMES = topic_names()
OFFSET = 7


@pytest.fixture
def watch():
    return Watch(NAMES, pay, 0, OFFSET)


def record(topic, key=None, value=None, partition=0, **headers):
    sent = tuple(headers.items())
    return ConsumerRecord(topic, partition, 0, 0, 0, key, value, None, len(key or b""), len(value or b""), sent)


def position(next_offset):
    return record(NAMES.table, POSITION_KEY, encode(Position(next_offset, "worker", next_offset, None)))


def test_a_position_behind_the_command_says_that_it_is_decided(watch):
    assert watch.observe(position(OFFSET)) is None
    assert not watch.is_decided
    assert watch.observe(position(OFFSET + 1)) is None
    assert watch.is_decided


@pytest.mark.parametrize("value", [None, b"", b"\x02 of another form", b"\x01 of another shape"])
def test_a_position_that_cannot_be_read_says_nothing(watch, value):
    assert watch.observe(record(NAMES.table, POSITION_KEY, value)) is None
    assert not watch.is_decided


def test_what_other_partitions_hold_under_the_same_offset_is_not_ours(watch):
    told = {"command_offset": b"7", "dl_reason": b"wrong_partition", "dl_detail": b"it belongs in 0"}
    assert watch.observe(record(NAMES.dead_letters, ORDER_ID.encode(), b"x", partition=11, **told)) is None
    assert watch.observe(record(NAMES.waiting, waiting_key(ORDER_ID, OFFSET), b"kept", partition=11)) is None
    assert not watch.waits


def test_a_command_that_waits_is_not_decided_until_it_leaves(watch):
    key = waiting_key(ORDER_ID, OFFSET)
    watch.observe(record(NAMES.waiting, key, b"kept"))
    watch.observe(position(OFFSET + 1))
    assert (watch.waits, watch.is_decided) == (True, False)
    watch.observe(record(NAMES.waiting, key))
    assert (watch.waits, watch.is_decided) == (False, True)


def test_another_command_that_waits_says_nothing(watch):
    watch.observe(record(NAMES.waiting, waiting_key(ORDER_ID, OFFSET - 1), b"kept"))
    assert not watch.waits


def test_a_dead_letter_is_known_by_the_offset_of_its_command(watch):
    told = {"dl_reason": b"bad_shape", "dl_detail": b"no order"}
    assert watch.observe(record(NAMES.dead_letters, command_offset=b"6", **told)) is None
    assert watch.observe(record(NAMES.dead_letters, command_offset=b"7", **told)) == Unreadable("bad_shape", "no order")


@pytest.mark.parametrize(
    ("copy", "answer"),
    [
        pytest.param(OFFSET - 1, (True,), id="an earlier copy's refusal may stand for ours"),
        pytest.param(OFFSET, (False,), id="our copy's refusal is ours"),
        pytest.param(OFFSET + 1, None, id="a later copy's refusal is not ours"),
    ],
)
def test_of_the_refusals_in_a_history_those_of_later_copies_are_not_ours(watch, copy, answer):
    refusal = reject(pay, None, NOW, Refusal(Reason.ORDER_NOT_FOUND))
    refused = record(NAMES.rejections, ORDER_ID.encode(), encode_rejection(refusal), command_offset=b"%d" % copy)
    found = watch.outcome_in(refused)
    assert (None if found is None else (found.repeated,)) == answer


@pytest.mark.parametrize(("copy", "answer"), [(OFFSET - 1, True), (OFFSET, False), (OFFSET + 1, None)])
def test_the_event_of_an_earlier_copy_is_ours_and_that_of_a_later_one_is_not(watch, copy, answer):
    """Before a later copy was accepted, ours was refused: its order did not exist, or its deadline had passed."""
    event = record(NAMES.events, ORDER_ID.encode(), encode_event(order_paid), command_offset=b"%d" % copy)
    found = watch.observe(event)
    assert watch.outcome_in(event) == found
    assert (None if found is None else found.repeated) == answer
    assert found is None or found.event == order_paid


def later(message, value, headers):
    """Return the record of an outcome that a later version of the service wrote."""
    topic = NAMES.rejections if isinstance(message, Rejection) else NAMES.events
    return record(topic, message.order_id.encode(), value, **dict(headers))


def test_a_new_type_of_event_of_the_same_order_is_not_the_outcome(watch):
    other = structs.replace(order_paid, command_id="another")
    assert watch.observe(later(other, *as_unknown(other, "OrderReserved"))) is None


def test_an_outcome_of_a_new_type_says_what_to_do(watch):
    with pytest.raises(HistoryError, match="the command led to an event of the unknown type OrderReserved: install a"):
        watch.observe(later(order_paid, *as_unknown(order_paid, "OrderReserved")))


def test_an_outcome_with_a_new_field_is_the_outcome(watch):
    new = prefix_of(UNKNOWN_ID), b"\2\x0ca note"
    value = encode_event(order_paid)[5:].join(new)
    assert watch.observe(later(order_paid, value, event_headers(order_paid, None, OFFSET))).event == order_paid
    refused = reject(pay, None, NOW, Refusal(Reason.ORDER_NOT_FOUND))
    value = encode_rejection(refused)[5:].join(new)
    assert watch.observe(later(refused, value, rejection_headers(refused, None, OFFSET))).rejection == refused


def test_a_rejection_among_the_events_is_not_read(watch):
    refused = reject(pay, None, NOW, Refusal(Reason.ORDER_NOT_FOUND))
    value = prefix_of(UNKNOWN_ID) + encode_rejection(refused)[5:]
    misplaced = later(order_paid, value, rejection_headers(refused, None, OFFSET))
    with pytest.raises(HistoryError, match=f"the schema id {UNKNOWN_ID} is unknown"):
        watch.observe(misplaced)
