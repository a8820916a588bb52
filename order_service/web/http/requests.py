"""Reads and checks the body, parameters and headers of a request. A Problem never repeats what was sent."""

import asyncio
import itertools
import json
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar
from uuid import uuid4

import msgspec
from aiohttp import web
from msgspec import Meta, Struct
from pydantic import ValidationError

from order_service.domain.decision import VERSION_MAX
from order_service.domain.identity import keyed_id
from order_service.domain.messages import FOREIGN_ID_MUST_BE, UtcTime
from order_service.domain.validation import is_foreign_id
from order_service.web.access.rate_limit import LARGE_BYTES
from order_service.web.api.bodies import DATE_TIME, Body, Query
from order_service.web.http.entity_tags import opaque_tags, version_of
from order_service.web.http.faults import faults_of, named, pointer_to
from order_service.web.http.problems import Fault, Problem, Trouble
from order_service.wire.avro import MAX_COMMAND_BYTES
from order_service.wire.json_numbers import BYTE_ORDER_MARK, with_whole_numbers
from order_service.wire.trace_context import MAX_TRACESTATE, TRACEPARENT, TRACESTATE, TraceContext

MAX_BODY_BYTES: Final = MAX_COMMAND_BYTES
BODY_WITHIN_S: Final = 15.0
TOKENS_MAX: Final = 20_000
"""The maximum number of texts, brackets and commas in a large body: three times those of the largest order."""
DEFAULT_WAIT_S: Final = 5
MAX_WAIT_S: Final = 30
JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"
CLOSE: Final = {"Connection": "close"}

_WAIT: Final = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?(\d{1,6})"?\s*(?:$|[,;])', re.IGNORECASE)
_RESPOND_ASYNC: Final = re.compile(r"(?:^|[,;\s])respond-async\s*(?:$|[,;])", re.IGNORECASE)
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{,]', re.DOTALL)
_VISIBLE: Final = re.compile(r"[\x21-\x7e]{1,200}\Z")
_TRACESTATE: Final = re.compile(rf"[\x20-\x7e]{{1,{MAX_TRACESTATE}}}\Z")
TRACE: Final = web.RequestKey("trace", TraceContext)
"""The key of the trace context of a request's span, if tracing is on."""

_DateTime = Annotated[str, Meta(pattern=DATE_TIME)]

LargeBody = Callable[[int], AbstractContextManager[None]]
"""Reserves what a large body of a size in bytes needs while it is received."""

_B = TypeVar("_B", bound=Body)
_Q = TypeVar("_Q", bound=Query)


async def read_body(request: web.Request, model: type[_B], *, may_be_empty: bool, large_body: LargeBody) -> _B:
    """Read a JSON body. A large one is received within `large_body`, which raises Problem if too many are."""
    data = (await _data(request, large_body)).removeprefix(BYTE_ORDER_MARK)
    if not data and may_be_empty:
        return model()
    if not data:
        raise _missing_body(model)
    if request.content_type != JSON:
        raise Problem(Trouble.UNSUPPORTED_MEDIA_TYPE, _other_type(request))
    if len(data) > LARGE_BYTES:  # it takes a tenth of a second
        return await asyncio.to_thread(_parsed, data, model)
    return _parsed(data, model)


def read_query(request: web.Request, model: type[_Q]) -> _Q:
    """Read the query parameters."""
    parameters = request.query
    duplicates = sorted(name for name in set(parameters) if len(parameters.getall(name)) > 1)
    if duplicates:
        raise Problem(Trouble.INVALID_PARAMETER, errors=[Fault(pointer_to(duplicates[:1]), "must appear once")])
    try:
        return model.model_validate(dict(parameters))
    except ValidationError as error:
        raise Problem(Trouble.INVALID_PARAMETER, errors=faults_of(error, model)) from None


class Preference(Struct, frozen=True):
    """How long to wait for an outcome, and the preference that was applied, or None."""

    wait_s: int
    applied: str | None


