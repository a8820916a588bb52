"""The identity of a worker in its consumer group, the other members, and what a group error means for an operator.

Members of this service share an assignor with a unique name. Kafka refuses a member with another assignor
(INCONSISTENT_GROUP_PROTOCOL). So either the workers keep a foreign program out, or it keeps them out, and they report
it and end. A foreign program with our assignor would hold partitions beside the workers; `GroupWatch` reports it.
"""

import asyncio
import re
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Final

import structlog
from aiokafka import TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import (
    StickyAssignorMemberMetadataV1,
    StickyAssignorUserDataV1,
    StickyPartitionAssignor,
)
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    InconsistentGroupProtocolError,
    InvalidSessionTimeoutError,
    KafkaError,
)
from aiokafka.protocol.admin import DescribeGroupsRequest
from msgspec import Struct

from order_service.kafka.connection import raise_for
from order_service.settings import Settings
from order_service.worker.standbys.standby_plan import WORD as STANDBYS_WORD
from order_service.worker.standbys.standby_plan import decode_standbys, encode_standbys, inherited, standby_plan

log = structlog.get_logger()

CLIENT_PREFIX: Final = "order-service@"
CLIENT_ID: Final = re.compile(rf"{CLIENT_PREFIX}.+-([1-9][0-9]{{0,4}})(?:\.[0-9]+)?(?:-[0-9a-f]{{8}})?")
"""The client id of a worker: its host and admin port, perhaps the number of its process, and its machine."""
HOST_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,200}")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
HOST_NAME_FILE: Final = Path("/etc/hostname")
LOOK_EVERY_S: Final = 0.5
UUID_CHARS: Final = 36
"""The member id of a static member is its instance id, a hyphen and a UUID (KIP-345)."""


