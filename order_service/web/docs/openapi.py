"""The OpenAPI 3.1 document, made from the table of routes. `python -m order_service.web.docs.openapi` writes it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from order_service import __version__
from order_service.domain.messages import CreateOrder
from order_service.domain.refusals import Reason
from order_service.web.api.bodies import DATE_TIME, ID, Query
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
A change is a command. It is decided once, and its answer comes when everybody can read what it made.

**Once.** Send an `Idempotency-Key` with a command and repeat both as often as you like: the command happens once, and
every repetition gets the first answer, marked `Idempotency-Replayed: true`.

**In time.** An answer waits for the decision as long as `Prefer: wait=<seconds>` says: 5 if it says nothing, 30 at
most. After that it is 202. Ask its `Location`, at any server, for the outcome of this copy of the command. A repeat of
a command that waits for the User Service may be dropped, and can stay 202: send it once more with its key.

**At a version.** `ETag` is the version of an order. Sent back as `If-Match`, it makes a command apply to that version
only; another one is refused with 412.

**Problems.** Whatever does not succeed is a problem of RFC 9457. Its `type` is [a page here](/problems) that names
cause and cure, and it never repeats what was sent.

**What may come.** Answers may get more members; ignore those that you do not know. A body or query with a member that
is not named here is refused.
"""

SCOPES: Final = """\
A signed token (JWT). Its `sub` is the caller. Without one of these scopes that is a user, who sees and touches its own
orders only; those of others do not exist for it. With one of them it is a service:

| scope | allows |
| --- | --- |
| `orders:read` | to read all orders |
| `orders:pay` | to record payments |
| `orders:ship` | to record that orders were shipped and delivered |
| `orders:admin` | all, also to place, change and cancel orders for users |

A service on loopback can run without keys: then it asks nobody for a token, and everybody on its machine may do all,
save pages of other sites.
"""

ANSWERS: Final = {
    "": "You have this version already.",
    "Order": "The order.",
    "OrderPage": "A page of orders.",
    "History": "The history of the order.",
    "Outcome": "What became of the command.",
    "Undecided": "The command is in Kafka and not decided yet. Ask `Location` what became of it.",
    "OrderEvent": (
        "Server-sent events, without end. The data of each is an `OrderEvent` as JSON, its name is the `type` of that, "
        "its id is what `Last-Event-ID` resumes behind. A comment every 15 seconds says that the connection is there."
    ),
}


