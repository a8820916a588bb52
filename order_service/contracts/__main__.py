"""Writes the contracts anew."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from order_service.contracts import asyncapi, catalogue
from order_service.contracts.source import Source

ROOT: Final = Path(__file__).parents[2]
FILES: Final[dict[Path, Callable[[Source], str]]] = {
    ROOT / "asyncapi.json": asyncapi.text,
    ROOT / "docs" / "events.md": catalogue.text,
}
"""Each file of a checkout that is made from the source, and what makes it."""


if __name__ == "__main__":
    for file, text in FILES.items():
        file.write_text(text(Source()), encoding="utf-8")
