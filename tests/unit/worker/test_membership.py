"""How workers share lanes, who may join under which name, and what the errors of a group tell an operator."""

import asyncio
import re
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyAssignorUserDataV1
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    InconsistentGroupProtocolError,
    InvalidSessionTimeoutError,
    KafkaError,
    NotCoordinatorForGroupError,
    UnknownError,
)

from order_service.settings import Settings
from order_service.worker import membership
from order_service.worker.membership import (
    LaneAssignor,
    Membership,
    members_of,
    reason_of,
    this_machine,
    twin_of,
)
from order_service.worker.standbys.standby_plan import decode_standbys

TOPIC = "orders.commands.v1"
UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
OTHER_UUID = "7c9e6679-7425-40de-944b-e07fc1f90ae7"


class Group:
    """Workers that share the lanes of a topic, as their leader assigns them."""

    def __init__(self, partitions):
        self._cluster: Any = SimpleNamespace(
            topics=lambda: {TOPIC}, partitions_for_topic=lambda _topic: set(range(partitions))
        )
        self._generation = 0
        self._memories: dict[str, bytes] = {}

    def share(self, *members, forgetful=()):
        """Assign the lanes to these members. A forgetful member has been started again."""
        known = {
            member: ConsumerProtocolMemberMetadata(
                0, [TOPIC], b"" if member in forgetful else self._memories.get(member, b"")
            )
            for member in members
        }
        assigned = LaneAssignor.assign(self._cluster, known)
        self._generation += 1
        for member, assignment in assigned.items():
            self._remember(member, assignment)
        return {member: {lane.partition for lane in each.partitions()} for member, each in assigned.items()}

    def _remember(self, member, assignment: ConsumerProtocolMemberAssignment):
        """Write down what this member tells the leader next time, as its own process does."""

        class Process(LaneAssignor):
            pass

        Process.on_assignment(assignment)
        Process.on_generation_assignment(self._generation)
        self._memories[member] = Process.metadata([TOPIC]).user_data


def kept(before, after, members):
    """Count the lanes that stayed with these members."""
    return sum(len(before[member] & after[member]) for member in members)


def is_even(shares, partitions):
    """Return whether each lane is assigned once, and no member has two more than another."""
    sizes = sorted(len(lanes) for lanes in shares.values())
    return sum(sizes) == partitions == len(set().union(*shares.values())) and sizes[-1] - sizes[0] <= 1


@pytest.mark.parametrize("size", [3, 20])
def test_a_restart_leaves_the_lanes_of_the_others_where_they_were(size):
    group, members = Group(300), [f"m{number}" for number in range(size)]
    before = group.share(*members)
    after = group.share("new", *members[1:])
    assert is_even(before, 300)
    assert is_even(after, 300)
    assert kept(before, after, members[1:]) == 300 - len(before["m0"])


@pytest.mark.parametrize("size", [3, 20])
def test_no_more_lanes_move_than_must_when_one_leaves_and_when_it_is_back(size):
    group, members = Group(300), [f"m{number}" for number in range(size)]
    before = group.share(*members)
    without = group.share(*members[1:])
    after = group.share("new", *members[1:])
    assert is_even(without, 300)
    assert is_even(after, 300)
    assert kept(before, without, members[1:]) == 300 - len(before["m0"])
    assert kept(without, after, members[1:]) == 300 - len(after["new"])


def test_a_member_learns_the_owners_that_have_had_its_partitions():
    """Its own is not among them: a static member that is started again gets the assignment of its predecessor."""

    def owned(owner):
        class Process(LaneAssignor):
            pass

        Process.owner = owner
        return Process

    processes = {member: owned(f"orders-worker-{member}") for member in "abc"}

    def share(*members):
        known = {member: processes[member].metadata([TOPIC]) for member in members}
        assigned = LaneAssignor.assign(Group(12)._cluster, known)
        for member in members:
            processes[member].on_assignment(assigned[member])
        return {member: processes[member].releasing_owners for member in members}

    assert share("a", "b") == {"a": frozenset(), "b": frozenset()}
    assert share("a", "b", "c") == {"a": frozenset(), "b": frozenset(), "c": {"orders-worker-a", "orders-worker-b"}}
    assert share("a", "b", "c") == dict.fromkeys("abc", frozenset())


