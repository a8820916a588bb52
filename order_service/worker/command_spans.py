"""The spans of a worker's commands and turns, by OpenTelemetry. Imported only if tracing is on: see `runtime.tracing`.

A command that is decided has a span of its own, in the trace of its record, from then until the turn is committed. The
outcome carries the trace context of that span. A turn decides commands of many traces, so it has a trace of its own,
with a link to each command that is recorded; their spans have a link to the turn. A turn that fails leaves no spans.

A command that has waited for its user also has a span of the wait. It begins when the command came into the waiting
room, possibly in another process: that time is in the changelog.

OpenTelemetry's spans are made after the commit, all at once. To make one between two decisions takes twice as long.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from random import getrandbits, random
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, get_current_span, set_span_in_context

from order_service.domain.decision import UserCheck
from order_service.runtime.spans import Call, GivenIds, Spans, context_of, message, parent_of
from order_service.wire.changelog import WaitingCommand
from order_service.wire.trace_context import TraceContext

TURN: Final = "turn"
BEGINS: Final = 0x03
"""The flags of a trace that begins here: it is recorded, and its id is random. Source: W3C Trace Context, level 2."""


class Wait:
    """A wait in the waiting room, in nanoseconds since 1970, and the answer about the user."""

    __slots__ = ("check", "ended_ns", "started_ns")

    def __init__(self, started_ns: int, ended_ns: int, check: UserCheck | None) -> None:
        self.started_ns = started_ns
        self.ended_ns = ended_ns
        self.check = check


class CommandSpan:
    """The span of a command that is being decided. `parent` is the sender's, `trace` is what the outcome carries.

    `since_ms` is since when the command was undecided, in milliseconds since 1970 UTC, or None while it waits. `wait`
    is its wait, if it has waited.
    """

    __slots__ = (
        "attributes",
        "ids",
        "offset",
        "order_id",
        "parent",
        "partition",
        "since_ms",
        "started_ns",
        "trace",
        "wait",
    )

    def __init__(self, partition: int, offset: int, parent: TraceContext | None, since_ms: float) -> None:
        self.partition = partition
        self.offset = offset
        self.parent = parent
        self.ids = (getrandbits(128) or 1) if parent is None else 0, getrandbits(64) or 1
        self.trace = _begun(*self.ids) if parent is None else parent.child(self.ids[1])
        self.since_ms: float | None = since_ms
        self.started_ns = time.time_ns()
        self.order_id = ""
        self.attributes: dict[str, str] = {}
        self.wait: Wait | None = None

    def decided(self, command_type: str, order_id: str, outcome: str, reason: str = "") -> None:
        """Record the outcome."""
        self.order_id = order_id
        self.attributes = {
            "orders.command": command_type,
            "messaging.kafka.message.key": order_id,
            "orders.outcome": outcome,
        }
        if reason:
            self.attributes["orders.reason"] = reason
        if outcome == "waiting":
            self.since_ms = None

    def unreadable(self, reason: str) -> None:
        """Record that the record cannot be decoded. Its key may be anything, so it is not recorded."""
        self.attributes = {"orders.outcome": "dead_letter", "orders.reason": reason}

    def waited(self, waiting: WaitingCommand, check: UserCheck | None, now: datetime) -> None:
        """Record how long this command was in the waiting room."""
        started_ns = _nanoseconds(waiting.queued_at)
        self.wait = Wait(started_ns, max(started_ns, _nanoseconds(now)), check)


class CommandSpans:
    """Records the commands of a topic that a consumer group decides, and the lookups of their users at `user_path`."""

    def __init__(self, spans: Spans, topic: str, group: str, user_path: str) -> None:
        self._spans = spans
        self._root_rate = spans.root_rate
        self._ids = GivenIds()
        self._recorder = spans.recorder_with(self._ids)
        self._topic = topic
        self._user_path = user_path
        self._of_commands = message("process", topic) | {"messaging.consumer.group.name": group}
        self._of_turns = message(TURN, topic) | {
            "messaging.operation.type": "process",
            "messaging.consumer.group.name": group,
        }

    def begin(self, partition: int, offset: int, trace: TraceContext | None, since_ms: float) -> CommandSpan | None:
        """Begin the span of a command; None if its trace is not recorded. Most are not: that is one comparison."""
        if trace is None:
            if random() >= self._root_rate:  # noqa: S311, a sample is no secret
                return None
        elif not trace.is_sampled:
            return None
        return None if self._spans.is_off else CommandSpan(partition, offset, trace, since_ms)

    def lookup(self, traces_of: Callable[[], Sequence[TraceContext]]) -> AbstractContextManager[Call]:
        """Record the lookup of a user for the commands with the traces that `traces_of` returns."""
        return self._spans.calling("GET", self._user_path, traces_of)

    def committed(self, commands: Sequence[CommandSpan], began_at: float, decided: int) -> dict[str, str] | None:
        """Record a turn that began at this time of the monotonic clock. Return the exemplar of the turn.

        Return None for a turn without a recorded command.
        """
        if not commands:
            return None
        ended_ns = time.time_ns()
        parents = [parent_of(command.parent) for command in commands]
        turn = self._recorder.start_span(
            f"{TURN} {self._topic}",
            Context(),
            kind=SpanKind.CONSUMER,
            attributes={**self._of_turns, "messaging.batch.message_count": decided},
            links=[_link(command, parent) for command, parent in zip(commands, parents, strict=True)],
            start_time=ended_ns - int((time.monotonic() - began_at) * 1e9),
        )
        links = [Link(turn.get_span_context())]
        for command, parent in zip(commands, parents, strict=True):
            self._record(command, parent, links, ended_ns)
        turn.end(ended_ns)
        return context_of(turn, None).exemplar

    def _record(self, command: CommandSpan, parent: Context, links: list[Link], ended_ns: int) -> None:
        """Record the span of a command, and that of its wait."""
        place = _place(command)
        self._ids.give(*command.ids)
        span = self._recorder.start_span(
            f"process {self._topic}",
            parent,
            kind=SpanKind.CONSUMER,
            attributes=self._of_commands | place | command.attributes,
            links=links,
            start_time=command.started_ns,
        )
        span.end(ended_ns)
        if (wait := command.wait) is None:
            return
        waiting = self._recorder.start_span(
            "wait for user",
            set_span_in_context(span) if command.parent is None else parent,
            attributes={
                **place,
                "messaging.kafka.message.key": command.order_id,
                **({} if wait.check is None else {"orders.user_check": wait.check.value}),
            },
            start_time=wait.started_ns,
        )
        waiting.end(wait.ended_ns)


def _begun(trace_id: int, span_id: int) -> TraceContext:
    """Return the context of a trace that begins with a command."""
    return TraceContext(b"00-%032x-%016x-%02x" % (trace_id, span_id, BEGINS))


def _link(command: CommandSpan, parent: Context) -> Link:
    """Return a turn's link to the span that has sent a command, or to the command's own if its trace begins with it."""
    linked = get_current_span(parent).get_span_context()
    if command.parent is None:
        linked = SpanContext(*command.ids, is_remote=False, trace_flags=TraceFlags(BEGINS))
    return Link(linked, _place(command))


def _place(command: CommandSpan) -> dict[str, str | int]:
    """Return where the record of a command is in its topic."""
    return {
        "messaging.destination.partition.id": str(command.partition),
        "messaging.kafka.offset": command.offset,
    }


def _nanoseconds(moment: datetime) -> int:
    """Return a time as nanoseconds since 1970."""
    return int(moment.timestamp() * 1e6) * 1000
