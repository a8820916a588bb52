"""Where the SDK logs: to the standard library's `order_service.sdk`; the program around it decides what is shown."""

import logging
from typing import Any

import structlog


def _rendered(_logger: Any, _level: str, fields: structlog.typing.EventDict) -> tuple[tuple[str], dict[str, Any]]:
    """Write the sentence and its fields as one line, and hand the fields on as `extra`."""
    sentence = str(fields.pop("event"))
    return (" ".join([sentence, *(f"{name}={value}" for name, value in fields.items())]),), {"extra": fields}


log = structlog.wrap_logger(
    logging.getLogger("order_service.sdk"),
    processors=[_rendered],
    wrapper_class=structlog.stdlib.BoundLogger,
)