def preference(request: web.Request) -> Preference:
    """Return how long the caller is ready to wait (`Prefer: wait=N`; default 5 s, maximum 30 s)."""
    text = ",".join(request.headers.getall("Prefer", ()))
    match = _WAIT.search(text)
    if match:
        seconds = min(int(match[1]), MAX_WAIT_S)
        return Preference(seconds, f"wait={seconds}")
    return Preference(0, "respond-async") if _RESPOND_ASYNC.search(text) else Preference(DEFAULT_WAIT_S, None)


def idempotency_key(headers: Mapping[str, str]) -> str | None:
    """Return the `Idempotency-Key` (1…200 visible ASCII characters), or None."""
    return _visible_ascii(headers, "Idempotency-Key")


def expected_versions(request: web.Request) -> list[int] | None:
    """Return the versions in `If-Match`, in ascending order, or None if any version matches.

    The list is empty if no order can have one of these tags. `*` matches any: a command needs an order anyway, or
    creates one. Raises Problem if the header is malformed.
    """
    text = _joined(request, "If-Match")
    if text is None or text.strip() == "*":
        return None
    tags = opaque_tags(text)
    if tags is None:
        raise _bad_header("If-Match", 'must be versions in quotes, as in ETag: "3" or "3", "4"; or *')
    versions = {version_of(tag) for tag in tags}
    return sorted(version for version in versions if version is not None)


def etag_matches(request: web.Request, etag: str) -> bool:
    """Return whether `If-None-Match` lists `etag`, weakened or not: then the caller already has the content.

    A malformed header matches nothing.
    """
    text = _joined(request, "If-None-Match")
    return text is not None and (text.strip() == "*" or etag in (opaque_tags(text) or ()))


def correlation_id(headers: Mapping[str, str]) -> str | None:
    """Return the `X-Correlation-Id` that the events of the command carry, or None.

    It is UTF-8 and nothing in it is decoded: a `%` is a percent sign. Bytes that are not UTF-8 arrive as surrogates.
    """
    value = headers.get("X-Correlation-Id")
    if value is not None and not is_foreign_id(value):
        raise _bad_header("X-Correlation-Id", f"must be {FOREIGN_ID_MUST_BE}, in UTF-8")
    return value


def decide_by(headers: Mapping[str, str]) -> datetime | None:
    """Return the time of `X-Decide-By` in UTC, or None. Raises Problem if it is not an RFC 3339 time."""
    text = headers.get("X-Decide-By")
    if text is None:
        return None
    try:
        msgspec.convert(text, _DateTime)
        return msgspec.convert(text, UtcTime).astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):  # year 9999 in another zone may be year 10000 in UTC
        raise _bad_header("X-Decide-By", "must be an RFC 3339 time, such as 2026-11-24T09:05:00Z") from None


def trace_context(request: web.Request) -> TraceContext | None:
    """Return the caller's trace context. What is malformed is ignored. Source: W3C Trace Context."""
    tracestate = _joined(request, TRACESTATE) or ""
    is_passed_on = _TRACESTATE.match(tracestate)
    traceparent = request.headers.get(TRACEPARENT, "").encode(errors="replace")
    context = TraceContext(traceparent, tracestate.encode() if is_passed_on else None)
    return None if context.trace_id is None else context


def trace_of_commands(request: web.Request) -> TraceContext | None:
    """Return the trace context of the commands that a request leads to: of its span, or the caller's."""
    return request[TRACE] if TRACE in request else trace_context(request)


def last_event_id(headers: Mapping[str, str]) -> str | None:
    """Return the `Last-Event-ID`, or None if it is missing or empty."""
    return headers.get("Last-Event-ID") or None


def last_version(headers: Mapping[str, str]) -> int:
    """Return the version in the `Last-Event-ID` of one order's stream, or 0. Raises Problem if no order can have it."""
    event_id = last_event_id(headers) or "0"
    if not (event_id.isascii() and event_id.isdigit() and len(event_id) < 10) or int(event_id) > VERSION_MAX:
        raise bad_last_event_id()
    return int(event_id)


def bad_last_event_id() -> Problem:
    """Return the problem for a `Last-Event-ID` that this stream did not send."""
    return _bad_header("Last-Event-ID", "must be an id of this stream")


def new_id(actor: str, key: str | None, use: str) -> str:
    """Return an id: derived from actor, key and use, or random if there is no key."""
    return str(uuid4()) if key is None else keyed_id(actor, use, key)


