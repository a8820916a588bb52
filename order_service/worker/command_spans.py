"""The spans of a worker's commands and turns, by OpenTelemetry. Imported only if tracing is on: see `runtime.tracing`.

A command that is decided has a span of its own, in the trace of its record, from then until the turn is committed. The
outcome carries the trace context of that span. A turn decides commands of many traces, so it has a trace of its own,
with a link to each command that is recorded; their spans have a link to the turn. A turn that fails leaves no spans.

A command that has waited for its user also has a span of the wait. It begins when the command came into the waiting
room, possibly in another process: that time is in the changelog.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, get_current_span, set_span_in_context

from order_service.domain.decision import UserCheck
from order_service.runtime.spans import Call, Spans, context_of, message, parent_of
from order_service.wire.changelog import WaitingCommand
from order_service.wire.trace_context import TraceContext

TURN: Final = "turn"


class CommandSpan:
    """The span of a command that is being decided. `trace` is what its outcome carries.

    `wait` is the span of its wait, if it has waited, with the time in nanoseconds at which that ended.
    """

    __slots__ = ("creation", "offset", "parent", "partition", "span", "trace", "wait")

    def __init__(self, span: Span, parent: Context, partition: int, offset: int, trace: TraceContext) -> None:
        self.span = span
        self.parent = parent
        self.creation: SpanContext = get_current_span(parent).get_span_context()
        self.partition = partition
        self.offset = offset
        self.trace = trace
        self.wait: tuple[Span, int] | None = None

    def decided(self, command_type: str, order_id: str, outcome: str, reason: str = "") -> None:
        """Record the outcome."""
        attributes = {
            "orders.command": command_type,
            "messaging.kafka.message.key": order_id,
            "orders.outcome": outcome,
        }
        self.span.set_attributes({**attributes, "orders.reason": reason} if reason else attributes)

    def unreadable(self, reason: str) -> None:
        """Record that the record cannot be decoded. Its key may be anything, so it is not recorded."""
        self.span.set_attributes({"orders.outcome": "dead_letter", "orders.reason": reason})


class CommandSpans:
    """Records the commands of a topic that a consumer group decides, and the lookups of their users at `user_path`."""

    def __init__(self, spans: Spans, topic: str, group: str, user_path: str) -> None:
        self._spans = spans
        self._topic = topic
        self._user_path = user_path
        self._group = {"messaging.consumer.group.name": group}

    def begin(self, partition: int, offset: int, trace: TraceContext | None) -> CommandSpan | None:
        """Start the span of a command; None if its trace is not recorded, which is found out in a microsecond."""
        if not (self._spans.begins_trace() if trace is None else trace.is_sampled):
            return None
        parent = parent_of(trace)
        span = self._spans.recorder.start_span(
            f"process {self._topic}",
            parent,
            kind=SpanKind.CONSUMER,
            attributes=message("process", self._topic, partition, offset) | self._group,
        )
        if not span.is_recording():  # OTEL_SDK_DISABLED
            return None
        return CommandSpan(span, parent, partition, offset, context_of(span, trace))

    def lookup(self, traces: Sequence[TraceContext]) -> AbstractContextManager[Call]:
        """Record the lookup of a user for the commands with these traces."""
        return self._spans.calling("GET", self._user_path, traces)

    def waited(self, of: CommandSpan, waiting: WaitingCommand, check: UserCheck | None, now: datetime) -> None:
        """Record how long a command that is now decided was in the waiting room."""
        started_ns = _nanoseconds(waiting.queued_at)
        span = self._spans.recorder.start_span(
            "wait for user",
            of.parent if of.creation.is_valid else set_span_in_context(of.span),
            attributes={
                "messaging.destination.partition.id": str(of.partition),
                "messaging.kafka.offset": of.offset,
                "messaging.kafka.message.key": waiting.command.order_id,
                **({} if check is None else {"orders.user_check": check.value}),
            },
            start_time=started_ns,
        )
        of.wait = span, max(started_ns, _nanoseconds(now))

    def committed(self, commands: Sequence[CommandSpan], began_at: float, decided: int) -> dict[str, str] | None:
        """End the spans of a turn that began at this time of the monotonic clock. Return the exemplar of the turn.

        Return None for a turn without a recorded command.
        """
        if not commands:
            return None
        ended_ns = time.time_ns()
        turn = self._spans.recorder.start_span(
            f"{TURN} {self._topic}",
            Context(),
            kind=SpanKind.CONSUMER,
            attributes={
                **message(TURN, self._topic),
                "messaging.operation.type": "process",
                "messaging.batch.message_count": decided,
                **self._group,
            },
            links=[_link(command) for command in commands],
            start_time=ended_ns - int((time.monotonic() - began_at) * 1e9),
        )
        for command in commands:
            command.span.add_link(turn.get_span_context())
            command.span.end(ended_ns)
            if command.wait is not None:
                wait, wait_ended_ns = command.wait
                wait.end(wait_ended_ns)
        turn.end(ended_ns)
        return context_of(turn, None).exemplar


def _link(command: CommandSpan) -> Link:
    """Return a turn's link to the span that has sent a command, or to the command's own if its trace begins with it."""
    linked = command.creation if command.creation.is_valid else command.span.get_span_context()
    attributes: dict[str, str | int] = {
        "messaging.destination.partition.id": str(command.partition),
        "messaging.kafka.offset": command.offset,
    }
    return Link(linked, attributes)


def _nanoseconds(moment: datetime) -> int:
    """Return a time as nanoseconds since 1970."""
    return int(moment.timestamp() * 1e6) * 1000
