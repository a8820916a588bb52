"""A check of `doctor`, and its results."""

from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct


class Status(StrEnum):
    """The status of a result. A warning is a finding, too: it works now, but needs an operator."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    NOT_CHECKED = "not_checked"


FINDINGS: Final = frozenset({Status.WARNING, Status.PROBLEM})


class Result(Struct, frozen=True):
    """A result of a check: a sentence, and for a finding what to do. Several lines of `fix` are shell lines.

    `check` is the name of the check; `doctor` sets it.
    """

    check: str = ""
    status: Status = Status.OK
    text: str = ""
    fix: str = ""


class Check(Struct, frozen=True):
    """A check by its name. `fix` is what to do if the check itself fails, `within_s` bounds it."""

    name: str
    run: Callable[[], Awaitable[list[Result]]]
    fix: str
    needs_kafka: bool = False
    within_s: float = 20.0


class Diagnosis(Struct, frozen=True):
    """The results of all checks, in the sequence of the checks."""

    results: list[Result]
    is_kafka_reachable: bool

    @property
    def finding_count(self) -> int:
        """The number of warnings and problems."""
        return sum(result.status in FINDINGS for result in self.results)


def ok(text: str) -> Result:
    """Return a result without a finding."""
    return Result(text=text)


def warning(text: str, fix: str) -> Result:
    """Return a finding about something that works now."""
    return Result(status=Status.WARNING, text=text, fix=fix)


def problem(text: str, fix: str) -> Result:
    """Return a finding about something that does not work."""
    return Result(status=Status.PROBLEM, text=text, fix=fix)


def not_checked(text: str, fix: str = "") -> Result:
    """Return that nothing could be checked, and why. It is not a finding."""
    return Result(status=Status.NOT_CHECKED, text=text, fix=fix)


def sentence(text: str) -> str:
    """Return a text of an error or of readiness as a sentence."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def numbers(partitions: Iterable[int]) -> str:
    """Return the partitions in words: `partition 3` or `partitions 0, 3, 4`."""
    listed = sorted(partitions)
    return f"partition{'s' if len(listed) > 1 else ''} {', '.join(map(str, listed))}"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, which gets an s unless the number is 1."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def address_of(url: str) -> str:
    """Return scheme, host and port of a URL: its path, its query and its credentials may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
