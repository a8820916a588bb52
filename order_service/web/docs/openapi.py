"""The OpenAPI 3.1 document, built from the table of routes: `python -m order_service.web.docs.openapi` writes it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from order_service import __version__
from order_service.domain.messages import FOREIGN_ID_JSON_SCHEMA, ID_JSON_PATTERN, CreateOrder
from order_service.domain.refusals import Reason
from order_service.operations.why.id_search import MAX_CHARACTERS
from order_service.sdk.testing import samples
from order_service.web.api.bodies import DATE_TIME, Query
from order_service.web.api.operations import OPERATIONS, Operation, problems_of
from order_service.web.docs import examples
from order_service.web.docs.json_schemas import (
    INTEGER,
    TEXT,
    Schema,
    not_null,
    one_of,
    plain,
    problem_name,
    ref,
    schemas,
)
from order_service.web.http.problems import ALL, BASE, MEDIA_TYPE, STATUS, Kind, Trouble

FILE: Final = Path(__file__).parent.with_name("static") / "openapi.json"

ABOUT: Final = """\
Every change is a command. A command is decided exactly once, and its response is sent when every reader can see the
result.

**Idempotency.** Send an `Idempotency-Key` with a command, and repeat both as often as you like. The command is applied
once, and every repeat gets the first response, marked `Idempotency-Replayed: true`. A refusal of an order that does not
exist is not final: a create that was refused is decided again when it is repeated, until it is accepted.

**Waiting.** A response waits up to `Prefer: wait=<seconds>` (default 5, maximum 30); then the status is 202. Poll
`Location`, on any server, for the outcome of this copy of the command. If you repeat a command while an earlier copy
waits for the User Service, the repeat may be dropped and its `Location` may stay 202. Send the command again with the
same key.

**Concurrency.** `ETag` is the version of an order. Sent back as `If-Match`, it applies a command to that version only;
for any other version the command is refused with 412.

**Problems.** Every error response is an RFC 9457 problem. Its `type` is [a page on this server](/problems) with the
cause and what to do. A problem never repeats what was sent.

**Topics.** [The events and the other topics in Kafka](/asyncapi) are for programs that follow all orders.

**Evolution.** Responses may get new members: ignore unknown ones. Requests with unknown members are refused.
"""

SCOPES: Final = """\
A signed token (JWT). By default, its `sub` is the caller. Without one of these scopes, the caller is a user, who can
read and change only their own orders; orders of other users are reported as missing. With one, it is a service:

| scope | permits |
| --- | --- |
| `orders:read` | reading all orders |
| `orders:pay` | recording payments |
| `orders:ship` | recording shipments and deliveries |
| `orders:admin` | everything, including orders for users, searching the topics, and the operator's page |

On loopback, the server can run without authentication: then every process on its machine has full access, but pages of
other sites have none.
"""

ANSWERS: Final = {
    "": "Not modified: you already have this version.",
    "Order": "The order.",
    "OrderPage": "A page of orders.",
    "History": "The history of the order.",
    "Outcome": "The outcome of the command.",
    "Undecided": "The command is in Kafka and is not decided yet. Poll `Location` for its outcome.",
    "Why": "Everything that the topics know about the id.",
    "Overview": "The figures of the last refresh, which is a few seconds old. The request itself reads nothing.",
    "OrderEvent": (
        "An endless stream of server-sent events. The data of each is an `OrderEvent` as JSON, its name is the `type` "
        "of that event, and its id resumes the stream as `Last-Event-ID`. A comment every 15 seconds shows that the "
        "connection is alive. No event is missed. In a stream of all orders with many partitions, events can be "
        "repeated after a reconnect: drop those whose version is not above the last one of their order."
    ),
}


def document() -> dict[str, Any]:
    """Return the document."""
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Order Service",
            "version": __version__,
            "summary": "Orders as events in Kafka; every command is decided exactly once.",
            "description": ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "tags": [
            {"name": "Commands", "description": "Changes of an order."},
            {"name": "Questions", "description": "Current and past states."},
            {"name": "Streams", "description": "Live events."},
        ],
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "responses": dict(
                _problems(operation, kinds) for operation in OPERATIONS for kinds in _by_status(operation)
            ),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": SCOPES}
            },
        },
    }


def text() -> str:
    """Return the text of the document, indented so that a diff shows single lines."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


# Operations


def _operation(operation: Operation) -> dict[str, Any]:
    tag = "Streams" if operation.is_stream else "Questions" if operation.command is None else "Commands"
    successes = {str(status): _success(operation, status, name) for status, name in operation.answers.items()}
    problems = {
        str(STATUS[kinds[0]]): {"$ref": f"#/components/responses/{_problems(operation, kinds)[0]}"}
        for kinds in _by_status(operation)
    }
    return {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [tag],
        "parameters": _parameters(operation),
        **_body(operation),
        "responses": dict(sorted((successes | problems).items())),
    }


