"""Who a worker is to its group, who else is in it, and what an error of the group means for an operator.

Members of this service share an assignor whose name no other program uses: Kafka refuses a member with
another assignor (INCONSISTENT_GROUP_PROTOCOL). So a foreign program either keeps workers out, which then report it and
end, or is kept out by them. One that uses our assignor too would hold partitions beside them: `GroupWatch` reports it.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import structlog
from aiokafka import TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    InconsistentGroupProtocolError,
    InvalidSessionTimeoutError,
    KafkaError,
    for_code,
)
from aiokafka.protocol.admin import DescribeGroupsRequest
from msgspec import Struct

from order_service.settings import Settings

log = structlog.get_logger()

CLIENT_PREFIX: Final = "order-service@"
HOST_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,200}")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
HOST_NAME_FILE: Final = Path("/etc/hostname")
LOOK_EVERY_S: Final = 0.5
UUID_CHARS: Final = 36
"""Kafka names a static member after its instance id, a hyphen and a UUID (KIP-345)."""


class LaneAssignor(StickyPartitionAssignor):  # type: ignore[misc]
    """aiokafka's sticky assignor under a name of our own: lanes stay where they are.

    aiokafka 0.14 never tells it the generation; without it the claims of a member that slept count as much as those of
    the members that hold its partitions now. `Listener` tells it.
    """

    name = "orders-sticky"


class Membership(Struct, frozen=True):
    """How a worker introduces itself.

    `instance_id` makes a restarted process the same member, so that the others notice nothing; None is a new member at
    every start. `is_named` is True for an id that an operator chose: its place is kept even when the worker is told to
    end. `client_id` names host and admin port, and for a default `instance_id` the machine, too: two machines may have
    one host name.
    """

    group_id: str
    instance_id: str | None
    is_named: bool
    client_id: str
    session_timeout_s: float

    @classmethod
    def from_settings(cls, settings: Settings, host: str | None = None, machine: str | None = None) -> "Membership":
        """Return the membership of a worker: by ORDERS_INSTANCE_ID, else by host name and admin port."""
        host = socket.gethostname() if host is None else host
        machine = this_machine() if machine is None else machine
        address = f"{host}-{settings.admin_port}"
        place = f"{address}-{machine}" if machine and not settings.instance_id else address
        is_host = HOST_NAME.fullmatch(host) is not None and host.partition(".")[0] != "localhost"
        return cls(
            group_id=settings.group_id,
            instance_id=settings.instance_id or (address if is_host and settings.admin_port else None),
            is_named=bool(settings.instance_id),
            client_id=f"{CLIENT_PREFIX}{place}",
            session_timeout_s=settings.session_timeout_s,
        )

    @property
    def stays_after_a_fault(self) -> bool:
        """Whether a process that ends by itself keeps its place for the restart that follows."""
        return self.instance_id is not None


def this_machine() -> str:
    """Return 8 hex digits that tell this machine or container from others of its host name, empty if that is not known.

    Each machine has a boot id. Docker, containerd and CRI-O give each container or pod an /etc/hostname of its own,
    which stays the same file when the container is restarted.
    """
    try:
        file = HOST_NAME_FILE.stat() if HOST_NAME_FILE.exists() else None
        known = (BOOT_ID.read_text(), file and (file.st_dev, file.st_ino))
    except OSError:  # no Linux, or a container that may not read them
        return ""
    return blake2b(repr(known).encode(), digest_size=4).hexdigest()


class Member(Struct, frozen=True):
    """A member of the group, as the broker describes it. `assignment` is in the format of the consumer protocol."""

    member_id: str
    client_id: str
    host: str
    assignment: bytes = b""

    def has_instance_id(self, instance_id: str | None) -> bool:
        """Return whether this member joined with this instance id."""
        return instance_id is not None and self.member_id[: -UUID_CHARS - 1] == instance_id

    def partitions(self) -> list[TopicPartition]:
        """Return the partitions that it holds: none during a rebalance, or if another program wrote them otherwise."""
        try:
            return sorted(ConsumerProtocolMemberAssignment.decode(self.assignment).partitions())
        except (ValueError, TypeError):
            return []

    def __str__(self) -> str:
        return f"{self.client_id} at {self.host.lstrip('/')}"


Send = Callable[[Any], Awaitable[Any]]
"""Sends a request to the coordinator of the group."""


async def members_of(group_id: str, send: Send) -> list[Member]:
    """Return the members of a group. Raises KafkaError if the coordinator does not answer or refuses."""
    response = await send(DescribeGroupsRequest(groups=[group_id], include_authorized_operations=False))
    [(error, _group, _state, _type, _protocol, members, *_)] = response.groups
    if error:
        raise for_code(error)
    return [
        Member(member_id, client_id, host, assignment) for member_id, client_id, host, _metadata, assignment in members
    ]


async def twin_of(membership: Membership, send: Send, *, is_first: bool, own_member_id: str = "") -> str | None:
    """Return why this process must not join under its instance id, or None if it may.

    Called before each join, while this process is not a member. A member with our id is our predecessor if it had our
    client id (host name, port, machine) and this is the first join of this process; it is replaced at once. One from
    elsewhere may be a predecessor too: it is gone when its session has expired. One that is still there then is alive,
    and stays.
    `own_member_id` is who this process was in the group before: its own entry is no twin.
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
        except KafkaError as error:  # the join meets the same fault, and it is reported there
            log.warning("The members of the group cannot be read.", error=repr(error))
            return None
        if not twins or (is_first and twins[0].client_id == membership.client_id):
            return None
        if left_s <= 0:
            return _twin(membership, twins)
        log.warning("Another process has this instance id; waiting for its session to end.", holder=str(twins[0]))
        await asyncio.sleep(LOOK_EVERY_S)
        left_s -= LOOK_EVERY_S


