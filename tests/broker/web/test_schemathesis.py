"""The whole API against its document, with generated requests: good ones, bad ones, one after another."""

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure

from order_service.web.access.caller import Scope
from order_service.web.docs import openapi
from order_service.web.http.requests import new_id
from tests.support import tokens

DOCUMENT = json.loads(openapi.FILE.read_text(encoding="utf-8"))
EVENT = {
    "type": "object",
    "required": ["id", "event", "data"],
    "properties": {
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/OrderEvent"},
        }
    },
}
for path in ("/v1/events", "/v1/orders/{order_id}/stream"):
    # OpenAPI 3.1 can only say that a stream is text; Schemathesis takes it apart, and asks what each event is.
    DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]["text/event-stream"] = {"schema": EVENT}
KEY = "placed-before"
ORDER_ID = new_id("service:shop", KEY, "order")


def api(**parameters):
    """Read the document; what it is asked with is often one of these."""
    values = {"body.currency": "EUR", "body.discount": 0, "header.If-Match": "*", **parameters}
    values["header.X-Decide-By"] = "2999-12-31T00:00:00Z"
    settings = {
        "checks": {
            # A well-formed command can be refused all the same; what it is refused for, `is_understood` checks.
            "positive_data_acceptance": {"expected-statuses": ["2xx", "3xx", 400, 403, 404, 409, 412, 422, 504]},
            # A time of X-Decide-By that has passed.
            "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 504]},
            # An order is never deleted: DELETE cancels it, and its history stays.
            "use_after_free": {"enabled": False},
        },
        "dictionaries": {name.replace(".", "-"): {"values": [value]} for name, value in values.items()},
        "parameters": {name: {"dictionary": name.replace(".", "-"), "probability": 0.7} for name in values},
        "generation": {"with-security-parameters": False},  # the caller has its token; `ignored_auth` leaves it out
        # Only the links of the document: a guessed one leads to orders that an earlier scenario has changed.
        "phases": {"stateful": {"inference": {"algorithms": []}}},
        "max-stream-events": 1,
        "operations": [
            # A stream does not end: what has come after a second is looked at.
            {"include-tag": "Streams", "request-timeout": 1.0},
            # It reads topics, and may take as long as its deadline.
            {
                "include-operation-id": "why",
                "request-timeout": 40.0,
                "checks": {
                    "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 503]},
                    "positive_data_acceptance": {"expected-statuses": ["2xx", "3xx", 404, 503]},
                },
            },
            # It can be asked for a version that never comes.
            {
                "include-operation-id": "get_order",
                "checks": {
                    "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 503]},
                    "positive_data_acceptance": {"expected-statuses": ["2xx", "3xx", 400, 404, 503]},
                },
            },
        ],
    }
    return schemathesis.openapi.from_dict(DOCUMENT, config=SchemathesisConfig.from_dict(settings))


MISUNDERSTOOD = {"invalid_body", "invalid_parameter", "bad_request", "unsupported_media_type"}
FEW = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def served(shop, tmp_path_factory):
    """Serve callers that show a token; provide the address, and the headers of a caller that may do everything."""
    http, _ = shop.serve(ORDERS_WEB_RATE_PER_S="100000", **tokens.settings(tmp_path_factory.mktemp("tokens")))
    http.headers["Authorization"] = tokens.bearer("shop", Scope.ADMIN)
    assert http.create(KEY).body["order_id"] == ORDER_ID
    return f"http://127.0.0.1:{http.port}", http.headers


@api(**{"path.order_id": ORDER_ID}).parametrize()
@FEW
@pytest.mark.timeout(300)
def test_an_operation_does_what_the_document_says(case, served):
    url, headers = served
    case.call_and_validate(base_url=url, headers=patient(case, headers), additional_checks=[is_understood])


@pytest.mark.timeout(300)
def test_one_operation_after_another_does_what_the_document_says(served):
    url, headers = served
    machine: Any = api().exclude(tag="Streams").as_state_machine()

    class Caller(machine):  # type: ignore[misc] # made when the document is read
        """Follows the links of answers: what it has placed it reads, pays, ships and cancels."""

        def before_call(self, case):
            """Make each order a new one: a scenario that is played again must go the same way."""
            case.headers.pop("Idempotency-Key", None)

        def get_call_kwargs(self, case):
            return {"base_url": url, "headers": patient(case, headers)}

        def validate_response(self, response, case, **more):
            super().validate_response(response, case, **more, additional_checks=[is_understood])

    Caller.run(settings=settings(FEW, max_examples=30, stateful_step_count=8))


def patient(case, headers):
    """Do not wait for versions that never come."""
    return headers | ({"Prefer": "wait=0"} if "min_version" in (case.query or {}) else {})


def is_understood(_context, response, case):
    """A caller that keeps to the document may be refused, but is never told that the request is invalid."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code not in (400, 415, 422):
        return
    problem = response.json()
    kind = problem["type"].removeprefix("/problems/")
    if kind in MISUNDERSTOOD and not is_beyond_the_document(case, problem):
        raise Failure(operation=case.operation.label, title="Misunderstood", message=kind)


def is_beyond_the_document(case, problem):
    """Return whether a request has what no schema can forbid."""
    query, headers = case.query or {}, case.headers or {}
    is_no_place = "cursor" in query or "Last-Event-ID" in headers  # it looks like our own, and is not
    is_two_states = {"version", "at"} <= query.keys()
    is_latin_1 = not headers.get("X-Correlation-Id", "").isascii()  # this client does not send UTF-8
    is_bare = headers.get("If-Match", "").isdigit()  # Schemathesis 4.32 loses the quotes that the pattern has
    is_fraction = "must be a whole number" in [fault["detail"] for fault in problem.get("errors", ())]
    is_no_time = "X-Decide-By" in [fault["pointer"] for fault in problem.get("errors", ())]  # 30 February
    # The last one: 1.0 is an integer for JSON Schema, but neither here nor in Kafka.
    return is_no_place or is_two_states or is_latin_1 or is_bare or is_no_time or is_fraction
