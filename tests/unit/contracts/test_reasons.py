"""The page of reasons: each reason that the code knows has a row, and what a row names exists."""

import re

import pytest

from order_service.contracts import metrics_page, reasons_page
from order_service.contracts.remedies import DEAD_LETTERS, EXIT_CODES, NOT_READY, PARKING, Remedy
from order_service.errors import Fenced, OrderServiceError, ParkingReason
from order_service.runtime.readiness import NotReady
from order_service.settings import Settings, variable
from order_service.wire.dead_letters import DeadLetterReason


@pytest.mark.parametrize(
    ("remedies", "reasons"),
    [
        pytest.param(PARKING, ParkingReason, id="lanes"),
        pytest.param(NOT_READY, NotReady, id="readiness"),
        pytest.param(DEAD_LETTERS, DeadLetterReason, id="dead letters"),
        pytest.param(EXIT_CODES, reasons_page.exit_codes(), id="exit codes"),
    ],
)
def test_each_reason_has_a_row_and_no_row_is_of_a_reason_that_does_not_exist(remedies, reasons):
    assert set(remedies) == set(reasons)


@pytest.mark.parametrize("remedies", [PARKING, NOT_READY, DEAD_LETTERS, EXIT_CODES])
def test_each_row_says_meaning_check_fix_and_verification_in_sentences(remedies):
    for reason, remedy in remedies.items():
        for field in Remedy.__struct_fields__:
            assert re.search(r"[.?`)]$", getattr(remedy, field)), (reason, field)


def test_the_exit_codes_are_those_of_all_exceptions_at_any_depth(monkeypatch):
    assert {1, 2, 3, 4, 10, 11, 12, 13, 14, 15, 16} == set(reasons_page.exit_codes())
    monkeypatch.setattr(Fenced, "exit_code", 99)
    assert 99 in reasons_page.exit_codes()
    assert issubclass(Fenced, OrderServiceError)


def test_each_lane_reason_is_a_heading_that_a_link_can_name():
    assert re.findall(r"^### `(\w+)`$", reasons_page.text(), flags=re.MULTILINE) == list(ParkingReason)


def test_a_not_ready_text_is_shown_as_readiness_shows_it_without_its_values():
    assert (
        NotReady.LANE_PARKED.fault(partition=3, why="table_lost: it is") == "partition 3 is parked: table_lost: it is"
    )
    assert "| `partition ... is parked: ...` |" in reasons_page.text()


@pytest.mark.parametrize("page", [reasons_page, metrics_page])
def test_each_setting_and_metric_that_a_page_names_exists(page):
    settings = {variable(field) for field in Settings.model_fields}
    assert set(re.findall(r"`((?:ORDERS|KAFKA|SCHEMA|USER)_\w+)", page.text())) <= settings
    named = set(re.findall(r"`(orders_\w+)`", page.text()))
    assert len(named) > 5
    assert named <= metrics_page.USES.keys()
