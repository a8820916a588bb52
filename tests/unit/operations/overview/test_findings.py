"""What needs attention, and which page says what to do."""

from datetime import timedelta

import pytest

from order_service.operations.lanes.lanes import LaneRow
from order_service.operations.overview.overview import Finding, ReasonCount, by_count, find
from order_service.operations.overview.processes import ProcessRow
from order_service.operations.overview.waiting_users import WaitingRoom, WaitingUser
from tests.support.samples import NOW
from tests.support.service import ROOT

RUNS = LaneRow(0, "running", None, "", "w:9100", "owner", 7, 0, 0, None)
PARKED = LaneRow(1, "parked", NOW, "too large", "w:9100", None, 7, 3, 0, None)
READY = ProcessRow("w:9100", "worker", ["0.1.0"], 1, "ready", [])
UNREADY = "operations/reasons.md#why-a-process-is-not-ready"


def lost(number):
    return LaneRow(number, "not assigned", None, "", None, None, 7, 3, 0, None)


def process(state, *reasons, component="worker", version="0.1.0"):
    return ProcessRow("w:9100", component, [version] if version else [], 1, state, list(reasons))


def room(seconds):
    return WaitingRoom(True, 1, 1, [WaitingUser("dana", 1, NOW - timedelta(seconds=seconds), "o-1")])


@pytest.mark.parametrize(
    ("lanes", "processes", "letters", "waiting", "expected"),
    [
        pytest.param([RUNS], [READY], [], room(299), [], id="all is well"),
        pytest.param(
            [RUNS, PARKED],
            [process("not ready", "partition 1 is parked: too large")],
            [],
            None,
            [("Partition 1 is parked: too large", "operations/runbooks/OrdersLaneParked.md")],
            id="a parked lane is told once",
        ),
        pytest.param(
            [lost(number) for number in range(12)],
            [READY],
            [],
            None,
            [
                (
                    "No worker has partitions 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more.",
                    "operations/runbooks/OrdersLanesNotRunning.md",
                )
            ],
            id="lanes without a worker",
        ),
        pytest.param(
            [],
            [process("no answer", "the connection failed", version="")],
            [],
            None,
            [("No answer from w:9100: the connection failed.", "operations/runbooks/OrdersTargetDown.md")],
            id="a process that is away",
        ),
        pytest.param(
            [],
            [process("not ready", "the views are being opened", component="web")],
            [],
            None,
            [("The web at w:9100 is not ready: the views are being opened.", UNREADY)],
            id="a process that is not ready",
        ),
        pytest.param(
            [],
            [],
            [ReasonCount("not_json", 3), ReasonCount("empty", 1)],
            None,
            [("Dead letters in the last hour: not_json 3, empty 1.", "operations/runbooks/OrdersDeadLetters.md")],
            id="dead letters",
        ),
        pytest.param(
            [],
            [],
            [],
            room(601),
            [
                (
                    "A command has waited for 10 minutes for the User Service.",
                    "operations/runbooks/OrdersWaitForUsers.md",
                )
            ],
            id="a long wait",
        ),
        pytest.param(
            [],
            [READY, process("ready", version="0.2.0")],
            [],
            None,
            [("The processes have different versions: 0.1.0, 0.2.0.", "")],
            id="two versions",
        ),
    ],
)
def test_what_needs_attention(lanes, processes, letters, waiting, expected):
    assert find(NOW, lanes, processes, letters, waiting) == [Finding(*each) for each in expected]


def test_a_page_begins_with_the_url_of_the_documents_if_it_is_set():
    versions = [READY, process("ready", version="0.2.0")]
    pages = [each.page for each in find(NOW, [PARKED], versions, [], None, "https://docs.example")]
    assert pages == ["https://docs.example/operations/runbooks/OrdersLaneParked.md", ""]


def test_the_pages_of_findings_exist():
    processes = [process("no answer", "the connection failed"), process("starting", "it reads"), READY]
    letters = [ReasonCount("not_json", 1)]
    pages = {each.page for each in find(NOW, [PARKED, lost(2)], processes, letters, room(601))}
    assert {page for page in pages if not (ROOT / "docs" / page.partition("#")[0]).is_file()} == set()
    assert len(pages) == 6


def test_a_page_that_is_no_runbook_is_there():
    page, _, heading = UNREADY.partition("#")
    assert f"\n## {heading.replace('-', ' ')}\n" in (ROOT / "docs" / page).read_text(encoding="utf-8").lower()


def test_reasons_are_listed_by_their_count():
    assert by_count({"b": 1, "a": 1, "c": 5, "none": 0}) == [
        ReasonCount("c", 5),
        ReasonCount("a", 1),
        ReasonCount("b", 1),
    ]
