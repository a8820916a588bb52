"""Runs `order-service verify` on the topics of a run. It must find nothing where the checker finds nothing."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from chaos.verdict.judging import Kept

TIMEOUT_S: Final = 1800.0
COMMAND: Final = [sys.executable, "-m", "order_service.cli", "verify", "--json", "--limit", "100000"]


def problems_of_verify(environment: Mapping[str, str], kept: Kept) -> Iterator[str]:
    """Yield the findings of `verify` that the run does not explain, or why there are none.

    Two things are explained: what the run has cut off a table, and the older orders that it has put into the tables.
    """
    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode not in {0, 1}:
        yield f"verify ended with {done.returncode}: {done.stderr.strip()}"
        return
    for finding in msgspec.json.decode(done.stdout)["findings"]:
        if not _is_explained(finding, kept):
            yield "verify: {kind} {topic}-{partition} offset {offset}: {text}".format_map(finding)


def _is_explained(finding: dict[str, Any], kept: Kept) -> bool:
    has_old = "large-table" in kept.sizes.kinds and kept.sizes.old > 0
    is_old = has_old and finding["kind"] == "table" and "orders of the table have no event" in finding["text"]
    return is_old or finding["partition"] == kept.cut
