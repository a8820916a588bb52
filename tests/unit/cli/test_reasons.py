"""What operators' commands refuse as a wrong call: a reason that cannot be recorded, and a number out of bounds."""

import inspect
from typing import get_args

import pytest

from order_service.cli import app
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


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("actor", ["alice", "user:", "user:a\nb", "user:" + "a" * 256, "robot:1"])
def test_an_actor_that_no_command_could_have_is_a_wrong_call(call, actor):
    assert "expected user:<id> or service:<id>" in NO_KAFKA(*call, "x", "--actor", actor, code=2).stderr


def bounds_of_float_options(app=app):
    """Yield command, parameter and bounds of each option that is a float."""
    for command in app.registered_commands:
        for parameter in inspect.signature(command.callback).parameters.values():
            kind, *options = get_args(parameter.annotation) or [parameter.annotation]
            if kind is float:
                yield command.callback.__name__, parameter.name, options[0].min, options[0].max
    for group in app.registered_groups:
        yield from bounds_of_float_options(group.typer_instance)


def test_every_float_option_has_bounds_so_that_it_is_neither_infinite_nor_nan():
    found = list(bounds_of_float_options())
    assert {name for name, *_ in found} >= {"apply", "verify", "pay"}
    assert [each for each in found if None in each] == []


@pytest.mark.parametrize("number", ["inf", "nan", "1e300", "-1"])
@pytest.mark.parametrize(
    ("option", "call"),
    [
        ("--max-age", ("dead-letters", "apply", "plan", "--why", "x")),
        ("--wait", ("dead-letters", "apply", "plan", "--why", "x")),
        ("--older-than", ("verify",)),
        ("--wait", ("cancel", "order-1", "--reason", "x")),
    ],
)
def test_a_number_out_of_bounds_is_a_wrong_call(option, call, number):
    assert option in NO_KAFKA(*call, option, number, code=2).stderr


@pytest.mark.parametrize("option", ["--reason", "--reason-text"])
def test_apply_has_one_option_for_the_reason(option):
    assert option in NO_KAFKA("dead-letters", "apply", "plan", "--why", "x", option, "y", code=2).stderr
