"""The problem of a refused command: what a caller over HTTP reads about it."""

from typing import Any, cast

import msgspec

from order_service.domain.decision import reject
from order_service.domain.messages import Rejection
from order_service.domain.refusals import Reason, Refusal
from order_service.web.http.problems import refused
from order_service.wire.avro import decode_rejection
from tests.support.samples import NOW, but, pay
from tests.unit.wire.table import GOLDEN


def body_of(rejection: Rejection) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(cast("bytes", refused(rejection, pay).response("").body))
    return body


def errors_of(refusal: Refusal) -> Any:
    return body_of(reject(pay, None, NOW, refusal)).get("errors")


def test_the_error_has_the_pointer_of_the_refusal_in_any_wording():
    detail = "Use an ISO 4217 currency code."
    refusal = Refusal(Reason.INVALID_ORDER, detail, "/currency")
    assert errors_of(refusal) == [{"pointer": "/currency", "detail": detail}]


def test_a_refusal_of_no_single_field_has_no_errors():
    assert errors_of(Refusal(Reason.INVALID_ORDER, "/currency must be EUR")) is None
    assert errors_of(Refusal(Reason.NOT_PAID)) is None


def test_a_rejection_from_before_the_pointer_is_answered_without_errors():
    old = decode_rejection(bytes.fromhex((GOLDEN / "Rejection.v1.hex").read_text()))
    body = body_of(but(old, reason="invalid_order", detail="/currency must be an ISO 4217 currency code"))
    assert "errors" not in body
    assert (body["status"], body["detail"]) == (422, "/currency must be an ISO 4217 currency code")
