"""Check the language of comments, docstrings, messages and documents: `python -m tools.check_language`.

It reports each word that CONTRIBUTING asks to avoid, with file and line, and exits with 1 if there is any. Code is not
checked, nor is a string without a space, such as "nobody": it is a value.
"""

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
AVOID: Final = re.compile(
    r"\b(nobody|whoever|of ours|by hand of|had from|what became of|anew|by then|in vain|at all|all of it|is none"
    r"|has none)\b"
)
"""Phrases with a plainer form. Case matters: `is None` is code."""
CODE: Final = re.compile(r"`[^`]*`")
STARTS: Final = re.compile(r"(Give|Tell|Say|Hear|Name|Let)\b")
"""First words of a docstring that do not say what a function does."""
SUFFIXES: Final = ("md", "py", "go", "java", "js", "cs")
CHECKED: Final = (
    "*.md",
    "docs/**/*.md",
    "deploy/**/*.md",
    "conftest.py",
    *(f"{folder}/**/*.py" for folder in ("bench", "chaos", "order_service", "tests")),
    "chaos/*.md",
    *(f"examples/{folder}*.{suffix}" for folder in ("", "*/") for suffix in SUFFIXES),
    "Makefile",
    "docker-compose.yml",
)
"""Modules in Python; every other file is checked as a text."""
EXCEPTIONS: Final = {
    "docs/events.md": "generated; its source is checked",
    "CHANGELOG.md": "the history stays as it was written",
    "tests/unit/project/test_language.py": "its samples are phrases to avoid",
}
TEXT: Final = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
"""The tokens that hold text. Since Python 3.12 an f-string has tokens of its own."""


class Finding(NamedTuple):
    """A phrase to avoid, and where it is; `line` starts at 1."""

    path: str
    line: int
    phrase: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.phrase!r} is not plain English: see CONTRIBUTING"


def findings_in_python(path: str, source: str) -> Iterator[Finding]:
    """Yield the phrases to avoid in the comments and strings of a module, and in the first words of its docstrings."""
    is_def = begins_line = may_be_docstring = False
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in TEXT and " " in token.string:
            for number, line in enumerate(token.string.split("\n"), start=token.start[0]):
                yield from (Finding(path, number, match[0]) for match in AVOID.finditer(line))
        if may_be_docstring and token.type == tokenize.STRING and (match := STARTS.match(token.string.lstrip('r"'))):
            yield Finding(path, token.start[0], match[0])
        if token.type in {tokenize.NL, tokenize.COMMENT}:
            continue
        may_be_docstring = is_def and token.type == tokenize.INDENT
        is_def = token.string in {"def", "async"} if begins_line else is_def
        begins_line = token.type in {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def findings_in_text(path: str, text: str) -> Iterator[Finding]:
    """Yield the phrases to avoid in a document, outside of its code."""
    is_code = False
    for number, line in enumerate(text.split("\n"), start=1):
        is_code ^= line.startswith("```")
        if not is_code:
            prose = CODE.sub("", line)
            yield from (Finding(path, number, match[0]) for match in AVOID.finditer(prose))


def findings(root: Path = ROOT) -> list[Finding]:
    """Return all findings in the files of CHECKED, except EXCEPTIONS."""
    paths = sorted(chain.from_iterable(root.glob(pattern) for pattern in CHECKED))
    return [
        finding
        for path in paths
        if (name := path.relative_to(root).as_posix()) not in EXCEPTIONS
        for finding in (findings_in_python if path.suffix == ".py" else findings_in_text)(name, path.read_text("utf-8"))
    ]


def main() -> int:
    """Print all findings; return 1 if there are any."""
    found = findings()
    for finding in found:
        print(finding)  # noqa: T201 - this is what it is for
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
