"""How peers are compared: the order of rounds, runs that others disturb, and outcomes that differ."""

from collections import Counter
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bench.others import Others
from bench.peers import parity, peer
from bench.peers.rounds import Run, rotated, table, undisturbed
from bench.watching import WrongResult
from bench.world import World
from order_service.domain.decision import UserCheck, answer
from order_service.domain.entry import Entry, after_event, after_rejection
from order_service.domain.messages import FACT_TYPES, Event, Rejection
from order_service.domain.refusals import Reason
from order_service.errors import DecodeError
from order_service.wire.avro import digest, encode_event
from order_service.wire.commands import decode_command

SAME = {"events": Counter(["created", "paid"]), "rejections": Counter(["refused"])}


class Percents(Others):
    """Other processes that take these shares of the machine, one a run."""

    def __init__(self, *percents):
        self._percents = [percent for during in percents for percent in (0.0, during)]

    def percent(self):
        return self._percents.pop(0)


def world_beside(*percents):
    return World("", Path(), Console(file=StringIO(), width=200), Percents(*percents))


def printed(world):
    return world.console.file.getvalue()


def test_each_round_begins_with_another_peer():
    assert list(rotated(["a", "b", "c"], 4)) == [
        (1, ["a", "b", "c"]),
        (2, ["b", "c", "a"]),
        (3, ["c", "a", "b"]),
        (4, ["a", "b", "c"]),
    ]


def test_a_quiet_run_is_taken_once():
    assert undisturbed(world_beside(15.0), "a run", lambda attempt: {"ms": attempt}) == Run({"ms": 1}, 15.0)


def test_a_disturbed_run_is_repeated_until_one_is_quiet():
    world = world_beside(40.0, 2.0)
    assert undisturbed(world, "a run", lambda attempt: {"ms": attempt}) == Run({"ms": 2}, 2.0)
    assert "others took 40 %, too much" in printed(world)


def test_after_three_disturbed_runs_the_least_disturbed_one_counts():
    world = world_beside(40.0, 16.0, 30.0)
    assert undisturbed(world, "a run", lambda attempt: {"ms": attempt}) == Run({"ms": 2}, 16.0)


def test_the_table_marks_disturbed_runs():
    world = world_beside()
    runs: dict[tuple[str, ...], list[Run]] = {
        ("ours",): [Run({"ms": 3.0}, 1.0), Run({"ms": 1.0}, 1.0)],
        ("theirs",): [Run({"ms": 2.0}, 16.0)],
    }
    table(world, "Latency", runs, ["peer"])
    assert "| ours | 2.00 (1.00 to 3.00) |" in printed(world)
    assert "| theirs | 2.00* |" in printed(world)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ours", peer.Ours()),
        ("ours-2", peer.Ours(2)),
        ("streams-20ms", peer.Streams(20)),
        ("streams-rocksdb-100ms", peer.Streams(100, "rocksdb")),
        ("quix-1000ms", peer.Quix(1000)),
    ],
)
def test_a_name_says_what_a_peer_runs_on_and_how_often_it_commits(name, expected):
    assert peer.named(name) == expected


def test_an_unknown_name_is_refused():
    with pytest.raises(peer.NoSuchPeer, match="no such peer: streams"):
        peer.named("streams")


def test_a_peer_that_wrote_nothing_of_a_kind_fails():
    with pytest.raises(WrongResult, match="theirs wrote no rejections"):
        parity.check_not_empty("theirs", SAME | {"rejections": Counter()})


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        pytest.param(["created"], "1 events that our worker wrote are missing, such as paid", id="a missing event"),
        pytest.param(["created", "paid", "paid"], "1 events are not as our worker wrote them", id="a doubled event"),
        pytest.param(["created", "lost"], "1 events are not as our worker wrote them, such as lost", id="another one"),
    ],
)
def test_a_peer_with_other_outcomes_fails(events, fault):
    parity.compare("theirs", SAME, SAME)
    with pytest.raises(WrongResult, match=fault):
        parity.compare("theirs", SAME | {"events": Counter(events)}, SAME)


def test_the_mix_of_commands_is_the_same_in_every_run():
    assert list(parity.mixed(1)) == list(parity.mixed(1))
    assert list(parity.mixed(1)) != list(parity.mixed(2))


def test_the_mix_leads_to_every_fact_and_every_reason_that_needs_no_user_service():
    table: dict[str, Entry] = {}
    found: set[object] = set()
    for key, value in parity.mixed(parity.SEED):
        try:
            command = decode_command(value)
        except DecodeError:
            continue
        before = table.get(key)
        outcome = answer(command, before, datetime.now(UTC), UserCheck.ACTIVE)
        if isinstance(outcome, Event):
            found.add(type(outcome.fact))
            table[key] = after_event(before, outcome, digest(encode_event(outcome)))
        elif isinstance(outcome, Rejection):
            found.add(Reason(outcome.reason))
            if (after := after_rejection(before, outcome)) is not None:
                table[key] = after
    assert found >= set(FACT_TYPES)
    assert set(Reason) - found == {
        Reason.TOO_MANY_WAITING,
        Reason.USER_NOT_FOUND,
        Reason.USER_NOT_ACTIVE,
        Reason.USER_CHECK_TIMED_OUT,
    }
