"""Logs: one constant sentence and fields; JSON for machines, colours on a terminal; never a payload."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Literal

import stamina
import structlog

_SHARED = (
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
)
_QUIET = {
    "faust": logging.WARNING,
    "mode": logging.WARNING,
    "aiohttp.access": logging.WARNING,
    "aiokafka": logging.WARNING,
    # It calls an error what it tries again: at a first start there is no coordinator for a moment.
    "aiokafka.consumer.group_coordinator": logging.CRITICAL,
}


class Seldom(logging.Filter):
    """Lets a library say the same sentence once a second: aiokafka repeats it every few ms while Kafka is away."""

    def __init__(self, library: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._library = library
        self._clock = clock
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether this record is not a repeat."""
        if not record.name.startswith(self._library):
            return True
        now = self._clock()
        if now - self._said.get(str(record.msg), now - 1) < 1:
            return False
        self._said[str(record.msg)] = now
        return True


def configure(style: Literal["", "json", "console"] = "", level: int = logging.INFO) -> None:
    """Send our logs and those of the libraries to stderr in one style; without a style, the terminal decides."""
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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=list(_SHARED),
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail, renderer],
        )
    )
    handler.addFilter(Seldom("aiokafka"))
    logging.basicConfig(handlers=[handler], level=level, force=True)
    stamina.instrumentation.set_on_retry_hooks([])  # whoever retries says itself what is worth a line
    for name, quiet_level in _QUIET.items():
        logging.getLogger(name).setLevel(quiet_level)
