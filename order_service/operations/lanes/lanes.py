"""Lists the lanes: what Kafka tells about each partition, and what the workers that answer tell about their lanes."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from aiokafka.structs import TopicPartition
from msgspec import Struct

from order_service.errors import KafkaAwayError, NoResponse
from order_service.http_client import HttpClient
from order_service.kafka.connection import Admin, ask_admin
from order_service.kafka.reader import Reader
from order_service.operations.positions import NewestPosition, newest_positions
from order_service.settings import Settings
from order_service.wire.changelog import REBUILDING
from order_service.worker.lane_states import LaneState, LaneStates
from order_service.worker.membership import Member, members_of

ANSWER_WITHIN_S: Final = 10.0
BODY_MAX_BYTES: Final = 4 * 1024 * 1024
UNKNOWN: Final = "unknown"
NOT_ASSIGNED: Final = "not assigned"


class LaneRow(Struct, frozen=True):
    """One partition. `worker` is the address that answered, or else the member of the group that has the partition.

    `standby` is the member that stands by for it, if there is one.
    """

    partition: int
    state: str
    since: datetime | None
    reason: str
    worker: str | None
    owner: str | None
    position: int | None
    lag: int | None
    waiting: int | None
    standby: str | None


class Lanes(Struct, frozen=True):
    """All partitions, and what could not be read."""

    rows: list[LaneRow]
    notes: list[str]


class Workers(Struct, frozen=True):
    """The states that workers reported, each with the address of its worker, and the addresses that did not answer."""

    states: dict[int, tuple[str, LaneState]]
    notes: list[str]


async def list_lanes(settings: Settings, reader: Reader, addresses: Sequence[str]) -> Lanes:
    """Return all partitions. Raises KafkaAwayError if Kafka does not answer, TopicsError if a topic is missing."""
    commands = await reader.partitions(reader.names.commands)
    ends = await reader.ends(commands)
    newest = await newest_positions(reader, [partition for _, partition in commands])
    workers = await ask_workers(addresses)
    notes = list(workers.notes)
    members: list[Member] | None = None
    try:
        members = await group_members(settings)
    except KafkaAwayError as error:
        notes.append(f"the members of the group {settings.group_id} are unknown: {error}")
    return Lanes(rows_of(newest, ends, workers.states, members), notes)


def rows_of(
    newest: Mapping[int, NewestPosition],
    ends: Mapping[TopicPartition, int],
    states: Mapping[int, tuple[str, LaneState]],
    members: Iterable[Member] | None,
) -> list[LaneRow]:
    """Return one row for each partition. `members` are those of the group; None if they are unknown."""
    rows = []
    holders = {each: member for member in members or () for each in member.partitions()}
    standbys = {partition: str(member) for member in members or () for partition in member.standbys()}
    for topic_partition, end in sorted(ends.items()):
        partition = topic_partition.partition
        recorded = newest[partition]
        position = recorded.position
        address, lane = states.get(partition, (None, None))
        member = holders.get(topic_partition)
        rows.append(
            LaneRow(
                partition,
                lane.state if lane else UNKNOWN if member or members is None else NOT_ASSIGNED,
                lane.since if lane else None,
                lane.reason if lane else recorded.fault,
                address or (str(member) if member else None),
                recorded.owner,
                None if position is None else position.resume_at,
                None if position is None else max(0, end - position.resume_at),
                None if position is None or position.waiting_count == REBUILDING else position.waiting_count,
                standbys.get(partition),
            )
        )
    return rows


def row_without_kafka(address: str, lane: LaneState) -> LaneRow:
    """Return the row of a lane that a worker reports while Kafka does not answer."""
    return LaneRow(lane.partition, lane.state, lane.since, lane.reason, address, None, None, None, None, None)


async def group_members(settings: Settings, *, patience_s: float = 5.0) -> list[Member]:
    """Return the members of the workers' group. Raises KafkaAwayError after `patience_s`."""
    return await ask_admin(settings, lambda admin: _members(admin, settings.group_id), patience_s=patience_s)


async def ask_workers(addresses: Iterable[str]) -> Workers:
    """Ask the admin ports of workers for their lanes."""
    client = HttpClient(timeout_s=ANSWER_WITHIN_S, body_max_bytes=BODY_MAX_BYTES)
    try:
        addresses = list(addresses)
        answers = await asyncio.gather(*(_ask(client, address) for address in addresses))
    finally:
        await client.close()
    states: dict[int, tuple[str, LaneState]] = {}
    notes = []
    for address, answer in zip(addresses, answers, strict=True):
        if isinstance(answer, str):
            notes.append(f"no worker answers at {address}: {answer}")
        else:
            states |= {lane.partition: (address, lane) for lane in answer.lanes}
    return Workers(states, notes)


async def _ask(client: HttpClient, address: str) -> LaneStates | str:
    try:
        reply = await client.request("GET", f"http://{address}/lanes")
    except NoResponse as error:
        return str(error)
    if reply.status != 200:
        return f"status {reply.status}"
    try:
        return msgspec.json.decode(reply.body, type=LaneStates)
    except msgspec.MsgspecError as error:
        return f"another program has this port ({error})"


async def _members(admin: Admin, group_id: str) -> list[Member]:
    coordinator = await admin.find_coordinator(group_id)

    async def send(request: Any) -> Any:
        return await admin._send_request(request, coordinator)  # noqa: SLF001, its own method returns less

    return await members_of(group_id, send)