def _parsed(data: bytes, model: type[_B]) -> _B:
    """Return the body in `data`. Raises Problem."""
    if len(data) > LARGE_BYTES:
        _check_extent(data)
    try:
        body = _validated(data, model)
    except ValidationError as error:
        raise Problem(Trouble.INVALID_BODY, errors=faults_of(error, model)) from None  # the cause holds the input
    json.loads(data, object_pairs_hook=_refuse_duplicates)  # pydantic takes the last one
    return body


def _validated(data: bytes, model: type[_B]) -> _B:
    """Return the body in `data`. Raises ValidationError."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        if all(fault["type"] != "int_type" for fault in faults):
            raise
        try:
            data = with_whole_numbers(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise error from None
    return model.model_validate_json(data)


async def _data(request: web.Request, large_body: LargeBody) -> bytes:
    """Read a body without decompression, within the limits of size and time."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(
            Trouble.UNSUPPORTED_MEDIA_TYPE,
            "The body is compressed; send it without Content-Encoding.",
            headers={"Accept-Encoding": "identity"},
        )
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise Problem(Trouble.TOO_LARGE, headers=CLOSE)
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            return await _received(request, large_body)
    except TimeoutError:
        raise Problem(Trouble.TOO_SLOW, headers=CLOSE) from None
    except Problem as problem:
        problem.headers = {**problem.headers, **CLOSE}
        raise
    except (web.RequestPayloadError, ConnectionError):  # a bad chunk, or the sender has disconnected
        raise Problem(Trouble.BAD_REQUEST, headers=CLOSE) from None


def _missing_body(model: type[Body]) -> Problem:
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    must_be = f"must be a JSON object with {named(required)}" if required else "must be a JSON object"
    return Problem(Trouble.INVALID_BODY, "The body is missing.", errors=[Fault("", must_be)])


def _other_type(request: web.Request) -> str:
    """Return what is wrong with the media type of a body."""
    send = f"Send `Content-Type: {JSON}`."
    if "Content-Type" not in request.headers:
        return f"The header `Content-Type` is missing. {send}"
    if request.content_type == FORM:
        return f"`Content-Type` says that the body is a form, which is the default of curl. {send}"
    return f"`Content-Type` names another type than JSON. {send}"


def _visible_ascii(headers: Mapping[str, str], name: str) -> str | None:
    value = headers.get(name)
    if value is not None and not _VISIBLE.match(value):
        raise _bad_header(name, "must be 1…200 visible ASCII characters")
    return value


async def _received(request: web.Request, large_body: LargeBody) -> bytes:
    data = bytearray()
    with ExitStack() as stack:
        async for chunk in request.content.iter_any():
            if len(data) <= LARGE_BYTES < len(data) + len(chunk):
                stack.enter_context(large_body(request.content_length or MAX_BODY_BYTES))
            data += chunk
            if len(data) > MAX_BODY_BYTES:
                raise Problem(Trouble.TOO_LARGE)
    return bytes(data)


def _check_extent(data: bytes) -> None:
    """Refuse a body with many times the names and values of an order, at the first one too many. Raises Problem.

    The model would read and report all of them, which takes seconds for a million names or lines.
    """
    if next(itertools.islice(_TOKEN.finditer(data), TOKENS_MAX, None), None) is not None:
        raise Problem(Trouble.INVALID_BODY, errors=[Fault("", "must not have more fields and lines than an order")])


def _refuse_duplicates(members: list[tuple[str, Any]]) -> None:
    """Refuse a duplicate name, of which a proxy may have read the other value."""
    if len(dict(members)) < len(members):
        raise Problem(Trouble.INVALID_BODY, errors=[Fault("", "must not have duplicate fields")])


def _joined(request: web.Request, name: str) -> str | None:
    """Return the value of a header that is a list, from all its lines, or None without one."""
    return ", ".join(request.headers.getall(name)) if name in request.headers else None


def _bad_header(name: str, must_be: str) -> Problem:
    return Problem(Trouble.INVALID_PARAMETER, errors=[Fault(name, must_be)])
