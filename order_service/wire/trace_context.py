"""The trace context of a record: the headers `traceparent` and `tracestate`. Source: W3C Trace Context, level 1."""

import re
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
LENGTH: Final = 55
"""The length of a `traceparent` of version 00."""
MAX_TRACEPARENT: Final = 256
"""The longest `traceparent` in bytes that is passed on. Later versions may be longer."""
MAX_TRACESTATE: Final = 512
"""The longest `tracestate` in bytes that is passed on: the least that the standard asks for."""
_SAMPLED_DIGITS: Final = b"13579bdf"
_VALID: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")
"""The one check of a `traceparent`: version ff and ids of zeros are invalid.

Source: W3C Trace Context, "traceparent Header Field Values".
"""


class TraceContext(Struct, frozen=True, gc=False):
    """The trace that a record belongs to, as its headers have it; `tracestate` is what tracing systems add to it."""

    traceparent: bytes
    tracestate: bytes | None = None

    @property
    def trace_id(self) -> str | None:
        """The trace id, 32 hexadecimal digits, or None if `traceparent` is malformed."""
        match = _VALID.match(self.traceparent)
        return None if match is None else match[1].decode()

    @property
    def is_sampled(self) -> bool:
        """Whether the sender has recorded this trace: bit 0 of the flags, which are the last two digits.

        A malformed `traceparent` is never recorded. One comparison is enough for most traces, which are not recorded.
        """
        traceparent = self.traceparent
        is_flagged = len(traceparent) == LENGTH and traceparent[-1] in _SAMPLED_DIGITS
        return is_flagged and _VALID.match(traceparent) is not None

    @property
    def exemplar(self) -> dict[str, str] | None:
        """The labels by which a sample of a histogram leads to this trace, or None if it is not recorded."""
        return exemplar_of(self.traceparent.decode("latin-1")) if self.is_sampled else None

    def child(self, span_id: int) -> "TraceContext":
        """Return the context of what a span of this trace leads to; `tracestate` is passed on unchanged.

        Of the flags, it keeps those that are known: that the trace is recorded, and that its id is random.
        """
        flags = int(self.traceparent[53:55], 16) & 0x03
        return TraceContext(b"00%b%016x-%02x" % (self.traceparent[2:36], span_id, flags), self.tracestate)

    def headers(self) -> list[tuple[str, bytes]]:
        """Return the headers of a record that belongs to this trace."""
        headers = [(TRACEPARENT, self.traceparent)]
        if self.tracestate is not None:
            headers.append((TRACESTATE, self.tracestate))
        return headers


def exemplar_of(traceparent: str) -> dict[str, str] | None:
    """Return the labels by which a sample of a histogram leads to a span, or None for an empty text."""
    return {"trace_id": traceparent[3:35], "span_id": traceparent[36:52]} if traceparent else None


def trace_context_of(headers: Iterable[tuple[str, bytes | None]]) -> TraceContext | None:
    """Return the trace context in a record's headers, or None if `traceparent` is missing or too long.

    The first header of a name counts. A `tracestate` that is too long is left out.
    """
    traceparent = tracestate = None
    for name, value in headers:
        if name == TRACEPARENT:
            if traceparent is None and value is not None and len(value) <= MAX_TRACEPARENT:
                traceparent = value
        elif name == TRACESTATE and tracestate is None and value and len(value) <= MAX_TRACESTATE:
            tracestate = value
    return None if traceparent is None else TraceContext(traceparent, tracestate)