class Members:
    """Members that stand by for each other, each with what its process remembers."""

    def __init__(self, partitions):
        self._cluster = Group(partitions)._cluster
        self._processes: dict[str, Any] = {}
        self._generation = 0

    def share(self, *members, without_standbys=()):
        """Assign the partitions, and return those that each member holds and stands by for."""
        for member in members:
            if member not in self._processes:
                stands_by = member not in without_standbys
                self._processes[member] = type(
                    member, (LaneAssignor,), {"owner": f"id-{member}", "stands_by": stands_by}
                )
        known = {member: self._processes[member].metadata([TOPIC]) for member in members}
        self._generation += 1
        for member, assignment in LaneAssignor.assign(self._cluster, known).items():
            self._processes[member].on_assignment(assignment)
            self._processes[member].on_generation_assignment(self._generation)
        held = {member: {lane.partition for lane in self._processes[member].member_assignment} for member in members}
        return held, {member: self._processes[member].standbys for member in members}

    def releasing(self, member):
        return self._processes[member].releasing_owners


@pytest.mark.parametrize(("partitions", "size"), [(12, 3), (4, 2), (10, 4), (300, 20)])
def test_the_partitions_of_a_lost_member_go_to_those_that_stand_by_for_them(partitions, size):
    group, members = Members(partitions), [f"m{number}" for number in range(size)]
    before, standbys = group.share(*members)
    assert sorted(lane for each in standbys.values() for lane in each) == list(range(partitions))
    after, planned = group.share(*members[1:])
    assert is_even(after, partitions)
    assert kept(before, after, members[1:]) == partitions - len(before["m0"])
    moved = {member: after[member] - before[member] for member in members[1:]}
    at_standby = sum(len(moved[member] & standbys[member]) for member in members[1:])
    assert at_standby >= len(before["m0"]) - 1  # of an uneven share, one partition may have to go elsewhere
    if size > 2:
        assert sorted(lane for each in planned.values() for lane in each) == list(range(partitions))


def test_a_member_without_standbys_is_in_a_group_with_those_that_have_them():
    group = Members(12)
    held, standbys = group.share("old", "a", "b", without_standbys={"old"})
    assert is_even(held, 12)
    assert standbys["old"] == frozenset()
    assert standbys["a"] | standbys["b"] == set(range(12))
    assert group.share("old", "a", "b") == (held, standbys)
    group.share("old", "a", "b", "c")
    assert group.releasing("c") == {"id-old", "id-a", "id-b"}


def test_a_version_without_standbys_takes_the_word_for_an_owner_that_no_changelog_names():
    """This is how it reads its assignment, and the data of the members if it is the leader."""
    group = Members(12)
    group.share("a", "b")
    sent = group._processes["a"].metadata([TOPIC]).user_data
    data = BytesIO(sent)
    StickyAssignorUserDataV1.decode(data)
    owner, word = data.read().decode().split(" ")
    assert (owner, decode_standbys([word])) == ("id-a", group._processes["a"].standbys)


def test_a_member_whose_data_have_another_format_gets_its_share():
    foreign = ConsumerProtocolMemberMetadata(0, [TOPIC], b"\0\0\0\1another format")
    known = {"foreign": foreign, "own": LaneAssignor.metadata([TOPIC])}
    assigned = LaneAssignor.assign(Group(12)._cluster, known)
    assert [len(assigned[member].partitions()) for member in known] == [6, 6]