def _body(operation: Operation) -> dict[str, Any]:
    if operation.body is None:
        return {}
    content = {"schema": ref(operation.body.__name__), "example": examples.BODIES[operation.body]}
    return {"requestBody": {"required": not operation.may_be_empty, "content": {"application/json": content}}}


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    names = [name for name in ("order_id", "command_id", "id") if f"{{{name}}}" in operation.path]
    if operation.command is not None:
        names += [
            "Idempotency-Key",
            "If-Match",
            "Prefer",
            "X-Decide-By",
            "X-Correlation-Id",
            "traceparent",
            "tracestate",
        ]
    if operation.name == "get_order":
        names += ["If-None-Match", "Prefer"]
    if operation.is_stream:
        names += ["Last-Event-ID"]
    names += ["X-Request-Id"]
    return [{"$ref": f"#/components/parameters/{name}"} for name in names] + list(_query(operation.query))


def _query(model: type[Query]) -> Iterable[dict[str, Any]]:
    """Yield the parameters of a query. A missing parameter is absent, never null."""
    for name, property_schema in plain(model.model_json_schema()).get("properties", {}).items():
        schema = not_null(property_schema)
        description = {"description": schema.pop("description")} if "description" in schema else {}
        yield {"name": name, "in": "query", **description, "schema": schema}


# Responses


def _success(operation: Operation, status: int, name: str) -> dict[str, Any]:
    headers = {
        "ETag": name in {"", "Order"},
        "Location": status == 201 or (name == "Undecided" and operation.command is not None),
        "Retry-After": name == "Undecided",
        "Link": name in {"OrderPage", "History"},
        "Preference-Applied": operation.command is not None,
        "Idempotency-Replayed": operation.command is not None and name == "Order",
        "X-Request-Id": True,
    }
    response = {
        "description": ANSWERS[name],
        "headers": {header: _header(header) for header, is_sent in headers.items() if is_sent},
        "content": _content(operation, name),
        "links": _links(operation, name),
    }
    return {key: value for key, value in response.items() if value}


def _content(operation: Operation, name: str) -> dict[str, Any]:
    example = {"example": examples.successes().get(name)}
    if operation.is_stream:
        return {"text/event-stream": {"schema": TEXT} | example}
    return {"application/json": {"schema": ref(name)} | example} if name else {}


def _links(operation: Operation, name: str) -> dict[str, Any]:
    """Return the links from the response to a command."""
    if operation.command is None:
        return {}
    ids = {"order_id": "$response.body#/order_id"}
    if name == "Undecided":
        ids |= {name: f"$response.body#/{name}" for name in ("command_id", "copy_id")}
        return {"outcome": {"operationId": "get_command", "parameters": ids}}
    if operation.command is not CreateOrder:
        return {}
    linked = [other for other in OPERATIONS if "{order_id}" in other.path and "{command_id}" not in other.path]
    return {other.name: {"operationId": other.name, "parameters": ids} for other in linked}


def _by_status(operation: Operation) -> list[list[Kind]]:
    """Return the problems of an operation, grouped by status."""
    kinds = problems_of(operation)
    return [[kind for kind in kinds if STATUS[kind] == status] for status in sorted({STATUS[kind] for kind in kinds})]


def _problems(operation: Operation, kinds: list[Kind]) -> tuple[str, dict[str, Any]]:
    """Return the response for these problems, and the name under which all operations share it."""
    is_refusal = operation.command is not None and any(isinstance(kind, Reason) for kind in kinds)
    headers = {
        "Retry-After": STATUS[kinds[0]] in {429, 503},
        "WWW-Authenticate": Trouble.UNAUTHORIZED in kinds,
        "Preference-Applied": is_refusal,
        "Idempotency-Replayed": is_refusal,
        "X-Request-Id": True,
    }
    response = {
        "description": "\n".join(f"* [{kind}]({BASE}{kind}): {ALL[kind].cause} {ALL[kind].cure}" for kind in kinds),
        "headers": {header: _header(header) for header, is_sent in headers.items() if is_sent},
        "content": {
            MEDIA_TYPE: {
                "schema": one_of("type", {BASE + kind: problem_name(kind) for kind in kinds}),
                "examples": {
                    kind.value: {"value": examples.command_problem(kind) if is_refusal else examples.problem(kind)}
                    for kind in kinds
                },
            }
        },
    }
    name = "-or-".join(kinds) + ("-of-a-command" if is_refusal else "")
    return name, {key: value for key, value in response.items() if value}


# Parameters and headers


def _in_path(description: str, schema: Schema, example: str) -> dict[str, Any]:
    return {"in": "path", "required": True, "description": description, "schema": schema, "example": example}


