"""What the log says about a request: its ids in every line that is logged within it, and a line of its own."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from uuid import uuid4

import structlog
from aiohttp import hdrs, web

from order_service.runtime.logs import ACCESS
from order_service.runtime.tracing import OTHER_METHOD
from order_service.web.http.requests import trace_of_commands

HEADER: Final = "X-Request-Id"
REQUEST_ID: Final = web.RequestKey("request_id", str)

_ACCEPTED: Final = re.compile(r"[\x21-\x7e]{1,128}\Z")
_LEVEL: Final = logging.getLogger(ACCESS)
log = structlog.get_logger(ACCESS)


@contextmanager
def logged_with_ids(request: web.Request) -> Iterator[None]:
    """Put the request id into every line that is logged in this block, and the trace id if there is a trace.

    The trace is that of the request's span, which its commands carry, too; without tracing, that of the caller. A
    request id of the caller is kept if it is visible ASCII. Tasks that the block starts log the ids, too.
    """
    sent = request.headers.get(HEADER, "")
    request[REQUEST_ID] = sent if _ACCEPTED.match(sent) else uuid4().hex
    ids = {"request_id": request[REQUEST_ID]}
    trace = trace_of_commands(request)
    if trace is not None and trace.trace_id is not None:
        ids["trace_id"] = trace.trace_id
    with structlog.contextvars.bound_contextvars(**ids):
        yield


def method_of(request: web.Request) -> str:
    """Return the method of a request, or `OTHER_METHOD`: what the caller sent may be any text."""
    return request.method if request.method in hdrs.METH_ALL else OTHER_METHOD


def log_access(request: web.Request, operation: str, status: int, duration_s: float) -> None:
    """Log that a request was served, with status 0 if its caller hung up. Paths and queries hold ids of users."""
    if _LEVEL.isEnabledFor(logging.INFO):
        log.info(
            "Request served.",
            http_method=method_of(request),
            http_status=status,
            operation=operation,
            duration_ns=round(duration_s * 1e9),
        )
