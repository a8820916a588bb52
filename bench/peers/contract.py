"""The constants that the peers in other languages share with the service, so that none is written twice."""

from pathlib import Path

import msgspec

from order_service.domain.refusals import MEANINGS, NEVER_REMEMBERED, RULES
from order_service.domain.validation import CANCEL_REASONS, CURRENCIES
from order_service.wire.schemas.catalogue import SCHEMAS


def write(path: Path) -> None:
    """Write causes of reasons, rules, currencies, reasons to cancel and schema ids as JSON."""
    rules: dict[str, dict[str, str]] = {}
    for (command, status), outcome in RULES.items():
        name = outcome.__name__ if isinstance(outcome, type) else outcome
        rules.setdefault(command.__name__, {})[status] = name
    contract = {
        "causes": {reason: meaning.cause for reason, meaning in MEANINGS.items()},
        "never_remembered": sorted(NEVER_REMEMBERED),
        "rules": rules,
        "currencies": sorted(CURRENCIES),
        "cancel_reasons": CANCEL_REASONS,
        "schemas": {message.__name__: schema.id for message, schema in SCHEMAS.newest.items()},
    }
    path.write_bytes(msgspec.json.encode(contract))
