"""What a request says, checked: its body, its parameters, its headers. A fault is a Problem that never repeats it."""

import asyncio
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID, uuid4, uuid5

import msgspec
from aiohttp import ETag, web
from aiohttp.web_exceptions import HTTPRequestEntityTooLarge
from msgspec import Meta, Struct
from pydantic import ValidationError

from order_service.domain.messages import UtcTime
from order_service.web.api.bodies import DATE_TIME, Body, Query
from order_service.web.http.problems import Fault, Problem, Trouble

MAX_BODY_BYTES: Final = 64 * 1024
BODY_WITHIN_S: Final = 15.0
DEFAULT_WAIT_S: Final = 5
MAX_WAIT_S: Final = 30
CLOSE: Final = {"Connection": "close"}

_IDS: Final = UUID("0c8f7c1e-54f1-5b0e-8d54-3b6a5f0f9f5e")
"""The namespace of the ids that we make; another one, and a key that was used before is unknown."""
_WAIT: Final = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?(\d{1,6})"?\s*(?:$|[,;])', re.IGNORECASE)
_RESPOND_ASYNC: Final = re.compile(r"(?:^|[,;\s])respond-async\s*(?:$|[,;])", re.IGNORECASE)
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_VISIBLE: Final = re.compile(r"[\x21-\x7e]{1,200}\Z")
_TRACE: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")

_DateTime = Annotated[str, Meta(pattern=DATE_TIME)]

_B = TypeVar("_B", bound=Body)
_Q = TypeVar("_Q", bound=Query)


async def read_body(request: web.Request, model: type[_B], *, may_be_empty: bool) -> _B:
    """Read a body of JSON. A name that stands twice is refused: others on the way may have read the other one."""
    data = await _data(request)
    if not data and may_be_empty:
        return model()
    if request.content_type != "application/json":
        raise Problem(Trouble.UNSUPPORTED_MEDIA_TYPE)
    try:
        body = model.model_validate_json(data)
    except ValidationError as error:
        raise Problem(Trouble.INVALID_BODY, errors=list(_faults(error))) from None  # its cause holds the input
    json.loads(data, object_pairs_hook=_once)  # pydantic takes the last one
    return body


def read_query(request: web.Request, model: type[_Q]) -> _Q:
    """Read the parameters behind the `?`."""
    given = request.query
    twice = sorted(name for name in set(given) if len(given.getall(name)) > 1)
    if twice:
        raise Problem(Trouble.INVALID_PARAMETER, errors=[Fault(f"/{_step(twice[0])}", "must stand there once")])
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        raise Problem(Trouble.INVALID_PARAMETER, errors=list(_faults(error))) from None


class Preference(Struct, frozen=True):
    """How long the caller would wait, and which of its preferences that was; None if it named none of these."""

    wait_s: int
    applied: str | None


def prefer(request: web.Request) -> Preference:
    """Say how long the caller would wait (`Prefer: wait=N`, 5 s if it does not say, 30 s at most)."""
    given = ",".join(request.headers.getall("Prefer", ()))
    found = _WAIT.search(given)
    if found:
        seconds = min(int(found[1]), MAX_WAIT_S)
        return Preference(seconds, f"wait={seconds}")
    return Preference(0, "respond-async") if _RESPOND_ASYNC.search(given) else Preference(DEFAULT_WAIT_S, None)


def idempotency_key(headers: Mapping[str, str]) -> str | None:
    """Give the `Idempotency-Key`: 1…200 visible ASCII characters."""
    return _visible_ascii(headers, "Idempotency-Key")


def expected_version(request: web.Request) -> int | None:
    """Give the version that `If-Match` names; `*` names none: a command needs an order anyway, or makes one."""
    if "If-Match" not in request.headers:
        return None
    tags = request.if_match or ()
    if [tag.value for tag in tags] == ["*"]:
        return None
    version = _version(tags[0]) if len(tags) == 1 else None
    if version is None:
        raise _bad_header("If-Match", 'must be one version in quotes, as ETag gives it: "3"')
    return version


