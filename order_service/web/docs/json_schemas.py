"""JSON Schemas of all that is sent and answered, made from the types that read and write it."""

from typing import Any, Final, get_args

import msgspec

from order_service.domain.messages import COMMAND_TYPES, FACT_TYPES, Event, Rejection
from order_service.domain.refusals import Reason, Status
from order_service.domain.validation import CANCEL_REASONS
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
    """Point to a schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def schemas() -> dict[str, Schema]:
    """Make all schemas, by their names."""
    return _bodies() | _orders() | _events() | _outcomes() | _problems()


def problem_name(kind: Kind) -> str:
    """Name the schema of a problem: `not_paid` is `NotPaidProblem`."""
    return title(kind).title().replace(" ", "") + "Problem"


def one_of(key: str, names: dict[str, str], description: str = "") -> Schema:
    """Make a schema of those that are told apart by the value of `key`; `names` gives the schema of each value."""
    refs = [ref(name) for name in names.values()]
    if len(refs) == 1:
        return refs[0]
    mapping = {value: one["$ref"] for value, one in zip(names, refs, strict=True)}
    said = {"description": description} if description else {}
    return {**said, "oneOf": refs, "discriminator": {"propertyName": key, "mapping": mapping}}


def _bodies() -> dict[str, Schema]:
    made: dict[str, Schema] = {}
    for model in (CreateBody, AmendBody, PayBody, ShipBody, DeliverBody, CancelBody, LineBody):
        schema = plain(model.model_json_schema(ref_template=ref("{model}")["$ref"]))
        schema.pop("$defs", None)  # `LineBody`, which stands here as well
        made[model.__name__] = schema
    amend = made["AmendBody"]["properties"]
    amend |= {name: not_null(said) for name, said in amend.items()}
    return made


def _orders() -> dict[str, Schema]:
    """Make the schema of an order and of its parts."""
    made = _of(OrderView, Status, Reason)
    order = made["Order"] = made.pop("OrderView")
    order["required"] = list(order["properties"])  # what it has no value for is null
    order["properties"]["status"] = {"enum": list(get_args(Wanted))}
    made["Cancellation"]["properties"]["reason"] = {"enum": list(CANCEL_REASONS)}
    made["Line"]["required"].append("line_id")  # an order has numbered its lines
    del made["Line"]["additionalProperties"]  # what we answer may grow
    made["OrderPage"] = _object(
        "Some orders, the newest first; `next` is the `cursor` of the following page, null on the last one.",
        orders={"type": "array", "items": ref("Order")},
        next=_or_null(TEXT),
    )
    return made


def _events() -> dict[str, Schema]:
    """Make the schemas of events: flat, as `answers.event_json` makes them."""
    said = _of(Event, Rejection)
    head = said["Event"]["properties"]
    del head["fact"]
    place = {
        "partition": INTEGER | {"description": "The partition of the events topic; not given in an outcome."},
        "offset": INTEGER | {"description": "The event's offset there; not given in an outcome."},
        "command_offset": _or_null(INTEGER)
        | {"description": "The offset of its command; null for what the service did by itself."},
    }
    made: dict[str, Schema] = {}
    for fact in FACT_TYPES:
        name = fact.__name__
        made[name] = _object(
            said[name]["description"],
            *place,
            **(head | said[name]["properties"] | {"type": {"const": name}} | place),
        )
    made["OrderCancelled"]["properties"]["reason"] = {"enum": list(CANCEL_REASONS)}
    made["OrderEvent"] = one_of(
        "type", {name: name for name in (fact.__name__ for fact in FACT_TYPES)}, "What happened to an order."
    )
    closer = {
        "type": {"const": "Rejection"},
        "command_type": {"enum": [kind.__name__ for kind in COMMAND_TYPES]},
        "reason": ref("Reason"),
        "status": ref("Status"),
    }
    made["Rejection"] = _object(said["Rejection"]["description"], **(said["Rejection"]["properties"] | closer))
    return made


def _outcomes() -> dict[str, Schema]:
    return {
        "History": _object(
            "Events of an order, the oldest first; `next_after_version` is the `after_version` of the following page.",
            "rejections",
            events={"type": "array", "items": ref("OrderEvent")},
            next_after_version=_or_null(INTEGER),
            rejections={
                "type": "array",
                "items": ref("Rejection"),
                "description": "The refused commands, if `include_refused` asks for them.",
            },
        ),
        "Outcome": one_of("outcome", {"accepted": "Accepted", "rejected": "Rejected"}, "What became of a command."),
        "Accepted": _object(
            "The command made this event.",
            outcome={"const": "accepted"},
            version=INTEGER | {"description": "The version of the order that it made."},
            event=ref("OrderEvent"),
        ),
        "Rejected": _object(
            "The command was refused.",
            outcome={"const": "rejected"},
            version=INTEGER | {"description": "The version of the order that it was decided against."},
            problem={"enum": [BASE + reason for reason in Reason]},
            rejection=ref("Rejection"),
        ),
        "Undecided": _object(
            "The command is in Kafka, and not decided yet.",
            "copy_id",
            outcome={"const": "undecided"},
            order_id=TEXT,
            command_id=TEXT,
            copy_id={"type": "string", "pattern": COPY_ID, "description": "The copy of the command that was sent."},
        ),
    }


def _problems() -> dict[str, Schema]:
    """Make the schema of each problem: RFC 9457, and what we say beyond it."""
    made = {
        "Fault": _object(
            "One thing that is wrong with a request. It never repeats what was sent.",
            pointer=TEXT | {"description": "Where: a JSON pointer into body or parameters, or the name of a header."},
            detail=TEXT | {"description": "What it must be."},
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
    """Leave out what says nothing (titles, null as default) and say what types do not: how times and digests look."""
    if isinstance(schema, list):
        return [plain(one, name) for one in schema]
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
    """Take null out of what pydantic lets be None because it need not be given."""
    inner = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    return {key: value for key, value in schema.items() if key != "anyOf"} | (inner[0] if inner else {})


def _object(description: str, *optional: str, **properties: Schema) -> Schema:
    """Make the schema of an object; all that is not `optional` is always there."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "description": description, "properties": properties, "required": required}


def _or_null(schema: Schema) -> Schema:
    return schema | {"type": [schema["type"], "null"]}
