"""Headers: CloudEvents on what happened, the whole origin on a dead letter."""

from datetime import UTC, datetime

import pytest

from order_service.errors import DecodeError
from order_service.sdk.testing.samples import TRACEPARENT, TRACESTATE
from order_service.wire.dead_letters import DeadLetterReason
from order_service.wire.headers import (
    MAX_ORIGINAL_BYTES,
    command_offset_of,
    dead_letter_headers,
    dead_letter_part,
    event_headers,
    fitting,
    rejection_headers,
)
from order_service.wire.schemas.catalogue import SCHEMAS
from order_service.wire.trace_context import TraceContext, trace_context_of
from tests.support import samples
from tests.unit.wire.table import CASES

PARENT, STATE = TRACEPARENT.encode(), TRACESTATE.encode()
TRACE = TraceContext(PARENT, STATE)
HEADER_OVERHEAD = 15
ERROR = DecodeError(DeadLetterReason.NOT_JSON, "nested too deeply, é")


def dead_letter(original):
    """Make the headers of a dead letter with these headers of its own."""
    return dead_letter_headers(ERROR, "orders.commands.v1", 3, 42, 1_767_603_600_000, original)


def test_an_event_is_a_cloud_event():
    assert dict(event_headers(samples.order_paid, TRACE, 42)) == {
        "ce_specversion": b"1.0",
        "ce_id": samples.order_paid.event_id.encode(),
        "ce_type": b"orders.v1.OrderPaid",
        "ce_source": b"/order-service",
        "ce_time": b"2026-01-05T11:00:00.000Z",
        "ce_subject": b"order-1",
        "content-type": b"application/avro",
        "command_offset": b"42",
        "traceparent": PARENT,
        "tracestate": STATE,
    }


def test_a_rejection_is_a_cloud_event():
    assert dict(rejection_headers(samples.ship_refused, None, 0)) == {
        "ce_specversion": b"1.0",
        "ce_id": samples.ship_refused.rejection_id.encode(),
        "ce_type": b"orders.v1.Rejection",
        "ce_source": b"/order-service",
        "ce_time": b"2026-01-05T09:00:00.000Z",
        "ce_subject": b"order-1",
        "content-type": b"application/avro",
        "command_offset": b"0",
    }


def test_a_rejection_carries_the_trace_of_its_command():
    assert trace_context_of(rejection_headers(samples.ship_refused, TRACE, 0)) == TRACE


@pytest.mark.parametrize("event", samples.all_events, ids=lambda event: type(event.fact).__name__)
def test_a_cloud_event_s_type_is_the_name_of_its_schema(event):
    assert dict(event_headers(event, None, 1))["ce_type"].decode() == SCHEMAS.newest[type(event.fact)].name


def test_what_no_command_led_to_has_no_offset():
    names = [name for name, _ in event_headers(samples.order_cancelled, None, None)]
    assert "command_offset" not in names
    assert "traceparent" not in names


@pytest.mark.parametrize(
    ("moment", "written"),
    [
        (datetime(2026, 1, 5, 9, 0, 0, 7000, tzinfo=UTC), b"2026-01-05T09:00:00.007Z"),
        (datetime(1, 1, 1, tzinfo=UTC), b"0001-01-01T00:00:00.000Z"),
        (datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC), b"9999-12-31T23:59:59.999Z"),
    ],
)
def test_a_time_has_milliseconds_and_a_z(moment, written):
    assert dict(event_headers(samples.but(samples.order_paid, occurred_at=moment), None, 1))["ce_time"] == written


def test_headers_of_one_event_are_not_those_of_the_next():
    first = event_headers(samples.order_paid, TRACE, 1)
    first.append(("more", b""))
    assert dict(event_headers(samples.order_paid, None, 2)).keys() == dict(first).keys() - {
        "traceparent",
        "tracestate",
        "more",
    }


def test_a_dead_letter_says_why_and_whence_and_keeps_its_own_headers():
    assert dead_letter(
        [*TRACE.headers(), ("dl_reason", b"forged"), ("none", None), ("twice", b"1"), ("twice", b"2")]
    ) == [
        ("dl_reason", b"not_json"),
        ("dl_detail", "nested too deeply, é".encode()),
        ("dl_topic", b"orders.commands.v1"),
        ("dl_partition", b"3"),
        ("dl_offset", b"42"),
        ("dl_timestamp", b"1767603600000"),
        ("command_offset", b"42"),
        ("orig_traceparent", PARENT),
        ("orig_tracestate", STATE),
        ("orig_dl_reason", b"forged"),
        ("orig_none", b""),
        ("orig_twice", b"1"),
        ("orig_twice", b"2"),
    ]


@pytest.mark.parametrize(
    "original",
    [
        pytest.param([("", b"")] * 300_000, id="300,000 empty ones"),
        pytest.param([("a", bytes(MAX_ORIGINAL_BYTES))], id="one that is too large"),
        pytest.param([("a" * MAX_ORIGINAL_BYTES, None)], id="a name that is too long"),
        pytest.param([("a", bytes(1000))] * 2_000, id="2,000 of a kilobyte"),
    ],
)
def test_headers_without_measure_are_bounded_and_counted(original):
    headers = dead_letter(original)
    kept = sum(name.startswith("orig_") for name, _ in headers)
    assert int(dict(headers)["dl_headers_dropped"]) + kept == len(original)
    assert sum(len(name.encode()) + len(value) for name, value in headers) < MAX_ORIGINAL_BYTES + 1000


@pytest.mark.parametrize(
    ("data", "kept", "headers"),
    [
        pytest.param(None, None, [], id="nothing"),
        pytest.param(b"", b"", [], id="empty"),
        pytest.param(b"abc", b"abc", [], id="just the most"),
        pytest.param(b"abcd", b"abc", [("dl_cut", b"4")], id="a byte more"),
    ],
)
def test_a_part_of_a_dead_letter_is_whole_up_to_a_length(data, kept, headers):
    assert dead_letter_part(data, 3) == (kept, headers)


def test_headers_of_just_the_most_are_kept_whole_and_a_byte_more_is_not():
    one = MAX_ORIGINAL_BYTES // 2 - HEADER_OVERHEAD
    whole = [("a", bytes(one - 1)), ("b", bytes(one - 1))]
    assert list(fitting(whole)) == whole
    assert list(fitting([whole[0], ("b", bytes(one))])) == whole[:1]


def test_every_message_of_ours_has_a_case():
    assert sorted(case.name for case in CASES) == sorted(schema.message.__name__ for schema in SCHEMAS.newest.values())


@pytest.mark.parametrize(
    ("value", "offset"),
    [
        (b"0", 0),
        (b"9223372036854775807", 2**63 - 1),
        (b"9223372036854775808", None),
        (b"9" * 5_000, None),
        (b"-1", None),
        (b"", None),
        (b"1.0", None),
        ("\u0661".encode(), None),
        (None, None),
    ],
)
def test_a_command_offset_is_read_only_where_it_can_be_one(value, offset):
    assert command_offset_of([("command_offset", value)]) == offset


def test_a_record_without_a_command_offset_answers_no_command():
    assert command_offset_of([("traceparent", b"00-1")]) is None
