"""The trace context of a record: both headers, and nothing that is too long."""

import pytest

from order_service.sdk.testing.samples import TRACEPARENT, TRACESTATE
from order_service.wire.trace_context import MAX_TRACEPARENT, MAX_TRACESTATE, TraceContext, trace_context_of

PARENT, STATE = TRACEPARENT.encode(), TRACESTATE.encode()


@pytest.mark.parametrize(
    ("headers", "context"),
    [
        pytest.param((), None, id="no header"),
        pytest.param((("traceparent", PARENT),), TraceContext(PARENT), id="a parent alone"),
        pytest.param((("tracestate", STATE), ("traceparent", PARENT)), TraceContext(PARENT, STATE), id="both"),
        pytest.param((("tracestate", STATE),), None, id="a state without a parent"),
        pytest.param((("traceparent", None), ("traceparent", PARENT)), TraceContext(PARENT), id="a null before it"),
        pytest.param((("traceparent", PARENT), ("traceparent", b"2")), TraceContext(PARENT), id="the first counts"),
        pytest.param((("traceparent", b"x" * (MAX_TRACEPARENT + 1)),), None, id="a parent that is too long"),
        pytest.param(
            (("traceparent", PARENT), ("tracestate", b"x" * (MAX_TRACESTATE + 1))),
            TraceContext(PARENT),
            id="a state that is too long",
        ),
        pytest.param((("traceparent", PARENT), ("tracestate", b"")), TraceContext(PARENT), id="an empty state"),
    ],
)
def test_the_trace_context_of_a_record(headers, context):
    assert trace_context_of(headers) == context


def test_a_trace_context_comes_out_of_its_headers_as_it_went_in():
    context = TraceContext(PARENT, STATE)
    assert trace_context_of(context.headers()) == context


MALFORMED = [
    pytest.param(b"", id="empty"),
    pytest.param(b"00-1", id="too short"),
    pytest.param(TRACEPARENT.upper().encode(), id="capital digits"),
    pytest.param(b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01", id="a trace id of zeros"),
    pytest.param(b"00-0af7651916cd43dd8448eb211c80319c-" + b"0" * 16 + b"-01", id="a span id of zeros"),
    pytest.param(b"ff" + PARENT[2:], id="version ff"),
    pytest.param(PARENT + b"\n", id="a line end"),
    pytest.param(b"x" * 54 + b"1", id="the right length and flags"),
    pytest.param(b"\xff" * 55, id="not ASCII"),
]


@pytest.mark.parametrize("traceparent", MALFORMED)
def test_a_malformed_traceparent_has_no_trace_and_is_never_recorded(traceparent):
    context = TraceContext(traceparent)
    assert (context.trace_id, context.is_sampled, context.exemplar) == (None, False, None)


@pytest.mark.parametrize(
    ("traceparent", "is_sampled"),
    [(PARENT, True), (PARENT[:-1] + b"0", False), (PARENT[:-1] + b"3", True), (PARENT[:-1] + b"2", False)],
)
def test_the_flags_say_whether_a_trace_is_recorded(traceparent, is_sampled):
    context = TraceContext(traceparent)
    assert context.is_sampled is is_sampled
    assert (context.exemplar is not None) is is_sampled


def test_an_exemplar_names_the_trace_and_the_span():
    expected = {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331"}
    assert TraceContext(PARENT).exemplar == expected


@pytest.mark.parametrize("version", [b"00", b"01", b"fe"])
def test_a_trace_id_is_read_from_a_traceparent_of_any_version(version):
    assert TraceContext(version + PARENT[2:]).trace_id == TRACEPARENT[3:35]


@pytest.mark.parametrize(
    ("flags", "kept"), [(b"01", b"01"), (b"03", b"03"), (b"f1", b"01")], ids=["recorded", "random", "unknown flags"]
)
def test_what_a_span_leads_to_has_its_id_the_known_flags_and_the_same_state(flags, kept):
    child = TraceContext(b"cc" + PARENT[2:53] + flags, STATE).child(0xAB)
    assert child == TraceContext(b"00" + PARENT[2:36] + b"00000000000000ab-" + kept, STATE)
