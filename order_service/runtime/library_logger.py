"""The logger of code that also runs in other programs: standard `logging`, which that program configures."""

import logging
from typing import Any

import structlog


def library_logger(name: str) -> Any:
    """Return a logger that accepts a sentence and fields, like our others, and passes one line to `logging`."""
    return structlog.wrap_logger(
        logging.getLogger(name), processors=[_rendered], wrapper_class=structlog.stdlib.BoundLogger
    )


def _rendered(_logger: Any, _level: str, fields: structlog.typing.EventDict) -> tuple[tuple[str], dict[str, Any]]:
    """Return the sentence and its fields as one line, with the fields as `extra`."""
    sentence = str(fields.pop("event"))
    return (" ".join([sentence, *(f"{name}={value}" for name, value in fields.items())]),), {"extra": fields}
