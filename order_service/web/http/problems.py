"""Error responses: RFC 9457 problems. The type of a refused command's problem is its reason."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final

import msgspec
from aiohttp import web
from msgspec import Struct

from order_service.domain.messages import Command, Rejection
from order_service.domain.refusals import MEANINGS, Meaning, Reason

MEDIA_TYPE: Final = "application/problem+json"
BASE: Final = "/problems/"


class Trouble(StrEnum):
    """The problem types of requests, beside the refusal reasons of the domain."""

    INVALID_BODY = "invalid_body"
    INVALID_PARAMETER = "invalid_parameter"
    UNAUTHORIZED = "unauthorized"
    CROSS_SITE_REQUEST = "cross_site_request"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    TOO_LARGE = "too_large"
    TOO_SLOW = "too_slow"
    TOO_MANY_REQUESTS = "too_many_requests"
    BAD_REQUEST = "bad_request"
    VIEWS_NOT_READY = "views_not_ready"
    SERVICE_UNAVAILABLE = "service_unavailable"
    INTERNAL = "internal"


Kind = Reason | Trouble

STATUS: Final[dict[Kind, int]] = {
    Reason.ORDER_EXISTS: 409,
    Reason.ORDER_NOT_FOUND: 404,
    Reason.ORDER_CANCELLED: 409,
    Reason.NOT_PAID: 409,
    Reason.NOT_SHIPPED: 409,
    Reason.ALREADY_PAID: 409,
    Reason.ALREADY_SHIPPED: 409,
    Reason.ALREADY_DELIVERED: 409,
    Reason.PAYMENT_MISMATCH: 422,
    Reason.TOO_MANY_CHANGES: 409,
    Reason.INVALID_ORDER: 422,
    Reason.VERSION_CONFLICT: 412,
    Reason.NOT_ALLOWED: 403,
    Reason.COMMAND_ID_REUSED: 422,
    Reason.DEADLINE_PASSED: 504,
    Reason.TOO_MANY_WAITING: 429,
    Reason.USER_NOT_FOUND: 422,
    Reason.USER_NOT_ACTIVE: 422,
    Reason.USER_CHECK_TIMED_OUT: 504,
    Trouble.INVALID_BODY: 422,
    Trouble.INVALID_PARAMETER: 400,
    Trouble.UNAUTHORIZED: 401,
    Trouble.CROSS_SITE_REQUEST: 403,
    Trouble.NOT_FOUND: 404,
    Trouble.METHOD_NOT_ALLOWED: 405,
    Trouble.UNSUPPORTED_MEDIA_TYPE: 415,
    Trouble.TOO_LARGE: 413,
    Trouble.TOO_SLOW: 408,
    Trouble.TOO_MANY_REQUESTS: 429,
    Trouble.BAD_REQUEST: 400,
    Trouble.VIEWS_NOT_READY: 503,
    Trouble.SERVICE_UNAVAILABLE: 503,
    Trouble.INTERNAL: 500,
}

TROUBLES: Final[dict[Trouble, Meaning]] = {
    Trouble.INVALID_BODY: Meaning(
        "The body does not match the JSON schema of this route.", "Correct the fields that `errors` points to."
    ),
    Trouble.INVALID_PARAMETER: Meaning(
        "A parameter is unknown, or a parameter or header has an invalid value.",
        "Correct the parameters and headers that `errors` names.",
    ),
    Trouble.UNAUTHORIZED: Meaning("The request has no valid token.", "Send `Authorization: Bearer <token>`."),
    Trouble.CROSS_SITE_REQUEST: Meaning(
        "Authentication is off, so only requests from this machine are served. This request names another host, or a "
        "page of another site sent it.",
        "Call 127.0.0.1 or localhost, not from another site's page; or turn on authentication with `ORDERS_JWT_…`. "
        "`ORDERS_HTTP_HOSTS` allows the host name of a proxy, `ORDERS_HTTP_CORS_ORIGINS` the pages of a site.",
    ),
    Trouble.NOT_FOUND: Meaning("The resource does not exist, or you may not see it.", "Check the URL."),
    Trouble.METHOD_NOT_ALLOWED: Meaning("This route does not support the method.", "Use a method that `Allow` lists."),
    Trouble.UNSUPPORTED_MEDIA_TYPE: Meaning(
        "The header `Content-Type` is missing or names another type than JSON, or the body is compressed.",
        "Send JSON with the header `Content-Type: application/json`.",
    ),
    Trouble.TOO_LARGE: Meaning("The body is larger than 5 MiB.", "Reduce the body to 5 MiB or less."),
    Trouble.TOO_SLOW: Meaning("The body was not received within 15 s.", "Send the complete body within 15 s."),
    Trouble.TOO_MANY_REQUESTS: Meaning(
        "The rate limit is exceeded, too many requests are waiting, too many event streams are open, or another search "
        "of the topics is running.",
        "Retry after `Retry-After` seconds.",
    ),
    Trouble.BAD_REQUEST: Meaning(
        "The request is not well-formed HTTP.", "Correct the request line, the headers or the chunks of the body."
    ),
    Trouble.VIEWS_NOT_READY: Meaning(
        "The views are behind, are being built, or are stopped for the partition of this order.",
        "Retry after `Retry-After` seconds.",
    ),
    Trouble.SERVICE_UNAVAILABLE: Meaning(
        "Kafka, the database or the token keys are unavailable, a search of the topics took too long, or the server is "
        "shutting down. The command may nevertheless have reached Kafka.",
        "Retry after `Retry-After` seconds. Repeat a command with the same `Idempotency-Key`, so that it applies once.",
    ),
    Trouble.INTERNAL: Meaning("Internal error.", "Retry later; report the error if it persists."),
}

ALL: Final = dict[Kind, Meaning]([*MEANINGS.items(), *TROUBLES.items()])
"""All problem types, with the cause and what to do."""


class Fault(Struct, frozen=True):
    """One error in a request: its location and the expected value. It never repeats what was sent."""

    pointer: str
    detail: str


class Problem(Exception):
    """An error response; `more` holds members beside those of RFC 9457."""

    def __init__(
        self,
        kind: Kind,
        detail: str = "",
        *,
        errors: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(kind)
        self.kind = kind
        self.detail = detail or ALL[kind].cause
        self.headers = headers or {}
        self.more = {**({"errors": errors} if errors else {}), **more}

    @property
    def status(self) -> int:
        """The HTTP status code."""
        return STATUS[self.kind]

    def response(self, base_path: str) -> web.Response:
        """Return the HTTP response; its type is a URL below `base_path`."""
        body = {
            "type": f"{base_path}{BASE}{self.kind}",
            "title": title(self.kind),
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }
        return web.Response(
            body=msgspec.json.encode(body), status=self.status, content_type=MEDIA_TYPE, headers=self.headers
        )


def title(kind: Kind) -> str:
    """Return the title of a problem type, such as `Not found` for `not_found`."""
    return kind.replace("_", " ").capitalize()


def refused(rejection: Rejection, command: Command, headers: Mapping[str, str] | None = None) -> Problem:
    """Return the problem for the request whose command was rejected."""
    kind = Reason(rejection.reason)
    expected = {"expected_version": command.expected_version} if kind is Reason.VERSION_CONFLICT else {}
    return Problem(
        kind,
        rejection.detail,
        errors=[] if rejection.pointer is None else [Fault(rejection.pointer, rejection.detail)],
        headers={**(headers or {}), **({"Retry-After": "1"} if STATUS[kind] == HTTPStatus.TOO_MANY_REQUESTS else {})},
        order_id=rejection.order_id,
        command_id=rejection.command_id,
        order_status=rejection.status,
        order_version=rejection.version,
        **expected,
    )
