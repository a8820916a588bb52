"""Judges a run by its topics, and by what was watched while it was under way; also one that was kept, later."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from chaos.callers import PREFIX, Outside
from chaos.load import is_never_answered, old_orders
from chaos.plan import Sizes
from chaos.verdict.checker import Findings, PartitionRecords, Terms, check_liveness, check_partition
from chaos.verdict.decoding import partition_of
from chaos.verdict.liveness import Silence, Watched, unexplained
from chaos.verdict.onlookers import Answered, End, Reader, events_of, requests_of, unseen, why_wrong
from chaos.verdict.reading import read_partition

PARTITIONS: Final = 4
USER_DEADLINE_S: Final = 12.0
PAYMENT_DUE_S: Final = 45.0
SHOWN: Final = 20
RECORD: Final = "run.json"


class Kept(Struct, frozen=True):
    """What is needed to look at the topics of a run again."""

    sizes: Sizes
    topics: dict[str, str]
    user_deadline_s: float = USER_DEADLINE_S
    payment_due_s: float = PAYMENT_DUE_S
    on_its_way_s: float = 0.0
    cut: int | None = None
    """The partition whose table has lost its tail."""


def keep(kept: Kept, directory: Path) -> None:
    """Write down what is needed to look at a run again."""
    (directory / RECORD).write_bytes(msgspec.json.encode(kept))


def check(
    kept: Kept,
    servers: str,
    say: Callable[[str], None],
    watched: Watched | None = None,
    outside: Outside | None = None,
) -> list[Findings]:
    """Check one partition after the other, and show the first findings; what was watched and seen is judged, too."""
    old = old_orders(kept.sizes.old if "large-table" in kept.sizes.kinds else 0)
    old_of: dict[int, dict[bytes, bytes]] = {partition: {} for partition in range(PARTITIONS)}
    for key, value in old:
        old_of[partition_of(key, PARTITIONS)][key] = value
    terms = Terms(
        PARTITIONS,
        kept.topics["commands"],
        user_of,
        user_deadline_s=kept.user_deadline_s,
        payment_due_s=kept.payment_due_s,
        may_time_out=lambda user_id: kept.sizes.faults > 0 or is_never_answered(user_id),
        on_its_way_s=kept.on_its_way_s,
        may_forget="forgetting" in kept.sizes.kinds,
    )
    findings = []
    answers = {answer.correlation_id: answer for answer in outside.answers} if outside is not None else {}
    readers = outside.readers if outside is not None else []
    silences: list[Silence] = []
    for partition in range(PARTITIONS):
        records = read_partition(servers, kept.topics, partition)
        found = check_partition(records, msgspec.structs.replace(terms, old=old_of.pop(partition)))
        if watched is not None:
            silences += check_liveness(records, terms, watched, found)
        found.http_commands = check_outside(records, answers, readers, found)
        if partition + 1 == PARTITIONS:
            for answer in answers.values():
                found.add("wrong_answers", -1, f"An answer is about no command: {answer}")
            check_ends(outside.ends if outside is not None else [], found)
        if partition == kept.cut:  # what a table has lost is not found again, but nothing else may come of it
            found.found = [finding for finding in found.found if finding.kind != "state"]
        findings.append(found)
        say(f"partition {partition}: {found.commands:,} commands checked, {len(found.found)} findings")
        for finding in found.found[:SHOWN]:
            say(f"  {finding}")
    if watched is not None:
        say_of(silences, watched, say)
    return findings


def check_outside(
    records: PartitionRecords, answers: dict[str, Answered], readers: list[Reader], findings: Findings
) -> int:
    """Report what callers and readers were told of a partition that is not so; takes the answers about it out.

    Returns how many commands came over HTTP.
    """
    requests = requests_of(records, PARTITIONS, PREFIX)
    for correlation_id, request in requests.items():
        answer = answers.pop(correlation_id, None)
        why = None if answer is None else why_wrong(answer, request.outcomes)
        if why is not None:
            findings.add("wrong_answers", -1, f"{correlation_id}: {why}.")
    events = events_of(records)
    for reader in readers:
        for offset, what in unseen(reader, records.partition, events):
            findings.add("unseen", offset, what)
    return sum(request.copies for request in requests.values())


def check_ends(ends: Iterable[End], findings: Findings) -> None:
    """Report each process beside the workers that ended though no fault of the run killed it."""
    for end in ends:
        if not end.was_killed:
            findings.add("ended", -1, f"{end.name} ended by itself with {end.code}, see {end.log}.")


def say_of(silences: list[Silence], watched: Watched, say: Callable[[str], None]) -> None:
    """Print which silences were the longest, and what explains those that a fault explains."""
    say(f"silence: at most {watched.silence_max_s:.0f} s may pass that no fault explains; the longest:")
    for silence in unexplained(silences, watched.touches)[:5]:
        say(f"  {silence}")
    say("and of all:")
    for silence in unexplained(silences, ())[:5]:
        why = {touch.what for touch in watched.touches if touch.explains(silence)}
        say(f"  {silence}: {', '.join(sorted(why)) or 'no fault'}")


def user_of(user_id: str) -> str:
    """Return the stub's answer for a user."""
    return next((kind for kind in ("unknown", "inactive") if user_id.startswith(kind)), "active")


def forget(directory: Path) -> None:
    """Remove what a run has left."""
    shutil.rmtree(directory)
