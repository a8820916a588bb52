"""What bodies and parameters may say, where it takes more than their types to tell."""

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from order_service.domain.validation import CHANGES
from order_service.web.api.bodies import AmendBody, OrderQuery


@pytest.mark.parametrize("name", CHANGES)
def test_null_changes_nothing_and_is_refused(name):
    with pytest.raises(ValidationError, match="must not be null: leave out a field to keep its value"):
        AmendBody.model_validate({name: None})


def test_a_change_of_nothing_is_refused():
    with pytest.raises(ValidationError, match="must change at least one field"):
        AmendBody.model_validate({})


@pytest.mark.parametrize("at", ["2026-11-24T12:00:00Z", "2026-11-24T14:00:00+02:00", "2026-11-24t12:00:00.000z"])
def test_a_time_has_its_offset(at):
    assert OrderQuery.model_validate({"at": at}).at == datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize("at", ["2026-11-24T12:00:00", "2026-11-24", "1795521600", "0", "", "now", "2026-11-31T12:00Z"])
def test_no_other_time_is_taken(at):
    with pytest.raises(ValidationError, match="must be an RFC 3339 time with an offset"):
        OrderQuery.model_validate({"at": at})


def test_a_version_and_a_time_exclude_each_other():
    with pytest.raises(ValidationError, match="must not have both version and at"):
        OrderQuery.model_validate({"at": "2026-11-24T12:00:00Z", "version": 1})
