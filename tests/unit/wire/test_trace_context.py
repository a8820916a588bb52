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


@pytest.mark.parametrize(
    ("traceparent", "is_sampled"),
    [(PARENT, True), (PARENT[:-1] + b"0", False), (PARENT[:-1] + b"3", True), (b"00-1", False), (b"", False)],
)
def test_the_flags_say_whether_a_trace_is_recorded(traceparent, is_sampled):
    context = TraceContext(traceparent)
    assert context.is_sampled is is_sampled
    assert (context.exemplar is not None) is is_sampled


def test_an_exemplar_names_the_trace_and_the_span():
    expected = {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331"}
    assert TraceContext(PARENT).exemplar == expected


@pytest.mark.parametrize(
    ("traceparent", "trace_id"),
    [
        (PARENT, TRACEPARENT[3:35]),
        (b"", None),
        (b"00-1", None),
        (TRACEPARENT.upper().encode(), None),
        (b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01", None),
        (b"00-0af7651916cd43dd8448eb211c80319c-" + b"0" * 16 + b"-01", None),
        (b"ff" + PARENT[2:], None),
        (PARENT + b"\n", None),
        (b"\xff" * 55, None),
    ],
)
def test_a_trace_id_is_read_only_from_a_valid_traceparent(traceparent, trace_id):
    assert TraceContext(traceparent).trace_id == trace_id
