"""The overview of the whole service: what an operator on call looks at first."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

from order_service.operations.lanes.lanes import NOT_ASSIGNED, LaneRow
from order_service.operations.overview.history import Point
from order_service.operations.overview.newest_letters import LetterRow
from order_service.operations.overview.processes import ProcessRow
from order_service.operations.overview.waiting_users import WaitingRoom

WAITS_LONG: Final = timedelta(seconds=300)
"""From here on OrdersWaitForUsers fires."""
NAMED_MAX: Final = 10
NOT_READY: Final = "operations/reasons.md#why-a-process-is-not-ready"


class Finding(Struct, frozen=True):
    """What needs attention. `page` is the page of the documents that says what to do, with their URL if it is set."""

    text: str
    page: str


class ReasonCount(Struct, frozen=True):
    """How often something had this reason in the last hour."""

    reason: str
    count: int


class Overview(Struct, frozen=True):
    """The state of the service as of `at`, None before it was read. `since` is since when there are figures.

    `lanes` are those that Kafka and the workers report; `notes` say what could not be read. `dead_letters` and
    `waiting` are None until they are read, which begins with the first request.
    """

    at: datetime | None
    since: datetime
    findings: list[Finding]
    notes: list[str]
    lanes: list[LaneRow]
    processes: list[ProcessRow]
    history: list[Point]
    refusals: list[ReasonCount]
    dead_letter_reasons: list[ReasonCount]
    dead_letters: list[LetterRow] | None
    waiting: WaitingRoom | None


def find(
    now: datetime,
    lanes: Sequence[LaneRow],
    processes: Sequence[ProcessRow],
    dead_letters: Sequence[ReasonCount],
    waiting: WaitingRoom | None,
    base_url: str = "",
) -> list[Finding]:
    """Return what needs attention, the gravest first. The page of an alert is its runbook."""
    findings = [
        Finding(f"Partition {lane.partition} is parked: {lane.reason}", _runbook("OrdersLaneParked"))
        for lane in lanes
        if lane.state == "parked"
    ]
    if lost := [lane.partition for lane in lanes if lane.state == NOT_ASSIGNED]:
        findings.append(Finding(f"No worker has {_partitions(lost)}.", _runbook("OrdersLanesNotRunning")))
    findings += [
        Finding(f"No answer from {process.address}: {process.reasons[0]}.", _runbook("OrdersTargetDown"))
        for process in processes
        if process.state == "no answer"
    ]
    findings += [
        Finding(f"The {process.component or 'process'} at {process.address} is {process.state}: {reason}.", NOT_READY)
        for process in processes
        if process.state in {"starting", "not ready"}
        for reason in process.reasons
        if not (process.component == "worker" and _is_of_a_parked_lane(reason, lanes))
    ]
    if dead_letters:
        reasons = ", ".join(f"{each.reason} {each.count}" for each in dead_letters)
        findings.append(Finding(f"Dead letters in the last hour: {reasons}.", _runbook("OrdersDeadLetters")))
    if waiting and waiting.users and (waited := now - waiting.users[0].since) > WAITS_LONG:
        text = f"A command has waited for {waited.total_seconds() / 60:.0f} minutes for the User Service."
        findings.append(Finding(text, _runbook("OrdersWaitForUsers")))
    versions = sorted({version for process in processes for version in process.versions})
    if len(versions) > 1:
        findings.append(Finding(f"The processes have different versions: {', '.join(versions)}.", ""))
    if not base_url:
        return findings
    return [Finding(each.text, each.page and f"{base_url}/{each.page}") for each in findings]


def by_count(counts: dict[str, int]) -> list[ReasonCount]:
    """Return reasons with their counts, the most frequent first."""
    return [ReasonCount(reason, n) for reason, n in sorted(counts.items(), key=lambda each: (-each[1], each[0])) if n]


def _runbook(alert: str) -> str:
    return f"operations/runbooks/{alert}.md"


def _is_of_a_parked_lane(reason: str, lanes: Iterable[LaneRow]) -> bool:
    """Return whether a reason of readiness is one that a parked lane has reported already."""
    return any(lane.state == "parked" and f"partition {lane.partition} is parked" in reason for lane in lanes)


def _partitions(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:NAMED_MAX]))
    more = f" and {len(numbers) - NAMED_MAX} more" if len(numbers) > NAMED_MAX else ""
    return f"partition {shown}" if len(numbers) == 1 else f"partitions {shown}{more}"