def has(request: web.Request, tag: str) -> bool:
    """Tell whether `If-None-Match` names a tag, whose content its sender then has."""
    return any(given.value in ("*", tag) for given in request.if_none_match or ())


def correlation_id(headers: Mapping[str, str]) -> str | None:
    """Give the `X-Correlation-Id`, which its events then carry."""
    return _visible_ascii(headers, "X-Correlation-Id")


def decide_by(headers: Mapping[str, str]) -> datetime | None:
    """Return the time of `X-Decide-By` in UTC, or None. Raise Problem if it is not a time as the document says it."""
    given = headers.get("X-Decide-By")
    if given is None:
        return None
    try:
        msgspec.convert(given, _DateTime)
        return msgspec.convert(given, UtcTime).astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):  # the year 9999 of another zone may be the year 10000 of UTC
        raise _bad_header("X-Decide-By", "must be a time of RFC 3339, as 2026-11-24T09:05:00Z") from None


def trace_headers(headers: Mapping[str, str]) -> list[tuple[str, bytes]]:
    """Hand a well-formed `traceparent` on. Source: W3C Trace Context; one that is not is ignored."""
    given = headers.get("traceparent", "")
    return [("traceparent", given.encode())] if _TRACE.match(given) else []


def last_event_id(headers: Mapping[str, str]) -> str | None:
    """Give the `Last-Event-ID`, or None."""
    return headers.get("Last-Event-ID") or None


def bad_last_event_id() -> Problem:
    """Refuse a `Last-Event-ID` that is none of ours."""
    return _bad_header("Last-Event-ID", "must be an id of this stream")


def new_id(actor: str, key: str | None, use: str) -> str:
    """Make an id: always the same one for a caller's key and a use of it, without a key another one every time."""
    return str(uuid4() if key is None else uuid5(_IDS, f"{actor}\0{use}\0{key}"))


async def _data(request: web.Request) -> bytes:
    """Read a body as it is sent, up to a size and a time."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(
            Trouble.UNSUPPORTED_MEDIA_TYPE, "The body is compressed.", headers={"Accept-Encoding": "identity"}
        )
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise Problem(Trouble.TOO_LARGE, headers=CLOSE)
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            return await request.read()
    except TimeoutError:
        raise Problem(Trouble.TOO_SLOW, headers=CLOSE) from None
    except HTTPRequestEntityTooLarge:
        raise Problem(Trouble.TOO_LARGE, headers=CLOSE) from None
    except (web.RequestPayloadError, ConnectionError):  # a bad chunk, or its sender has gone
        raise Problem(Trouble.BAD_REQUEST, headers=CLOSE) from None


def _visible_ascii(headers: Mapping[str, str], name: str) -> str | None:
    given = headers.get(name)
    if given is not None and not _VISIBLE.match(given):
        raise _bad_header(name, "must be 1…200 visible ASCII characters")
    return given


def _once(members: list[tuple[str, Any]]) -> None:
    if len(dict(members)) < len(members):
        raise Problem(Trouble.INVALID_BODY, errors=[Fault("", "must name each field of an object once")])


def _version(tag: ETag) -> int | None:
    return int(tag.value) if re.fullmatch(r"[0-9]{1,9}", tag.value) and not tag.is_weak else None


def _bad_header(name: str, must_be: str) -> Problem:
    return Problem(Trouble.INVALID_PARAMETER, errors=[Fault(name, must_be)])


def _faults(error: ValidationError) -> Iterable[Fault]:
    for fault in error.errors(include_url=False, include_context=False, include_input=False)[:20]:
        pointer = "".join(f"/{_step(part)}" for part in fault["loc"])
        yield Fault(pointer[:200], _said(fault["type"], fault["msg"]))


def _said(kind: str, message: str) -> str:
    """Say what is wrong. What the parser says of bad JSON can hold a piece of it."""
    return "is not well-formed JSON" if kind == "json_invalid" else message.removeprefix("Value error, ")


def _step(part: int | str) -> str:
    """Write one step of a pointer; a name that none of our fields can have is not repeated."""
    return str(part) if _NAME.match(str(part)) else "?"