def test_a_worker_that_joins_takes_only_its_share():
    group = Group(12)
    before = group.share("a", "b", "c")
    after = group.share("a", "b", "c", "d")
    assert is_even(after, 12)
    assert kept(before, after, "abc") == 9


def test_what_a_worker_remembers_from_before_it_slept_does_not_count():
    group = Group(12)
    group.share("a", "sleeper")
    between = group.share("a", "b")
    after = group.share("sleeper", "a", "b")
    assert is_even(after, 12)
    assert kept(between, after, "ab") == 8


def settings(**changes: Any):
    given: dict[str, Any] = {"topic_prefix": "shop.", "admin_port": 9100, "session_timeout_s": 2.0}
    return Settings(**given | changes)


@pytest.mark.parametrize(
    ("changes", "host", "instance_id", "is_named"),
    [
        pytest.param({}, "orders-0", "orders-0-9100", False, id="host name and admin port"),
        pytest.param({"instance_id": "w-1"}, "orders-0", "w-1", True, id="what the operator says"),
        pytest.param({"admin_port": 0}, "orders-0", None, False, id="none, where the port is not known"),
        pytest.param({}, "localhost", None, False, id="none, where the host has no name"),
        pytest.param({}, "Dana's Mac", None, False, id="none, where Kafka does not take the name"),
    ],
)
def test_the_name_of_a_worker(changes, host, instance_id, is_named):
    found = Membership.from_settings(settings(**changes), host)
    assert (found.group_id, found.instance_id, found.is_named) == ("shop.orders", instance_id, is_named)


@pytest.mark.parametrize(
    ("changes", "instance_id", "client_id"),
    [
        pytest.param({}, "orders-0-9100.2", "order-service@orders-0-9100.2-1f2e3d4c", id="host name and admin port"),
        pytest.param({"instance_id": "w-1"}, "w-1.2", "order-service@orders-0-9100.2", id="what the operator says"),
        pytest.param({"admin_port": 0}, None, "order-service@orders-0-0.2-1f2e3d4c", id="none, without a port"),
    ],
)
def test_each_process_of_a_worker_has_a_name_of_its_own(changes, instance_id, client_id):
    found = Membership.from_settings(settings(**changes), "orders-0", "1f2e3d4c", process=2)
    assert (found.instance_id, found.client_id) == (instance_id, client_id)


def test_default_names_of_two_machines_with_one_host_name_are_told_apart():
    here, there = (Membership.from_settings(settings(), "orders-0", machine) for machine in ("1f2e3d4c", "00112233"))
    assert here.instance_id == there.instance_id
    assert here.client_id == "order-service@orders-0-9100-1f2e3d4c"
    assert there.client_id == "order-service@orders-0-9100-00112233"


def test_a_chosen_name_goes_with_its_host_name_wherever_that_runs():
    """A pod that is made again replaces the one before it at once: the operator has said that there is only one."""
    here, there = (Membership.from_settings(settings(instance_id="w-1"), "orders-0", machine) for machine in ("a", "b"))
    assert here == there


def test_a_machine_is_known_by_its_boot_and_its_file_of_the_host_name(monkeypatch, tmp_path):
    boot, container, other = tmp_path / "boot_id", tmp_path / "hostname", tmp_path / "other"
    boot.write_text("563b73eb\n")
    container.write_text("orders-0\n")
    other.write_text("orders-0\n")
    monkeypatch.setattr(membership, "BOOT_ID", boot)
    monkeypatch.setattr(membership, "HOST_NAME_FILE", container)
    here = this_machine()
    assert re.fullmatch("[0-9a-f]{8}", here)
    container.write_text("orders-0\n")  # a runtime writes it again when it restarts the container
    assert this_machine() == here
    monkeypatch.setattr(membership, "HOST_NAME_FILE", other)
    assert this_machine() != here
    monkeypatch.setattr(membership, "HOST_NAME_FILE", tmp_path / "absent")
    assert this_machine()
    boot.unlink()
    assert this_machine() == ""


