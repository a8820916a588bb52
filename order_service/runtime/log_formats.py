"""Log lines in the field names of the Elastic Common Schema (ECS) and of the OpenTelemetry log data model.

Fields that have no name there begin with `orders.`. Sources: ECS 9.4, field reference; OpenTelemetry, "Logs Data
Model", and its semantic conventions for HTTP and for exceptions.
"""

import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from structlog.typing import EventDict, Processor

from order_service import __version__

ECS_VERSION: Final = "9.4.0"
OWN: Final = "orders."
"""The prefix of fields that only we have."""

ECS_NAMES: Final[Mapping[str, str]] = {
    "request_id": "http.request.id",
    "trace_id": "trace.id",
    "http_method": "http.request.method",
    "http_status": "http.response.status_code",
    "duration_ns": "event.duration",
    "error": "error.message",
}
"""The name of a field in ECS, by our own. Times, levels, loggers and tracebacks are in every format."""
OTEL_NAMES: Final[Mapping[str, str]] = {
    "http_method": "http.request.method",
    "http_status": "http.response.status_code",
    "error": "exception.message",
}
"""The name of an attribute in OpenTelemetry's semantic conventions, by our own."""
SEVERITIES: Final[Mapping[str, int]] = {"debug": 5, "info": 9, "warning": 13, "error": 17, "critical": 21}
"""The smallest number of each range. Source: "Logs Data Model", "Mapping of SeverityNumber"."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def ecs(role: str) -> Processor:
    """Return what puts a line into the names of ECS. `role` is the command that this process runs."""
    source = {"ecs.version": ECS_VERSION, **_source(role)}

    def named(_logger: object, _method: str, fields: EventDict) -> EventDict:
        error = _take_error(fields)
        line = {  # the order that ECS loggers share, so that people can read it
            "@timestamp": fields.pop("timestamp"),
            "log.level": fields.pop("level"),
            "message": str(fields.pop("event")),
            "log.logger": fields.pop("logger"),
            **source,
            **dict(_named(fields, ECS_NAMES)),
        }
        if error is not None:
            line |= {
                "error.type": type(error).__qualname__,
                "error.message": line.get("error.message", str(error)),
                "error.stack_trace": _stack_trace(error),
            }
        return line

    return named


def otel(role: str) -> Processor:
    """Return what puts a line into the names of the OpenTelemetry log data model. `role` is as for `ecs`.

    The time is a decimal text of nanoseconds: as a number, it would lose its last digits in most programs.
    """
    resource = _source(role)

    def named(_logger: object, _method: str, fields: EventDict) -> EventDict:
        error = _take_error(fields)
        level = str(fields.pop("level"))
        line: dict[str, Any] = {
            "Timestamp": str(_nanoseconds(fields.pop("timestamp"))),
            "SeverityText": level.upper(),
            "SeverityNumber": SEVERITIES.get(level, SEVERITIES["info"]),
            "Body": str(fields.pop("event")),
            "Resource": resource,
            "InstrumentationScope": {"Name": fields.pop("logger")},
        }
        trace_id = fields.pop("trace_id", None)
        if trace_id is not None:
            line["TraceId"] = trace_id
        attributes = dict(_named(fields, OTEL_NAMES))
        if error is not None:
            attributes |= {
                "exception.type": type(error).__qualname__,
                "exception.message": attributes.get("exception.message", str(error)),
                "exception.stacktrace": _stack_trace(error),
            }
        line["Attributes"] = attributes
        return line

    return named


def _source(role: str) -> dict[str, Any]:
    """Return the fields that both formats have of a process. Their names are the same in both."""
    return {"service.name": f"order-service-{role}", "service.version": __version__, "process.pid": os.getpid()}


def _named(fields: EventDict, names: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield the fields that have a value, with their names in a format."""
    for name, value in fields.items():
        if value is not None:
            yield names.get(name, OWN + name), _plain(value)


def _plain(value: object) -> object:
    """Return a scalar, a list of scalars, or the text of anything else: an object would be a field for each key."""
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return json.dumps(value, default=str) if isinstance(value, Mapping) else str(value)


def _take_error(fields: EventDict) -> BaseException | None:
    """Take the exception out of the fields, in any form in which `logging` and structlog accept one."""
    error = fields.pop("exc_info", None)
    if error is True:
        return sys.exc_info()[1]
    if isinstance(error, tuple):
        error = error[1]
    return error if isinstance(error, BaseException) else None


def _stack_trace(error: BaseException) -> str:
    """Return the traceback without local variables: these hold payloads."""
    return "".join(traceback.format_exception(error)).rstrip()


def _nanoseconds(timestamp: str) -> int:
    return (datetime.fromisoformat(timestamp) - _EPOCH) // timedelta(microseconds=1) * 1000
