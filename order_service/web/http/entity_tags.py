"""Entity tags in the conditions of a request. Source: RFC 9110, sections 8.8.3 and 13.1."""

import re
from typing import Final

_TAG: Final = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\U0010ffff]*"')
_VERSION: Final = re.compile(r"(?:0|[1-9][0-9]{0,8})\Z")


def opaque_tags(text: str) -> list[str] | None:
    """Return the tags of a list without quotes and without `W/`, or None if it is empty or malformed.

    A proxy that compresses a response weakens its tag, although the order has the same version.
    """
    between = _TAG.split(text)
    if len(between) == 1 or any(part.strip(" \t,") for part in between):
        return None
    if any("," not in part for part in between[1:-1]):
        return None
    return [tag.removeprefix("W/")[1:-1] for tag in _TAG.findall(text)]


def version_of(tag: str) -> int | None:
    """Return the version that a tag of an order names, or None for a tag that no order has."""
    return int(tag) if _VERSION.match(tag) else None