class Coordinator:
    """Answers with the members of the moment; the last answer is repeated."""

    def __init__(self, *answers):
        self.answers = list(answers)

    async def __call__(self, _request):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        members = [(member_id, client_id, "/10.0.0.7", b"", b"") for member_id, client_id in answer]
        return SimpleNamespace(groups=[(0, "shop.orders", "Stable", "consumer", "x", members, 0)])


ELSEWHERE = ("w-1-" + UUID, "order-service@orders-1-9100")
HERE = ("w-1-" + UUID, "order-service@orders-0-9100")
NAMED = Membership.from_settings(settings(instance_id="w-1"), "orders-0")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    async def no_sleep(_seconds):
        pass

    monkeypatch.setattr(membership, "asyncio", SimpleNamespace(sleep=no_sleep))


@pytest.mark.parametrize(
    ("answers", "is_first", "may_join"),
    [
        pytest.param([[]], True, True, id="no member has its id"),
        pytest.param([[HERE]], True, True, id="its predecessor in the same place is replaced at once"),
        pytest.param([[ELSEWHERE], [ELSEWHERE], []], True, True, id="a predecessor elsewhere is waited for"),
        pytest.param([[ELSEWHERE]], True, False, id="one elsewhere that lives on stays"),
        pytest.param([[ELSEWHERE]], False, False, id="its place was taken while it slept"),
        pytest.param([[HERE]], False, False, id="its place was taken by one that looks the same"),
        pytest.param([[("w-1-a-" + UUID, "x")]], False, True, id="an id that only begins alike"),
        pytest.param(
            [GroupCoordinatorNotAvailableError()], True, True, id="Kafka does not answer: the join will say so"
        ),
    ],
)
async def test_who_may_join_under_an_instance_id(answers, is_first, may_join):
    reason = await twin_of(NAMED, Coordinator(*answers), is_first=is_first)
    assert (reason is None) == may_join
    if reason is not None:
        assert "instance id w-1: order-service@" in reason
        assert "set ORDERS_INSTANCE_ID" in reason


async def test_its_own_entry_is_no_twin():
    assert await twin_of(NAMED, Coordinator([HERE]), is_first=False, own_member_id=HERE[0]) is None
    assert await twin_of(NAMED, Coordinator([HERE]), is_first=False, own_member_id="w-1-" + OTHER_UUID) is not None


@pytest.mark.parametrize(
    ("error", "members", "reason"),
    [
        (
            InconsistentGroupProtocolError(),
            [("x", "reporting")],
            "reporting at 10.0.0.7 (holds no partitions); end them",
        ),
        (InconsistentGroupProtocolError(), [], "they cannot be listed"),
        (InvalidSessionTimeoutError(), [], "refuses a session timeout of 2 s: set ORDERS_SESSION_TIMEOUT_S"),
        (GroupAuthorizationFailedError("shop.orders"), [], "grant it Read on that group"),
        (UnknownError(), [], "refuses this worker as a member of the group shop.orders: UnknownError"),
        (KafkaError("Unexpected error"), [], "this worker is no longer a member of the group shop.orders: KafkaError"),
        (UnknownError(), [ELSEWHERE], "with the instance id w-1: order-service@orders-1-9100 at 10.0.0.7"),
        (UnknownError(), GroupCoordinatorNotAvailableError(), "UnknownError"),
    ],
)
def test_the_reason_names_who_causes_it_and_what_to_do(error, members, reason):
    assert reason in asyncio.run(reason_of(error, NAMED, Coordinator(members), "w-1-" + OTHER_UUID))


async def test_an_error_in_the_answer_of_the_coordinator_is_raised():
    async def send(_request):
        return SimpleNamespace(groups=[(16, "", "", "", "", [], 0)])

    with pytest.raises(NotCoordinatorForGroupError):
        await members_of("orders", send)