class LaneAssignor(StickyPartitionAssignor):  # type: ignore[misc]
    """aiokafka's sticky assignor under our own name: partitions stay with their members.

    aiokafka 0.14 never sets its generation. Without it, the stale assignment of a member that slept counts as much as
    those of the members that hold its partitions now. `RebalanceListener` sets it.

    Each member sends the leader its owner id, too. With its assignment it gets those of the other members that have had
    any of its partitions: such an owner releases them. A static member that is started again gets the assignment of its
    predecessor, whose owner id is not in it.

    A member that `stands_by` for partitions of others sends which ones, and gets those of the next generation, as one
    more word: see `standby_plan`. A version without standbys takes it for an owner id that no changelog names.
    """

    name = "orders-sticky"
    member_assignment: ClassVar[list[TopicPartition]] = []  # with None, aiokafka sends no data
    owner: ClassVar[str] = ""
    releasing_owners: ClassVar[frozenset[str]] = frozenset()
    stands_by: ClassVar[bool] = False
    standbys: ClassVar[frozenset[int]] = frozenset()
    lacks_standbys: ClassVar[bool] = False
    """Whether the leader did not know that this member stands by: it joined with another setting, or by another
    version. A static member gets the assignment of its predecessor."""

    @classmethod
    def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """Return what this member tells the leader: the data of aiokafka's assignor, the owner id, the standbys."""
        metadata = super().metadata(topics)
        words = [cls.owner, *([encode_standbys(cls.standbys)] if cls.stands_by else [])]
        metadata.user_data += " ".join(words).encode()
        return metadata

    @classmethod
    def assign(
        cls, cluster: Any, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Assign the partitions to the members, each with the owner ids of those that have had its partitions.

        A partition that no member has had goes to the member that stands by for it, if the shares stay even.
        """
        had = {member_id: cls.parse_member_metadata(metadata) for member_id, metadata in members.items()}
        words = {member_id: _words_of(metadata.user_data) for member_id, metadata in members.items()}
        stood_by = {
            member_id: standbys
            for member_id in sorted(had, key=lambda member_id: (had[member_id].generation, member_id))
            if (standbys := decode_standbys(words[member_id])) is not None
        }
        if stood_by:
            members = {
                member_id: _with_partitions(members[member_id], [*had[member_id].partitions, *more], had[member_id])
                for member_id, more in _inherited(cluster, had, stood_by).items()
            }
        assignments: dict[str, ConsumerProtocolMemberAssignment] = super().assign(cluster, members)
        assigned = {member_id: assignment.partitions() for member_id, assignment in assignments.items()}
        plan = standby_plan(assigned, stood_by)
        for member_id, assignment in assignments.items():
            taken = set(assigned[member_id])
            sent = [
                word
                for other in members
                if other != member_id and taken.intersection(had[other].partitions)
                for word in _owners_in(words[other])
            ]
            if member_id in plan:
                sent.append(encode_standbys(plan[member_id]))
            assignment.user_data = " ".join(sent).encode()
        return assignments

    @classmethod
    def on_assignment(cls, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Record the assigned partitions, the owner ids of the members that have had them, and the standbys."""
        super().on_assignment(assignment)
        words = (assignment.user_data or b"").decode(errors="replace").split()
        cls.releasing_owners = frozenset(_owners_in(words))
        standbys = decode_standbys(words)
        cls.standbys = standbys or frozenset()
        cls.lacks_standbys = cls.stands_by and standbys is None


def _words_of(user_data: bytes | None) -> list[str]:
    """Return the words that a member has sent: none for a foreign program with another format."""
    data = BytesIO(user_data or b"")
    try:
        StickyAssignorUserDataV1.decode(data)
        return data.read().decode().split()
    except (ValueError, TypeError):
        return []


def _owners_in(words: Iterable[str]) -> list[str]:
    return [word for word in words if not word.startswith(STANDBYS_WORD)]


def _inherited(
    cluster: Any, had: Mapping[str, StickyAssignorMemberMetadataV1], stood_by: Mapping[str, frozenset[int]]
) -> dict[str, list[TopicPartition]]:
    """Return the partitions of lost members that go to the members that stand by for them."""
    everything = {
        TopicPartition(topic, partition)
        for topic in {topic for member in had.values() for topic in member.subscription}
        for partition in cluster.partitions_for_topic(topic) or ()
    }
    held = {member_id: everything.intersection(member.partitions) for member_id, member in had.items()}
    lost = everything.difference(*held.values())
    return inherited(lost, {member_id: len(partitions) for member_id, partitions in held.items()}, stood_by)


def _with_partitions(
    metadata: ConsumerProtocolMemberMetadata,
    partitions: Iterable[TopicPartition],
    had: StickyAssignorMemberMetadataV1,
) -> ConsumerProtocolMemberMetadata:
    """Return the metadata of a member as if it had had these partitions."""
    by_topic: defaultdict[str, list[int]] = defaultdict(list)
    for topic, partition in partitions:
        by_topic[topic].append(partition)
    user_data = StickyAssignorUserDataV1(by_topic.items(), had.generation).encode()
    return ConsumerProtocolMemberMetadata(metadata.version, metadata.subscription, user_data)


class Membership(Struct, frozen=True):
    """The identity of a worker in its consumer group.

    With an `instance_id`, a restarted process is the same member and causes no rebalance; with None, each start is a
    new member. `is_named` is True for an id that an operator chose: that member stays in the group even after a
    requested stop. `client_id` has host and admin port. For a default `instance_id` it also has the machine, since two
    machines may share a host name. Each process of a worker that has several adds its number to both.
    """

    group_id: str
    instance_id: str | None
    is_named: bool
    client_id: str
    session_timeout_s: float

    @classmethod
    def from_settings(
        cls, settings: Settings, host: str | None = None, machine: str | None = None, *, process: int = 0
    ) -> "Membership":
        """Return the membership of a worker, from ORDERS_INSTANCE_ID or else from host name and admin port.

        `process` is the number of the process, 0 if the worker has one only.
        """
        host = socket.gethostname() if host is None else host
        machine = this_machine() if machine is None else machine
        number = f".{process}" if process else ""
        address = f"{host}-{settings.admin_port}{number}"
        client = f"{address}-{machine}" if machine and not settings.instance_id else address
        is_host = HOST_NAME.fullmatch(host) is not None and host.partition(".")[0] != "localhost"
        return cls(
            group_id=settings.group_id,
            instance_id=(
                f"{settings.instance_id}{number}"
                if settings.instance_id
                else (address if is_host and settings.admin_port else None)
            ),
            is_named=bool(settings.instance_id),
            client_id=f"{CLIENT_PREFIX}{client}",
            session_timeout_s=settings.session_timeout_s,
        )

    @property
    def stays_after_a_fault(self) -> bool:
        """Whether a process that ends by itself stays a member, for the restart that follows."""
        return self.instance_id is not None


def this_machine() -> str:
    """Return 8 hex digits that distinguish this machine or container from others with its host name, or "" if unknown.

    Each machine has a boot id. Docker, containerd and CRI-O give each container or pod its own /etc/hostname, and keep
    that file when the container restarts.
    """
    try:
        file = HOST_NAME_FILE.stat() if HOST_NAME_FILE.exists() else None
        identity = (BOOT_ID.read_text(), file and (file.st_dev, file.st_ino))
    except OSError:  # not Linux, or a container that may not read them
        return ""
    return blake2b(repr(identity).encode(), digest_size=4).hexdigest()


class Member(Struct, frozen=True):
    """A member of the group as the broker describes it. `assignment` is in the consumer protocol format."""

    member_id: str
    client_id: str
    host: str
    assignment: bytes = b""

    def has_instance_id(self, instance_id: str | None) -> bool:
        """Return whether this member joined with this instance id."""
        return instance_id is not None and self.member_id[: -UUID_CHARS - 1] == instance_id

    @property
    def admin_address(self) -> str | None:
        """Where this worker answers on its admin port, as the broker sees its host; None for another program."""
        match = CLIENT_ID.fullmatch(self.client_id)
        if match is None:
            return None
        host = self.host.lstrip("/")
        return f"[{host}]:{match[1]}" if ":" in host else f"{host}:{match[1]}"

    def partitions(self) -> list[TopicPartition]:
        """Return the assigned partitions. Empty during a rebalance, or if another program uses a different format."""
        try:
            return sorted(ConsumerProtocolMemberAssignment.decode(self.assignment).partitions())
        except (ValueError, TypeError):
            return []

    def standbys(self) -> frozenset[int]:
        """Return the partitions of the commands for which this member stands by. Empty like `partitions`."""
        try:
            user_data = ConsumerProtocolMemberAssignment.decode(self.assignment).user_data or b""
            return decode_standbys(user_data.decode().split()) or frozenset()
        except (ValueError, TypeError):
            return frozenset()

    def __str__(self) -> str:
        return f"{self.client_id} at {self.host.lstrip('/')}"


class Group(Struct, frozen=True):
    """A consumer group as its coordinator describes it. With members, it is `Stable` unless it rebalances."""

    state: str
    members: list[Member]


Send = Callable[[Any], Awaitable[Any]]
"""A function that sends a request to the group coordinator and returns the response."""


async def group_of(group_id: str, send: Send) -> Group:
    """Return the state and the members of a group. Raises KafkaError if the coordinator does not answer or refuses."""
    response = await send(DescribeGroupsRequest(groups=[group_id], include_authorized_operations=False))
    [(error, _group, state, _type, _protocol, members, *_)] = response.groups
    raise_for(error)
    described = [
        Member(member_id, client_id, host, assignment) for member_id, client_id, host, _metadata, assignment in members
    ]
    return Group(state, described)


async def members_of(group_id: str, send: Send) -> list[Member]:
    """Return the members of a group. Raises the errors of `group_of`."""
    return (await group_of(group_id, send)).members


async def twin_of(membership: Membership, send: Send, *, is_first: bool, own_member_id: str = "") -> str | None:
    """Return why this process must not join under its instance id, or None if it may.

    Called before each join, while this process is not a member. On the first join, a member with our instance id and
    our client id (host name, port, machine) is our predecessor, and is replaced at once. A member with another client
    id may be a predecessor too: then it disappears when its session expires. If it is still there after that, it is
    alive and keeps the id. `own_member_id` is the previous member id of this process, which does not count as a twin.
    """
    if membership.instance_id is None:
        return None
    left_s = membership.session_timeout_s * 1.5 + LOOK_EVERY_S if is_first else 0.0
    while True:
        try:
            twins = [
                member
                for member in await members_of(membership.group_id, send)
                if member.has_instance_id(membership.instance_id) and member.member_id != own_member_id
            ]
        except KafkaError as error:  # the join fails the same way and reports it
            log.warning("Cannot read the group members.", error=repr(error))
            return None
        if not twins or (is_first and twins[0].client_id == membership.client_id):
            return None
        if left_s <= 0:
            return _describe_twins(membership, twins)
        log.warning("Another process has this instance id; waiting for its session to end.", holder=str(twins[0]))
        await asyncio.sleep(LOOK_EVERY_S)
        left_s -= LOOK_EVERY_S


async def reason_of(error: BaseException, membership: Membership, send: Send, own_member_id: str) -> str:
    """Return what a group error means and how to fix it, with the members that cause it."""
    try:
        members = [
            member for member in await members_of(membership.group_id, send) if member.member_id != own_member_id
        ]
    except KafkaError:
        members = []
    twins = [member for member in members if member.has_instance_id(membership.instance_id)]
    if twins:
        return _describe_twins(membership, twins)
    group_id = membership.group_id
    if isinstance(error, InconsistentGroupProtocolError):
        return describe_strangers(group_id, strangers_of(members))
    if isinstance(error, InvalidSessionTimeoutError):
        return (
            f"Kafka refuses a session timeout of {membership.session_timeout_s:g} s: set ORDERS_SESSION_TIMEOUT_S "
            "between the broker's group.min.session.timeout.ms and group.max.session.timeout.ms"
        )
    if isinstance(error, GroupAuthorizationFailedError):
        return f"Kafka does not allow this worker to read as group {group_id}: grant it Read on that group"
    if type(error) is KafkaError:  # aiokafka wraps unexpected errors in it
        return f"this worker is no longer a member of the group {group_id}: {error!r}"
    return f"Kafka refuses this worker as a member of the group {group_id}: {error!r}"


def strangers_of(members: Iterable[Member]) -> list[Member]:
    """Return the members of a group that are not workers of this service."""
    return [member for member in members if not member.client_id.startswith(CLIENT_PREFIX)]


def describe_strangers(group_id: str, strangers: Iterable[Member], seen_s: Mapping[str, float] | None = None) -> str:
    """Return a message with the strangers in a group, the partitions that they hold, and the remedy.

    `seen_s` maps member ids to the seconds since each was first seen.
    """
    return f"{list_strangers(group_id, strangers, seen_s)}; {STRANGERS_FIX}"


STRANGERS_FIX: Final = "end them, give them another group, or set ORDERS_APP_ID"


def list_strangers(group_id: str, strangers: Iterable[Member], seen_s: Mapping[str, float] | None = None) -> str:
    """Return the message of `describe_strangers` without the remedy."""
    described = []
    for stranger in strangers:
        held = ", ".join(f"{topic}-{partition}" for topic, partition in stranger.partitions())
        seen = "" if seen_s is None else f", seen for {seen_s[stranger.member_id]:.0f} s"
        described.append(f"{stranger} (holds {held or 'no partitions'}{seen})")
    return f"consumers of another program or version are in the group {group_id}: {_listed(described)}"


def _describe_twins(membership: Membership, twins: Iterable[Member]) -> str:
    return (
        f"another process is in the group {membership.group_id} with the instance id {membership.instance_id}: "
        f"{_listed(twins)}; set ORDERS_INSTANCE_ID to a different value on each worker"
    )


def _listed(members: Iterable[Member | str]) -> str:
    return ", ".join(sorted(map(str, members))) or "they cannot be listed"
