"""The catalogue as its readers have it: cut into sections, each with its blocks of code."""

import json
import re
from typing import Any, Final

from msgspec import Struct

from tests.support.service import ROOT

TEXT: Final = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


class Section(Struct):
    """What stands under one heading; of blocks of code, those of each language."""

    text: str
    code: dict[str, list[str]]

    @property
    def value(self) -> dict[str, Any]:
        """Read the example in JSON."""
        value: dict[str, Any] = json.loads(self.code["json"][-1])
        return value

    @property
    def data(self) -> bytes:
        """Read the example in bytes."""
        first, *rest = self.code["text"][0].split("\n")
        return bytes.fromhex(first.partition("<-")[0] + "".join(rest))


def sections() -> dict[str, Section]:
    """Return the sections by their headings."""
    _, *parts = re.split(r"^## ", TEXT, flags=re.MULTILINE)
    return {title: _section(text) for title, _, text in (part.partition("\n") for part in parts)}


def _section(text: str) -> Section:
    code: dict[str, list[str]] = {}
    for language, block in _BLOCK.findall(text):
        code.setdefault(language, []).append(block)
    return Section(text, code)
