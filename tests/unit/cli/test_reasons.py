"""What operators' commands refuse as a wrong call: a reason that cannot be recorded, and an age that is no number."""

import pytest

from tests.support.command_line import CommandLine

CALLS = {
    "plan": ("dead-letters", "plan", "--why"),
    "apply": ("dead-letters", "apply", "plan", "--why"),
    "discard": ("dead-letters", "discard", "0:0", "--why"),
    "resume": ("lanes", "resume", "0", "--reason"),
    "rebuild": ("rebuild", "--all", "--reason"),
}
NO_KAFKA = CommandLine({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"})


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("reason", "problem"),
    [("disk \udcff", "UTF-8"), (" ", "empty"), ("x" * 1_001, "1,000")],
    ids=["utf8", "empty", "long"],
)
def test_a_reason_that_cannot_be_recorded_is_a_wrong_call(call, reason, problem):
    assert problem in NO_KAFKA(*call, reason, code=2).stderr


@pytest.mark.parametrize("hours", ["inf", "nan", "1e300", "-1", "721"])
def test_the_greatest_age_of_a_plan_is_a_number_of_hours(hours):
    assert "--max-age" in NO_KAFKA("dead-letters", "apply", "plan", "--why", "x", "--max-age", hours, code=2).stderr


@pytest.mark.parametrize("option", ["--reason", "--reason-text"])
def test_apply_has_one_option_for_the_reason(option):
    assert option in NO_KAFKA("dead-letters", "apply", "plan", "--why", "x", option, "y", code=2).stderr
