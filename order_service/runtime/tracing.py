"""Tracing of a process, which is off by default. Only if it is on, OpenTelemetry is loaded: see `spans`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from order_service.errors import SetupError
from order_service.settings import Settings

if TYPE_CHECKING:
    from order_service.runtime.spans import Spans

OTHER_METHOD: Final = "_OTHER"
"""A method that HTTP does not know. Source: OpenTelemetry, semantic conventions for HTTP, `http.request.method`."""


@contextmanager
def recording(settings: Settings, process: str) -> Iterator[Spans | None]:
    """Return the spans of this process, or None if tracing is off. At the end, export what is left in bounded time.

    Raises SetupError if OpenTelemetry is not installed.
    """
    if not settings.tracing:
        yield None
        return
    try:
        from order_service.runtime import spans  # noqa: PLC0415 - nothing of it is loaded if tracing is off
    except ModuleNotFoundError as error:
        raise SetupError(
            f"ORDERS_TRACING needs {error.name}, which is not installed: pip install 'order-service[tracing]'"
        ) from error
    recorded = spans.exported(settings, process)
    try:
        yield recorded
    finally:
        recorded.close()
