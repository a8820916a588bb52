"""JSON Schemas of all requests and responses, generated from the types that read and write them."""

from inspect import cleandoc
from typing import Any, Final, get_args

import msgspec

from order_service.domain.messages import COMMAND_TYPES, FACT_TYPES, Event, Rejection
from order_service.domain.refusals import Reason, Status
from order_service.domain.validation import CANCEL_REASONS
from order_service.operations.overview.overview import Overview
from order_service.operations.why.why import Why
from order_service.views.order_view import OrderView
from order_service.web.api.bodies import (
    COPY_ID,
    AmendBody,
    CancelBody,
    CreateBody,
    DeliverBody,
    LineBody,
    PayBody,
    ShipBody,
    Wanted,
)
from order_service.web.http.problems import ALL, BASE, STATUS, Kind, Trouble, title

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
INTEGER: Final[Schema] = {"type": "integer"}
DIGEST: Final[Schema] = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
TIME: Final[Schema] = {"type": "string", "format": "date-time"}


def ref(name: str) -> Schema:
    """Return a reference to a named schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def schemas() -> dict[str, Schema]:
    """Return all schemas by name."""
    return _bodies() | _orders() | _events() | _outcomes() | _operations() | _problems()


def problem_name(kind: Kind) -> str:
    """Return the schema name of a problem type: `not_paid` becomes `NotPaidProblem`."""
    return title(kind).title().replace(" ", "") + "Problem"


def one_of(key: str, names: dict[str, str], description: str = "") -> Schema:
    """Return a schema that is a union discriminated by `key`; `names` maps each value to its schema."""
    refs = [ref(name) for name in names.values()]
    if len(refs) == 1:
        return refs[0]
    mapping = {value: reference["$ref"] for value, reference in zip(names, refs, strict=True)}
    described = {"description": description} if description else {}
    return {**described, "oneOf": refs, "discriminator": {"propertyName": key, "mapping": mapping}}


def _bodies() -> dict[str, Schema]:
    made: dict[str, Schema] = {}
    for model in (CreateBody, AmendBody, PayBody, ShipBody, DeliverBody, CancelBody, LineBody):
        schema = plain(model.model_json_schema(ref_template=ref("{model}")["$ref"]))
        schema.pop("$defs", None)  # `LineBody`, which has an entry of its own
        made[model.__name__] = schema
    amend = made["AmendBody"]["properties"]
    amend |= {name: not_null(schema) for name, schema in amend.items()}
    return made


def _orders() -> dict[str, Schema]:
    """Return the schemas of an order and of its parts."""
    made = _of(OrderView, Status, Reason)
    order = made["Order"] = made.pop("OrderView")
    order["required"] = list(order["properties"])  # fields without a value are null
    order["properties"]["status"] = {"enum": list(get_args(Wanted))}
    made["Cancellation"]["properties"]["reason"] = {"enum": list(CANCEL_REASONS)}
    made["Line"]["required"].append("line_id")  # a stored order always has line ids
    del made["Line"]["additionalProperties"]  # responses may get new fields
    made["OrderPage"] = _object(
        "A page of orders, newest first; `next` is the `cursor` of the next page, null on the last one.",
        orders={"type": "array", "items": ref("Order")},
        next=_or_null(TEXT),
    )
    return made


def _events() -> dict[str, Schema]:
    """Return the schemas of events: flat, as `responses.event_json` writes them."""
    schemas_of_types = _of(Event, Rejection)
    head = schemas_of_types["Event"]["properties"]
    del head["fact"]
    offsets = {
        "partition": INTEGER | {"description": "The partition in the events topic; absent in an outcome."},
        "offset": INTEGER | {"description": "The offset in that partition; absent in an outcome."},
        "command_offset": _or_null(INTEGER)
        | {"description": "The offset of its command; null for an event that the service decided by itself."},
    }
    made: dict[str, Schema] = {}
    for fact in FACT_TYPES:
        name = fact.__name__
        made[name] = _object(
            schemas_of_types[name]["description"],
            *offsets,
            **(head | schemas_of_types[name]["properties"] | {"type": {"const": name}} | offsets),
        )
    made["OrderCancelled"]["properties"]["reason"] = {"enum": list(CANCEL_REASONS)}
    made["OrderEvent"] = one_of(
        "type", {name: name for name in (fact.__name__ for fact in FACT_TYPES)}, "An event of an order."
    )
    precise = {
        "type": {"const": "Rejection"},
        "command_type": {"enum": [kind.__name__ for kind in COMMAND_TYPES]},
        "reason": ref("Reason"),
        "status": ref("Status"),
        "pointer": _or_null(TEXT)
        | {"description": "The invalid field as a JSON pointer; null if no single field is invalid."},
    }
    rejection = schemas_of_types["Rejection"]
    made["Rejection"] = _object(rejection["description"], **(rejection["properties"] | precise))
    return made


def _outcomes() -> dict[str, Schema]:
    return {
        "History": _object(
            "Events of an order, oldest first; `next_after_version` is the `after_version` of the next page.",
            "rejections",
            events={"type": "array", "items": ref("OrderEvent")},
            next_after_version=_or_null(INTEGER),
            rejections={
                "type": "array",
                "items": ref("Rejection"),
                "description": "The refused commands, if `include_refused` is true.",
            },
        ),
        "Outcome": one_of("outcome", {"accepted": "Accepted", "rejected": "Rejected"}, "The outcome of a command."),
        "Accepted": _object(
            "The command produced this event.",
            outcome={"const": "accepted"},
            version=INTEGER | {"description": "The version of the order after the event."},
            event=ref("OrderEvent"),
        ),
        "Rejected": _object(
            "The command was refused.",
            outcome={"const": "rejected"},
            version=INTEGER | {"description": "The version of the order at the time of the decision."},
            problem={"enum": [BASE + reason for reason in Reason]},
            rejection=ref("Rejection"),
        ),
        "Undecided": _object(
            "The command is in Kafka and is not decided yet.",
            "copy_id",
            outcome={"const": "undecided"},
            order_id=TEXT,
            command_id=TEXT,
            copy_id={"type": "string", "pattern": COPY_ID, "description": "The copy of the command that was sent."},
        ),
    }


def _operations() -> dict[str, Schema]:
    """Return the schemas of what operators read. All members are present; those without a value are null."""
    made = _of(Why, Overview)
    for schema in made.values():
        if "properties" in schema:
            schema["required"] = list(schema["properties"])
            schema["description"] = cleandoc(schema["description"])
    return {name: schema for name, schema in made.items() if name != "Status"}  # it is one of `_orders`


def _problems() -> dict[str, Schema]:
    """Return the schema of each problem: RFC 9457, and our additional members."""
    made = {
        "Fault": _object(
            "One error in a request. It never repeats what was sent.",
            pointer=TEXT | {"description": "A JSON pointer into the body or the parameters, or the name of a header."},
            detail=TEXT | {"description": "The expected value; for `invalid_order`, the `detail` of the problem."},
        )
    }
    errors = {"errors": {"type": "array", "items": ref("Fault")}}
    order = {"order_id": TEXT, "command_id": TEXT, "order_status": ref("Status"), "order_version": INTEGER}
    for kind, meaning in ALL.items():
        more: dict[str, Schema] = {}
        if kind in {Trouble.INVALID_BODY, Trouble.INVALID_PARAMETER, Reason.INVALID_ORDER}:
            more |= errors
        if isinstance(kind, Reason):
            more |= order
        if kind is Reason.VERSION_CONFLICT:
            more["expected_version"] = INTEGER
        made[problem_name(kind)] = _object(
            f"{meaning.cause} {meaning.cure}",
            *more,
            type={"const": BASE + kind},
            title={"const": title(kind)},
            status={"const": STATUS[kind]},
            detail=TEXT,
            **more,
        )
    return made


def _of(*types: Any) -> dict[str, Schema]:
    _, components = msgspec.json.schema_components(types, ref_template=ref("{name}")["$ref"])
    return {name: plain(schema) for name, schema in components.items()}


def plain(schema: Any, name: str = "") -> Any:
    """Return a schema without noise (titles, null defaults), with formats that the types lack: of times and digests."""
    if isinstance(schema, list):
        return [plain(item, name) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "contentEncoding" in schema:
        return DIGEST
    if schema == TEXT and name.endswith("_at"):
        return TIME
    if schema.get("minimum") == -(2**63):
        return INTEGER
    return {
        key: plain(value, name if key in {"anyOf", "items"} else key)
        for key, value in schema.items()
        if (key, value) != ("default", None) and not (key == "title" and isinstance(value, str))
    }


def not_null(schema: Schema) -> Schema:
    """Return the schema of an optional field without null, which pydantic adds for the default None."""
    inner = [option for option in schema.get("anyOf", ()) if option != {"type": "null"}]
    return {key: value for key, value in schema.items() if key != "anyOf"} | (inner[0] if inner else {})


def _object(description: str, *optional: str, **properties: Schema) -> Schema:
    """Return the schema of an object; every property that is not in `optional` is required."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "description": description, "properties": properties, "required": required}


def _or_null(schema: Schema) -> Schema:
    return schema | {"type": [schema["type"], "null"]}