async def reason_of(error: BaseException, membership: Membership, send: Send, own_member_id: str) -> str:
    """Return what `error` of the group means and what to do about it, with the members that cause it."""
    try:
        members = [
            member for member in await members_of(membership.group_id, send) if member.member_id != own_member_id
        ]
    except KafkaError:
        members = []
    twins = [member for member in members if member.has_instance_id(membership.instance_id)]
    if twins:
        return _twin(membership, twins)
    group_id = membership.group_id
    if isinstance(error, InconsistentGroupProtocolError):
        return about_strangers(group_id, strangers_of(members))
    if isinstance(error, InvalidSessionTimeoutError):
        return (
            f"Kafka refuses a session timeout of {membership.session_timeout_s:g} s: set ORDERS_SESSION_TIMEOUT_S "
            "between the broker's group.min.session.timeout.ms and group.max.session.timeout.ms"
        )
    if isinstance(error, GroupAuthorizationFailedError):
        return f"Kafka does not allow this worker to read as group {group_id}: grant it Read on that group"
    if type(error) is KafkaError:  # aiokafka wraps in it what it did not expect
        return f"this worker is no longer a member of the group {group_id}: {error!r}"
    return f"Kafka refuses this worker as a member of the group {group_id}: {error!r}"


def strangers_of(members: Iterable[Member]) -> list[Member]:
    """Return the members of a group that are not workers of this service."""
    return [member for member in members if not member.client_id.startswith(CLIENT_PREFIX)]


def about_strangers(group_id: str, strangers: Iterable[Member], seen_s: Mapping[str, float] | None = None) -> str:
    """Return who the strangers in a group are, what they hold, and what to do about them.

    `seen_s` has for how many seconds each has been seen, by member id.
    """
    described = []
    for stranger in strangers:
        held = ", ".join(f"{topic}-{partition}" for topic, partition in stranger.partitions())
        seen = "" if seen_s is None else f", seen for {seen_s[stranger.member_id]:.0f} s"
        described.append(f"{stranger} (holds {held or 'no partitions'}{seen})")
    return (
        f"consumers of another program or version are in the group {group_id}: {_listed(described)}; "
        "end them, give them another group, or set ORDERS_APP_ID"
    )


def _twin(membership: Membership, twins: Iterable[Member]) -> str:
    return (
        f"another process is in the group {membership.group_id} with the instance id {membership.instance_id}: "
        f"{_listed(twins)}; set ORDERS_INSTANCE_ID to a different value on each worker"
    )


def _listed(members: Iterable[Member | str]) -> str:
    return ", ".join(sorted(map(str, members))) or "they cannot be listed"
