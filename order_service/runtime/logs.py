"""Logs: one constant sentence and fields; JSON for machines, colours on a terminal; never a payload.

A thread writes them, so a pipe without a reader blocks this thread only. Lines that do not fit into its queue are
dropped and counted.
"""

import contextlib
import io
import logging
import os
import queue
import sys
import time
from collections.abc import Callable, Mapping
from threading import Thread
from types import MappingProxyType
from typing import Final, Literal, TextIO

import stamina
import structlog
from prometheus_client import Counter

common_fields: Final[dict[str, object]] = {}
"""The fields of every line of this process: the number of a worker's process."""


def _add_common_fields(_logger: object, _method: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {**common_fields, **entry}


_SHARED = (
    structlog.contextvars.merge_contextvars,
    _add_common_fields,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
)
_QUIET = {
    "faust": logging.WARNING,
    "mode": logging.WARNING,
    "aiohttp.access": logging.WARNING,
    "aiokafka": logging.WARNING,
}
COORDINATOR: Final = "aiokafka.consumer.group_coordinator"
QUEUED_LINES: Final = 10_000
FLUSH_WITHIN_S: Final = 1.0
DROPPED: Final = Counter("orders_log_lines_dropped_total", "Log lines that stderr did not take in time.")


REPEAT_S: Final = 10.0
"""How often a sentence about a state that lasts is logged."""
UNREACHABLE: Final = "Unable connect to"
"""How a line of aiokafka about a broker that does not accept a connection begins. Our clients connect again."""


class RepeatFilter(logging.Filter):
    """Passes a sentence of a library once in `REPEAT_S`: aiokafka repeats it every few ms while Kafka is away.

    That a broker cannot be reached is a warning.
    """

    def __init__(self, library: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._library = library
        self._clock = clock
        self._logged_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether this record is not a repeat."""
        if not record.name.startswith(self._library):
            return True
        now, sentence = self._clock(), str(record.msg)
        if now - self._logged_at.get(sentence, now - REPEAT_S) < REPEAT_S:
            return False
        self._logged_at[sentence] = now
        if sentence.startswith(UNREACHABLE):
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


class CoordinatorFilter(logging.Filter):
    """Drops the errors that aiokafka's group coordinator retries: at a first start, there is no coordinator yet.

    Errors that it does not retry pass: exceptions, from us or from it, and an expired session.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether this record is from another logger, or will not be retried."""
        return record.name != COORDINATOR or bool(record.exc_info) or str(record.msg).startswith("Heartbeat session")


class QueuedHandler(logging.Handler):
    """Passes each line to a thread that writes it, in order. Drops the line if the queue is full."""

    def __init__(self, stream: TextIO, *, lines_max: int = QUEUED_LINES) -> None:
        super().__init__()
        self._write = _writer_to(stream)
        self._lines: queue.Queue[str | None] = queue.Queue(lines_max)
        self._dropped = 0
        Thread(target=self._write_all, name="log", daemon=True).start()

    def close(self) -> None:
        """Write the queued lines, and end the thread."""
        self.flush()
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line without waiting."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001, as every handler does: a log line must not end what logs it
            self.handleError(record)
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1
            DROPPED.inc()

    def flush(self) -> None:
        """Wait until all lines are written, 1 s at most."""
        deadline = time.monotonic() + FLUSH_WITHIN_S
        with self._lines.all_tasks_done:
            while self._lines.unfinished_tasks and (left_s := deadline - time.monotonic()) > 0:
                self._lines.all_tasks_done.wait(left_s)

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            self._put(line)
            dropped, self._dropped = self._dropped, 0
            if dropped:  # not through `log`: a flush holds the lock of this handler and waits for this thread
                self._put(self.format(_about_dropped(dropped)))
            self._lines.task_done()
        self._lines.task_done()  # else a second flush would wait for this thread

    def _put(self, line: str) -> None:
        try:
            self._write(f"{line}\n")
        except (OSError, ValueError):  # stderr or its reader is closed: there is no other way to report it
            DROPPED.inc()


def _about_dropped(count: int) -> logging.LogRecord:
    fields = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": "Log lines were dropped."}
    return logging.makeLogRecord({**fields, "dropped": count})


def _writer_to(stream: TextIO) -> Callable[[str], object]:
    """Return a function that writes past the buffer of `stream`: a hanging thread would hold its lock at exit."""
    try:
        descriptor = stream.fileno()
    except (AttributeError, io.UnsupportedOperation):
        return stream.write

    def write(text: str) -> None:
        rest = text.encode(errors="backslashreplace")
        while rest:
            rest = rest[os.write(descriptor, rest) :]

    return write


def configure(
    style: Literal["", "json", "console"] = "",
    level: int = logging.INFO,
    fields: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Configure our logs and those of the libraries: to stderr, in one style. Without a style, the terminal decides.

    Every line has the `fields`.
    """
    common_fields.update(fields)
    console = style == "console" or (style == "" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    tail: list[structlog.typing.Processor] = [structlog.processors.format_exc_info]
    if console:  # a plain traceback: the pretty one shows local variables, and with them payloads
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        tail = []
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = QueuedHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.ExtraAdder(allow=["dropped"])],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail, renderer],
        )
    )
    handler.addFilter(CoordinatorFilter())
    handler.addFilter(RepeatFilter("aiokafka"))
    handler.addFilter(RepeatFilter("opentelemetry"))
    logging.basicConfig(handlers=[handler], level=level, force=True)
    stamina.instrumentation.set_on_retry_hooks([])  # our code logs its own retries
    for name, quiet_level in _QUIET.items():
        logging.getLogger(name).setLevel(quiet_level)
