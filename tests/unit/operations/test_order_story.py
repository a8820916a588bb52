"""Where a command is, by the position and by the records that are about it."""

from typing import Any

import pytest

from order_service.operations.why.order_story import (
    DEAD_LETTER,
    CommandState,
    Evidence,
    FoundCommand,
    FoundOutcome,
    FoundWaiting,
    story_of,
)
from tests.support.samples import NOW

KNOWN = ("pay-1", b"digest")
OTHER = ("pay-1", b"another digest")
HEAD: dict[str, Any] = {"partition": 0, "at": NOW}
AT_5 = FoundCommand(topic="commands", offset=5, type="PayOrder", command_id="pay-1", actor="service:shop", **HEAD)


def outcome(command_offset, kind="OrderPaid", reason=None):
    return FoundOutcome(topic="events", offset=9, type=kind, command_offset=command_offset, reason=reason, **HEAD)


def waiting(command_offset):
    return FoundWaiting(
        topic="waiting",
        offset=9,
        type="PayOrder",
        command_offset=command_offset,
        command_id="pay-1",
        actor="service:shop",
        since=NOW,
        user_id="dana",
        **HEAD,
    )


PAID, REFUSED, DEAD = outcome(5), outcome(5, "Rejection", "not_paid"), outcome(5, DEAD_LETTER, "not_json")
EARLIER, WAITS, WAITS_EARLIER = outcome(3), waiting(5), waiting(3)


@pytest.mark.parametrize(
    ("evidence", "state", "more"),
    [
        pytest.param(Evidence(6, {5: PAID}), "accepted", {"outcome": PAID}, id="an event"),
        pytest.param(Evidence(6, {5: REFUSED}), "rejected", {"outcome": REFUSED}, id="a rejection"),
        pytest.param(Evidence(6, {5: DEAD}), "dead_letter", {"outcome": DEAD}, id="a dead letter"),
        pytest.param(Evidence(6, {4: PAID}), "no_outcome", {}, id="an event of another command"),
        pytest.param(Evidence(5, {5: PAID}), "accepted", {"outcome": PAID}, id="an event newer than the position"),
        pytest.param(Evidence(6, {}, {5: WAITS}), "waiting", {"waiting": WAITS}, id="it waits"),
        pytest.param(
            Evidence(6, {5: PAID}, {5: WAITS}),
            "accepted",
            {"outcome": PAID},
            id="an event before its tombstone",
        ),
        pytest.param(Evidence(5), "undecided", {"offsets_before": 0}, id="it is the next one"),
        pytest.param(Evidence(2), "undecided", {"offsets_before": 3}, id="three offsets come first"),
        pytest.param(
            Evidence(5, answered={KNOWN: EARLIER}), "undecided", {"offsets_before": 0}, id="a repeat that is undecided"
        ),
        pytest.param(
            Evidence(6, answered={KNOWN: EARLIER}),
            "repeat",
            {"outcome": EARLIER, "repeat_of": 3},
            id="a repeat of a decided command",
        ),
        pytest.param(
            Evidence(6, waiting_copies={KNOWN: WAITS_EARLIER}),
            "repeat",
            {"waiting": WAITS_EARLIER, "repeat_of": 3},
            id="a repeat of a waiting command",
        ),
        pytest.param(
            Evidence(6, refused_before=frozenset({KNOWN})), "outcome_deleted", {}, id="its rejection was deleted"
        ),
        pytest.param(
            Evidence(6, answered={OTHER: EARLIER}, refused_before=frozenset({OTHER})),
            "no_outcome",
            {},
            id="another command with its id",
        ),
        pytest.param(Evidence(6), "no_outcome", {}, id="nothing is about it"),
    ],
)
def test_where_a_command_is(evidence, state, more):
    story = story_of(AT_5, KNOWN, evidence)
    fields = ("outcome", "waiting", "repeat_of", "offsets_before")
    assert {name: getattr(story, name) for name in fields} == dict.fromkeys(fields) | more
    assert (story.state, story.command) == (CommandState(state), AT_5)
    assert story.is_before_position == (evidence.resume_at > 5)


def test_a_record_that_is_not_a_command_is_never_a_repeat():
    assert story_of(AT_5, None, Evidence(6, answered={KNOWN: EARLIER})).state is CommandState.NO_OUTCOME
