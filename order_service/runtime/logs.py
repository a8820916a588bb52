"""Logs: one constant sentence and fields; JSON for machines, colours on a terminal; never a payload.

`log_formats.py` has the names of ECS and OpenTelemetry. A thread writes the lines, so a pipe without a reader blocks
this thread only. Lines that do not fit into its queue are dropped and counted.
"""

import contextlib
import io
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from threading import Thread
from types import MappingProxyType, TracebackType
from typing import Final, Literal, TextIO

import stamina
import structlog
from prometheus_client import Counter

from order_service.runtime import log_formats

_log = structlog.get_logger()

Style = Literal["", "json", "console", "ecs", "otel"]
NAMINGS: Final = {"ecs": log_formats.ecs, "otel": log_formats.otel}
ACCESS: Final = "order_service.access"
"""The logger of one line for each HTTP request. It is off by default, because every caller can fill a disk with it."""

common_fields: Final[dict[str, object]] = {}
"""The fields of every line of this process: the number of a worker's process."""
naming: Final[list[structlog.typing.Processor]] = []
"""What puts a line into the names of ECS or OpenTelemetry: one function, or none for the other formats."""


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
    "aiokafka": logging.WARNING,
    ACCESS: logging.WARNING,
}
"""The level of loggers by default; below it they say what only their developers need."""
COORDINATOR: Final = "aiokafka.consumer.group_coordinator"
QUEUED_LINES: Final = 10_000
FLUSH_WITHIN_S: Final = 1.0
DROPPED: Final = Counter("orders_log_lines_dropped_total", "Log lines that stderr did not take in time.")


REPEAT_S: Final = 10.0
"""How often a sentence about a state that lasts is logged."""
UNREACHABLE: Final = "Unable connect to"
"""How a line of aiokafka about a broker that does not accept a connection begins. Our clients connect again."""


class RepeatFilter(logging.Filter):
    """Passes a warning of a library once in `REPEAT_S`: aiokafka repeats it every few ms while Kafka is away.

    That a broker cannot be reached is a warning. What is less than a warning passes: an operator has asked for it.
    """

    def __init__(self, library: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._library = library
        self._clock = clock
        self._logged_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether this record is not a repeat."""
        if not record.name.startswith(self._library) or record.levelno < logging.WARNING:
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
    style: Style = "",
    level: int = logging.INFO,
    fields: Mapping[str, object] = MappingProxyType({}),
    *,
    levels: Mapping[str, str] = MappingProxyType({}),
    role: str = "",
) -> None:
    """Configure our logs and those of the libraries: to stderr, in one style. Without a style, the terminal decides.

    Every line has the `fields`. `levels` has the level of loggers that differ from `level`, by name. `role` is the
    command that this process runs, for the styles that name it.
    """
    common_fields.update(fields)
    naming[:] = [NAMINGS[style](role)] if style in NAMINGS else []
    shared: Sequence[structlog.typing.Processor] = _SHARED
    console = is_for_people(style)
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    tail: list[structlog.typing.Processor] = [structlog.processors.format_exc_info]
    if console:  # a plain traceback: the pretty one shows local variables, and with them payloads
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        tail = []
    elif naming:
        shared, tail = (*_SHARED, structlog.stdlib.add_logger_name), naming
    all_levels = _QUIET | {name: logging.getLevelNamesMapping()[text.upper()] for name, text in levels.items()}
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(min(level, *all_levels.values())),
        cache_logger_on_first_use=True,
    )
    handler = QueuedHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(allow=["dropped"])],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail, renderer],
        )
    )
    handler.addFilter(CoordinatorFilter())
    handler.addFilter(RepeatFilter("aiokafka"))
    handler.addFilter(RepeatFilter("opentelemetry"))
    logging.basicConfig(handlers=[handler], level=level, force=True)
    stamina.instrumentation.set_on_retry_hooks([])  # our code logs its own retries
    for name, own_level in all_levels.items():
        logging.getLogger(name).setLevel(own_level)


def is_for_people(style: Style) -> bool:
    """Return whether lines in this style are read by people: on a terminal, unless the style says otherwise."""
    return style == "console" or (style == "" and sys.stderr.isatty())


def has_standard_names() -> bool:
    """Return whether the log is for a program that reads ECS or OpenTelemetry, which must find nothing else."""
    return bool(naming)


def log_uncaught_errors() -> None:
    """Log errors that no code catches, in any thread, and warnings of Python, instead of writing them as they are.

    Then each line that a process writes is one of its log.
    """
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable
    logging.captureWarnings(capture=True)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        _log.critical("Uncaught error.", exc_info=error)


def _log_uncaught_in_thread(uncaught: threading.ExceptHookArgs) -> None:
    if uncaught.exc_value is not None and not isinstance(uncaught.exc_value, SystemExit):  # a thread may just end
        thread = None if uncaught.thread is None else uncaught.thread.name
        _log.critical("Uncaught error in a thread.", thread=thread, exc_info=uncaught.exc_value)


def _log_unraisable(uncaught: "sys.UnraisableHookArgs") -> None:
    _log.error("An error could not be raised.", why=uncaught.err_msg, exc_info=uncaught.exc_value)
