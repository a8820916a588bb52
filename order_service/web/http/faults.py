"""What is wrong with a body or a query: pydantic's errors in the words of this API. They never repeat what was sent."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from order_service.web.http.problems import Fault

FAULTS_MAX: Final = 20
_OF_NAME: Final = "[key]"
"""What pydantic adds to the location of an entry whose name is invalid, such as /metadata/colour."""
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_SIMILAR: Final = 0.6
"""How similar a known name must be to an unknown one (`difflib` ratio)."""


def faults_of(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """Return the faults of a value of this model, `FAULTS_MAX` at most."""
    errors = error.errors(include_url=False, include_input=False)[:FAULTS_MAX]
    return [_fault(fault["loc"], _detail(fault, model)) for fault in errors]


def pointer_to(parts: Sequence[int | str]) -> str:
    """Return a JSON pointer of up to 200 characters; `?` replaces a name that no field of this API can have."""
    return "".join(f"/{part if _NAME.match(str(part)) else '?'}" for part in parts)[:200]


def named(names: Sequence[str]) -> str:
    """Return names as a list for people, each in backticks."""
    return ", ".join(f"`{name}`" for name in names)


def _fault(location: Sequence[int | str], detail: str) -> Fault:
    if location[2:] == (_OF_NAME,):
        return Fault(pointer_to(location[:-1]), f"its name {detail}")
    return Fault(pointer_to(location), detail)


def _detail(fault: Any, model: type[BaseModel]) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown(fault["loc"], model)
    if kind in _DETAILS:
        return _DETAILS[kind](context)
    return str(fault["msg"]).removeprefix("Value error, ")


def _unknown(location: Sequence[int | str], model: type[BaseModel]) -> str:
    """Return what to send in place of an unknown field or parameter."""
    allowed = list(_fields_at(model, location[:-1]))
    if not allowed:
        return "is unknown: nothing is allowed here"
    similar = get_close_matches(str(location[-1]).lower().replace("-", "_"), allowed, n=1, cutoff=_SIMILAR)
    hint = f"did you mean {named(similar)}? " if similar else ""
    return f"is unknown: {hint}Allowed: {named(allowed)}"


def _fields_at(model: type[BaseModel], location: Sequence[int | str]) -> Iterator[str]:
    """Yield the names of the fields of the object at a location, which goes through objects and lists of them."""
    inner: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, str) and inner is not None:
            field = inner.model_fields.get(part)
            inner = None if field is None else _model_in(field.annotation)
    if inner is not None:
        yield from inner.model_fields


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model in a type such as `list[LineBody] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for each in get_args(annotation) if (model := _model_in(each))), None)


def _count(context: Mapping[str, Any], bound: str) -> str:
    one, many = ("entry", "entries") if context["field_type"] == "Dictionary" else ("item", "items")
    return f"{context[bound]} {one if context[bound] == 1 else many}"


_INTEGER: Final = "must be a whole number"
_DETAILS: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "json_invalid": lambda _: "must be well-formed JSON",  # the parser's message quotes the input
    "missing": lambda _: "is missing",
    "model_type": lambda _: "must be an object",
    "dict_type": lambda _: "must be an object",
    "list_type": lambda _: "must be an array",
    "string_type": lambda _: "must be a string",
    "string_unicode": lambda _: "must be valid Unicode",
    "int_type": lambda _: _INTEGER,
    "int_from_float": lambda _: _INTEGER,
    "int_parsing": lambda _: _INTEGER,
    "int_parsing_size": lambda _: _INTEGER,
    "bool_type": lambda _: "must be true or false",
    "bool_parsing": lambda _: "must be true or false",
    "literal_error": lambda context: f"must be {context['expected']}",
    "greater_than_equal": lambda context: f"must be at least {context['ge']}",
    "less_than_equal": lambda context: f"must be at most {context['le']}",
    "string_too_short": lambda context: f"must have at least {context['min_length']} characters",
    "string_too_long": lambda context: f"must have at most {context['max_length']} characters",
    "too_short": lambda context: f"must have at least {_count(context, 'min_length')}",
    "too_long": lambda context: f"must have at most {_count(context, 'max_length')}",
    "string_pattern_mismatch": lambda context: f"must match the pattern {context['pattern']}",
}
"""The text of each type of error; others keep pydantic's text, or that of our own validators."""
