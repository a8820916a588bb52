"""A text in blocks, rendered as Markdown for the repository and as HTML for the browser.

Within a block, `code` and [links](#here) are as in Markdown; everything else is plain text and is escaped.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Final

from msgspec import Struct

INLINE: Final = re.compile(r"`([^`]+)`|\[([^\]]+)\]\(([^)]+)\)")


class Heading(Struct, frozen=True):
    """A heading; level 1 is the title."""

    level: int
    text: str


class Text(Struct, frozen=True):
    """A paragraph of plain text, with inline code and links."""

    text: str


class Bullets(Struct, frozen=True):
    """A bulleted list of short texts."""

    items: Sequence[str]


class Table(Struct, frozen=True):
    """A table; every row has one cell for each column of `head`."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Code(Struct, frozen=True):
    """A block of code, rendered verbatim."""

    language: str
    text: str


Block = Heading | Text | Bullets | Table | Code


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub derives it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def markdown(blocks: Iterable[Block]) -> str:
    """Return the blocks as Markdown."""
    return "\n".join(map(_markdown, blocks))


def html(blocks: Iterable[Block]) -> str:
    """Return the blocks as HTML for the body of a page, without scripts and styles."""
    return "\n".join(map(_html, blocks))


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}\n"
        case Text(text):
            return f"{_in_markdown(text)}\n"
        case Bullets(items):
            return "".join(f"- {_in_markdown(item)}\n" for item in items)
        case Table(head, rows):
            return "".join(f"| {' | '.join(map(_cell, row))} |\n" for row in (head, ["---"] * len(head), *rows))
        case Code(language, text):
            return f"```{language}\n{text}\n```\n"


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f'<h{level} id="{anchor(text)}">{escape(text)}</h{level}>'
        case Text(text):
            return f"<p>{_in_html(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"\n<li>{_in_html(item)}" for item in items) + "\n</ul>"
        case Table(head, rows):
            lines = [_row("th", head), *(_row("td", row) for row in rows)]
            return "<table>\n" + "\n".join(lines) + "\n</table>"
        case Code(_, text):
            return f"<pre>{escape(text)}</pre>"


def _cell(text: str) -> str:
    return _in_markdown(text).replace("|", r"\|")


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_in_html(cell)}" for cell in cells)


def _in_markdown(text: str) -> str:
    return _inline(text, _plain, "`{}`".format, lambda label, address: f"[{_plain(label)}]({address})")


def _plain(text: str) -> str:
    return text.replace("<", "&lt;")


def _in_html(text: str) -> str:
    return _inline(
        text,
        escape,
        lambda code: f"<code>{escape(code)}</code>",
        lambda label, address: f'<a href="{escape(address)}">{escape(label)}</a>',
    )


def _inline(text: str, plain: Callable[[str], str], code: Callable[[str], str], link: Callable[[str, str], str]) -> str:
    """Render plain text, inline code and links, each with its own function."""
    parts, end = [], 0
    for match in INLINE.finditer(text):
        snippet, label, address = match.groups()
        parts += [plain(text[end : match.start()]), code(snippet) if snippet else link(label, address)]
        end = match.end()
    return "".join([*parts, plain(text[end:])])
