"""A text in blocks, which becomes Markdown for the repository and HTML for the browser.

Within a block, `code` and [links](#here) are as in Markdown; all else is plain text and is escaped.
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
    """A paragraph."""

    text: str


class Bullets(Struct, frozen=True):
    """A list."""

    items: Sequence[str]


class Table(Struct, frozen=True):
    """A table: a cell for each word of its `head` in every row."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Code(Struct, frozen=True):
    """Lines to be shown as they are."""

    language: str
    text: str


Block = Heading | Text | Bullets | Table | Code


def anchor(heading: str) -> str:
    """Give the name under which a heading is linked to, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def markdown(blocks: Iterable[Block]) -> str:
    """Write Markdown."""
    return "\n".join(map(_markdown, blocks))


def html(blocks: Iterable[Block]) -> str:
    """Write what stands in the body of a page: no script, no style."""
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
    return _inline(text, _plain, "`{}`".format, lambda shown, address: f"[{_plain(shown)}]({address})")


def _plain(text: str) -> str:
    return text.replace("<", "&lt;")


def _in_html(text: str) -> str:
    return _inline(
        text,
        escape,
        lambda said: f"<code>{escape(said)}</code>",
        lambda shown, address: f'<a href="{escape(address)}">{escape(shown)}</a>',
    )


def _inline(text: str, plain: Callable[[str], str], code: Callable[[str], str], link: Callable[[str, str], str]) -> str:
    """Put the parts of a text into their form."""
    made, end = [], 0
    for found in INLINE.finditer(text):
        said, shown, address = found.groups()
        made += [plain(text[end : found.start()]), code(said) if said else link(shown, address)]
        end = found.end()
    return "".join([*made, plain(text[end:])])