def document() -> dict[str, Any]:
    """Make the document."""
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Order Service",
            "version": __version__,
            "summary": "Orders as events in Kafka, every command decided exactly once.",
            "description": ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "tags": [
            {"name": "Commands", "description": "What changes an order."},
            {"name": "Questions", "description": "What is and what was."},
            {"name": "Streams", "description": "What comes."},
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
    """Write the document as it is kept: a change of it can be read line by line."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


# Operations


def _operation(operation: Operation) -> dict[str, Any]:
    tag = "Streams" if operation.is_stream else "Questions" if operation.command is None else "Commands"
    answers = {str(status): _success(operation, status, name) for status, name in operation.answers.items()}
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
        "responses": dict(sorted((answers | problems).items())),
    }


def _body(operation: Operation) -> dict[str, Any]:
    if operation.body is None:
        return {}
    content = {"schema": ref(operation.body.__name__), "example": examples.BODIES[operation.body]}
    return {"requestBody": {"required": not operation.may_be_empty, "content": {"application/json": content}}}


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    names = [name for name in ("order_id", "command_id") if f"{{{name}}}" in operation.path]
    if operation.command is not None:
        names += ["Idempotency-Key", "If-Match", "Prefer", "X-Decide-By", "X-Correlation-Id", "traceparent"]
    if operation.name == "get_order":
        names += ["If-None-Match", "Prefer"]
    if operation.is_stream:
        names += ["Last-Event-ID"]
    return [{"$ref": f"#/components/parameters/{name}"} for name in names] + list(_query(operation.query))


def _query(model: type[Query]) -> Iterable[dict[str, Any]]:
    """Give the parameters of a query. One that is not given is not null: it is not there."""
    for name, said in plain(model.model_json_schema()).get("properties", {}).items():
        schema = not_null(said)
        description = {"description": schema.pop("description")} if "description" in schema else {}
        yield {"name": name, "in": "query", **description, "schema": schema}


# Answers


def _success(operation: Operation, status: int, name: str) -> dict[str, Any]:
    headers = {
        "ETag": name in {"", "Order"},
        "Location": status == 201 or (name == "Undecided" and operation.command is not None),
        "Retry-After": name == "Undecided",
        "Link": name == "OrderPage",
        "Preference-Applied": operation.command is not None,
        "Idempotency-Replayed": operation.command is not None and name == "Order",
    }
    given = {
        "description": ANSWERS[name],
        "headers": {header: _header(header) for header, is_given in headers.items() if is_given},
        "content": _content(operation, name),
        "links": _links(operation, name),
    }
    return {key: value for key, value in given.items() if value}


def _content(operation: Operation, name: str) -> dict[str, Any]:
    example = {"example": examples.successes().get(name)}
    if operation.is_stream:
        return {"text/event-stream": {"schema": TEXT} | example}
    return {"application/json": {"schema": ref(name)} | example} if name else {}


def _links(operation: Operation, name: str) -> dict[str, Any]:
    """Say where an answer to a command leads."""
    if operation.command is None:
        return {}
    ids = {"order_id": "$response.body#/order_id"}
    if name == "Undecided":
        ids |= {name: f"$response.body#/{name}" for name in ("command_id", "copy_id")}
        return {"outcome": {"operationId": "get_command", "parameters": ids}}
    if operation.command is not CreateOrder:
        return {}
    there = [one for one in OPERATIONS if "{order_id}" in one.path and "{command_id}" not in one.path]
    return {one.name: {"operationId": one.name, "parameters": ids} for one in there}


def _by_status(operation: Operation) -> list[list[Kind]]:
    """Put the problems of an operation together that have the same status."""
    kinds = problems_of(operation)
    return [[kind for kind in kinds if STATUS[kind] == status] for status in sorted({STATUS[kind] for kind in kinds})]


def _problems(operation: Operation, kinds: list[Kind]) -> tuple[str, dict[str, Any]]:
    """Make the answer that is one of these problems, under a name that all operations with the same answer share."""
    is_refusal = operation.command is not None and any(isinstance(kind, Reason) for kind in kinds)
    headers = {
        "Retry-After": STATUS[kinds[0]] in {429, 503},
        "WWW-Authenticate": Trouble.UNAUTHORIZED in kinds,
        "Preference-Applied": is_refusal,
        "Idempotency-Replayed": is_refusal,
    }
    made = {
        "description": "\n".join(f"* [{kind}]({BASE}{kind}): {ALL[kind].cause} {ALL[kind].cure}" for kind in kinds),
        "headers": {header: _header(header) for header, is_given in headers.items() if is_given},
        "content": {
            MEDIA_TYPE: {
                "schema": one_of("type", {BASE + kind: problem_name(kind) for kind in kinds}),
                "examples": {
                    kind.value: {"value": examples.refusal(kind) if is_refusal else examples.problem(kind)}
                    for kind in kinds
                },
            }
        },
    }
    name = "-or-".join(kinds) + ("-of-a-command" if is_refusal else "")
    return name, {key: value for key, value in made.items() if value}


# Parameters and headers


def _parameter(name: str, place: str, description: str, schema: Schema, example: str) -> dict[str, Any]:
    is_required = {"required": True} if place == "path" else {}
    return {"name": name, "in": place, **is_required, "description": description, "schema": schema, "example": example}


def _header(name: str) -> Schema:
    return {"$ref": f"#/components/headers/{name}"}


VISIBLE: Final[Schema] = {"type": "string", "pattern": "^[!-~]{1,200}$"}

PARAMETERS: Final = {
    made["name"]: made
    for made in (
        _parameter("order_id", "path", "The order.", {"type": "string", "pattern": ID}, examples.ORDER_ID),
        _parameter(
            "command_id",
            "path",
            "The command, as a 202 or a problem names it.",
            {"type": "string", "pattern": ID},
            examples.COMMAND_ID,
        ),
        _parameter(
            "Idempotency-Key",
            "header",
            "What makes a repetition safe: to one order, a command with the same key of the same caller happens once. "
            "Give every new command a new one.",
            VISIBLE,
            examples.KEY,
        ),
        _parameter(
            "If-Match",
            "header",
            "The version that the order must have, as `ETag` gave it; `*` is any.",
            {"type": "string", "pattern": r'^(\*|"[0-9]{1,9}")$'},
            '"1"',
        ),
        _parameter("If-None-Match", "header", "Versions that you have, as `ETag` gave them.", TEXT, '"1"'),
        _parameter(
            "Prefer",
            "header",
            "How long to wait: `wait=<seconds>`, 5 if nothing is said, 30 at most; `respond-async` does not wait. "
            "RFC 7240.",
            TEXT,
            "wait=10",
        ),
        _parameter(
            "X-Decide-By",
            "header",
            "A time of RFC 3339, with `T`, and `Z` or an offset: a command that is decided later is refused with "
            "`deadline_passed`. Send it again with a later time under the same `Idempotency-Key`.",
            {"type": "string", "pattern": DATE_TIME},
            "2026-11-24T09:05:00Z",
        ),
        _parameter("X-Correlation-Id", "header", "A name that the events of this command carry.", VISIBLE, "visit-7"),
        _parameter(
            "traceparent",
            "header",
            "The trace that this is a part of; ignored if it is not well-formed. W3C Trace Context.",
            TEXT,
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        _parameter(
            "Last-Event-ID", "header", "The id of the last event that you have; the next one comes first.", TEXT, "2"
        ),
    )
}

HEADERS: Final = {
    "ETag": {
        "description": "The version of the order.",
        "required": True,
        "schema": {"type": "string", "pattern": '^"[0-9]+"$'},
    },
    "Location": {
        "description": "Where the order is, or what becomes of the command.",
        "required": True,
        "schema": TEXT,
    },
    "Retry-After": {"description": "Seconds until it makes sense to ask again.", "required": True, "schema": INTEGER},
    "WWW-Authenticate": {"description": "What to send: a bearer token.", "required": True, "schema": TEXT},
    "Link": {"description": 'The following page, if there is one: `<…>; rel="next"`.', "schema": TEXT},
    "Preference-Applied": {"description": "How long was waited at most, if `Prefer` was sent.", "schema": TEXT},
    "Idempotency-Replayed": {
        "description": "`true` if this is the answer that was given to an earlier request.",
        "schema": {"type": "string", "const": "true"},
    },
}


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
