"""The log of what also runs in programs of others: the standard library's, whose settings are those of that program."""

import logging
from typing import Any

import structlog


def library_logger(name: str) -> Any:
    """Give a logger that takes a sentence and fields, like all of ours, and hands one line to `logging`."""
    return structlog.wrap_logger(
        logging.getLogger(name), processors=[_rendered], wrapper_class=structlog.stdlib.BoundLogger
    )


def _rendered(_logger: Any, _level: str, fields: structlog.typing.EventDict) -> tuple[tuple[str], dict[str, Any]]:
    """Write the sentence and its fields as one line, and hand the fields on as `extra`."""
    sentence = str(fields.pop("event"))
    return (" ".join([sentence, *(f"{name}={value}" for name, value in fields.items())]),), {"extra": fields}
