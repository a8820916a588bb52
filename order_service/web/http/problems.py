"""Answers that are no success: RFC 9457 problems. A refused command's reason is the problem's type."""

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
    """Why a request got no answer, beside the reasons of the domain."""

    INVALID_BODY = "invalid_body"
    INVALID_PARAMETER = "invalid_parameter"
    UNAUTHORIZED = "unauthorized"
    FOREIGN_SITE = "foreign_site"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    TOO_LARGE = "too_large"
    TOO_SLOW = "too_slow"
    TOO_MANY_REQUESTS = "too_many_requests"
    BAD_REQUEST = "bad_request"
    NOT_YET = "not_yet"
    AWAY = "away"
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
    Trouble.FOREIGN_SITE: 403,
    Trouble.NOT_FOUND: 404,
    Trouble.METHOD_NOT_ALLOWED: 405,
    Trouble.UNSUPPORTED_MEDIA_TYPE: 415,
    Trouble.TOO_LARGE: 413,
    Trouble.TOO_SLOW: 408,
    Trouble.TOO_MANY_REQUESTS: 429,
    Trouble.BAD_REQUEST: 400,
    Trouble.NOT_YET: 503,
    Trouble.AWAY: 503,
    Trouble.INTERNAL: 500,
}

TROUBLES: Final[dict[Trouble, Meaning]] = {
    Trouble.INVALID_BODY: Meaning(
        "The body is no JSON object of the form that this route takes.", "Correct what `errors` points to."
    ),
    Trouble.INVALID_PARAMETER: Meaning(
        "A parameter or header is unknown or has no value that it can have.", "Correct what `errors` names."
    ),
    Trouble.UNAUTHORIZED: Meaning("The request carries no valid token.", "Send `Authorization: Bearer <token>`."),
    Trouble.FOREIGN_SITE: Meaning(
        "Nobody is asked for a token here, so this machine alone is served: the request names another host, or a page "
        "of another site has sent it.",
        "Ask 127.0.0.1 or localhost, from no other site's page; or run the service with `ORDERS_JWT_…`.",
    ),
    Trouble.NOT_FOUND: Meaning("Nothing is there, or nothing that you may see.", "Check the address."),
    Trouble.METHOD_NOT_ALLOWED: Meaning("The route does not know this method.", "Use one that `Allow` names."),
    Trouble.UNSUPPORTED_MEDIA_TYPE: Meaning("The body is not JSON.", "Send `Content-Type: application/json`."),
    Trouble.TOO_LARGE: Meaning("The body is larger than 64 KiB.", "Send less."),
    Trouble.TOO_SLOW: Meaning("The body did not arrive in time.", "Send it faster."),
    Trouble.TOO_MANY_REQUESTS: Meaning(
        "You ask more often than you may, or too many requests wait already.", "Send it again after `Retry-After`."
    ),
    Trouble.BAD_REQUEST: Meaning("The request is no well-formed HTTP.", "Correct it."),
    Trouble.NOT_YET: Meaning(
        "The views have not come so far yet, are being built, or are stopped for the partition of this order.",
        "Send it again after `Retry-After`.",
    ),
    Trouble.AWAY: Meaning(
        "Kafka, the database or the token keys cannot be reached. A command may have arrived all the same.",
        "Send it again after `Retry-After`, a command with the same `Idempotency-Key`: it then happens once.",
    ),
    Trouble.INTERNAL: Meaning("The service has a fault.", "Send it again later, and tell us."),
}

ALL: Final = dict[Kind, Meaning]([*MEANINGS.items(), *TROUBLES.items()])
"""All kinds of problems."""


class Fault(Struct, frozen=True):
    """One thing that is wrong with a request: where, and what it must be. It never repeats what was sent."""

    pointer: str
    detail: str


class Problem(Exception):
    """An answer that is no success; `more` are members beside those of RFC 9457."""

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
        """The HTTP status."""
        return STATUS[self.kind]

    def response(self) -> web.Response:
        """Make the answer."""
        body = {
            "type": BASE + self.kind,
            "title": title(self.kind),
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }
        return web.Response(
            body=msgspec.json.encode(body), status=self.status, content_type=MEDIA_TYPE, headers=self.headers
        )


def title(kind: Kind) -> str:
    """Say in short what a problem is; the same for all problems of a kind."""
    return kind.replace("_", " ").capitalize()


def refused(rejection: Rejection, command: Command, headers: Mapping[str, str] | None = None) -> Problem:
    """Turn a rejection into the answer to the request that led to its command."""
    kind = Reason(rejection.reason)
    expected = {"expected_version": command.expected_version} if kind is Reason.VERSION_CONFLICT else {}
    return Problem(
        kind,
        rejection.detail,
        errors=_faults_of(rejection),
        headers={**(headers or {}), **({"Retry-After": "1"} if STATUS[kind] == HTTPStatus.TOO_MANY_REQUESTS else {})},
        order_id=rejection.order_id,
        command_id=rejection.command_id,
        order_status=rejection.status,
        order_version=rejection.version,
        **expected,
    )


def _faults_of(rejection: Rejection) -> list[Fault]:
    """Take the pointer out of an `invalid_order`: `/lines/0/quantity must be 1…1000000`."""
    pointer, said, must_be = rejection.detail.partition(" must be ")
    is_one = rejection.reason == Reason.INVALID_ORDER and said and pointer.startswith("/")
    return [Fault(pointer, f"must be {must_be}")] if is_one else []