def _in_header(description: str, schema: Schema, example: str) -> dict[str, Any]:
    """Return an optional header. Its example is in the schema: Swagger UI would send one of the parameter itself."""
    return {"in": "header", "description": description, "schema": schema | {"examples": [example]}}


def _response_header(description: str, schema: Schema, *, required: bool = True) -> dict[str, Any]:
    return {"description": description, **({"required": True} if required else {}), "schema": schema}


def _header(name: str) -> Schema:
    return {"$ref": f"#/components/headers/{name}"}


ID: Final[Schema] = {"type": "string", "pattern": ID_JSON_PATTERN}
VISIBLE: Final[Schema] = {"type": "string", "pattern": "^[!-~]{1,200}$"}

_PARAMETERS: Final = {
    "order_id": _in_path("The order id.", ID, examples.ORDER_ID),
    "command_id": _in_path("The command id, from a 202 response or a problem.", ID, examples.COMMAND_ID),
    "id": _in_path(
        "An order id, command id, payment id, tracking number or `Idempotency-Key`; or the partition and offset of a "
        "command, as `partition:offset`.",
        {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS},
        examples.ORDER_ID,
    ),
    "Idempotency-Key": _in_header(
        "Makes repeats safe: for one order, a command with the same key of the same caller is applied once. Use a "
        "new key for every new command.",
        VISIBLE,
        examples.KEY,
    ),
    "If-Match": _in_header(
        "The version that the order must have, from `ETag`, or several of them; `*` matches any version. A tag that a "
        "proxy has weakened (`W/`) counts.",
        {"type": "string", "pattern": r'^(\*|(W/)?"[!#-~]*"(, (W/)?"[!#-~]*")*)$'},
        '"1"',
    ),
    "If-None-Match": _in_header("The versions that you already have, from `ETag`.", TEXT, '"1"'),
    "Prefer": _in_header(
        "How long to wait: `wait=<seconds>`, default 5, maximum 30; `respond-async` does not wait. RFC 7240.",
        TEXT,
        "wait=10",
    ),
    "X-Decide-By": _in_header(
        "The deadline of a command: an RFC 3339 time with `T`, and `Z` or an offset. After it, the command is "
        "refused with `deadline_passed`. Send it again with a later time and the same `Idempotency-Key`.",
        {"type": "string", "pattern": DATE_TIME},
        "2026-11-24T09:05:00Z",
    ),
    "X-Correlation-Id": _in_header(
        "A correlation id that the events of this command carry. It is sent in UTF-8, and nothing in it is decoded.",
        FOREIGN_ID_JSON_SCHEMA,
        samples.CORRELATION_ID,
    ),
    "traceparent": _in_header(
        "The trace context of the request; ignored if malformed. W3C Trace Context.",
        TEXT,
        samples.TRACEPARENT,
    ),
    "tracestate": _in_header(
        "What tracing systems add to the trace context, passed on unchanged; ignored without `traceparent`, or if it "
        "is longer than 512 characters. W3C Trace Context.",
        TEXT,
        samples.TRACESTATE,
    ),
    "X-Request-Id": _in_header(
        "An id for this request, which the log of the server has: 1 to 128 visible characters of ASCII. Without a "
        "valid one, the server chooses it.",
        TEXT,
        "5f0c2f9d",
    ),
    "Last-Event-ID": _in_header(
        "The id of the last event received, an opaque text; the stream starts with the next one. With many partitions, "
        "`/v1/events` starts up to 15 seconds of events earlier (30 if a projector has hung), or up to an hour if the "
        "id is more than a day old. Such an id is valid for 90 days. An id that this server's views have not reached "
        "yet is waited for.",
        TEXT,
        "2",
    ),
}
PARAMETERS: Final = {name: {"name": name, **parameter} for name, parameter in _PARAMETERS.items()}

HEADERS: Final = {
    "ETag": _response_header("The version of the order.", {"type": "string", "pattern": '^"[0-9]+"$'}),
    "Location": _response_header("The URL of the order, or of the outcome of the command.", TEXT),
    "Retry-After": _response_header("Seconds to wait before a retry.", INTEGER),
    "WWW-Authenticate": _response_header("The required authentication: a bearer token.", TEXT),
    "Link": _response_header(
        'In a list: the next page, if one exists: `<…>; rel="next"`. In a history: the operations on the order, for '
        'callers with the scope `orders:admin`: `<…>; rel="related"`.',
        TEXT,
        required=False,
    ),
    "Preference-Applied": _response_header(
        "The maximum wait that was applied, if `Prefer` was sent.", TEXT, required=False
    ),
    "Idempotency-Replayed": _response_header(
        "`true` if this is the response of an earlier request.", {"type": "string", "const": "true"}, required=False
    ),
    "X-Request-Id": _response_header(
        "The id of this request in the log of the server. Missing if the request was not well-formed HTTP.",
        TEXT,
        required=False,
    ),
}


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
