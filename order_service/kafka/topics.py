"""The seven topics: one table has their settings. `create` applies it, and `check` refuses to run with less."""

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Any, Final

import structlog
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import NodeNotReadyError, TopicAlreadyExistsError, for_code
from aiokafka.protocol.metadata import MetadataRequest
from msgspec import Struct

from order_service.domain.messages import COMMAND_TYPES, Rejection
from order_service.errors import KafkaAwayError, TopicsError
from order_service.kafka.connection import UNKNOWN_TOPIC, Admin, connection, raise_for
from order_service.settings import Settings
from order_service.wire.avro import MAX_COMMAND_BYTES
from order_service.wire.schemas.catalogue import Message

log = structlog.get_logger()

IN_SYNC: Final = "min.insync.replicas"
MIB: Final = 1024 * 1024
HOUR_MS: Final = 3600 * 1000
DAY_MS: Final = 24 * HOUR_MS
DELETE_RETENTION_MS: Final = 25 * HOUR_MS
"""How long a changelog keeps tombstones and transaction markers.

A claim that has read a value must reach its tombstone within this time: a restore takes minutes, a paused machine
hours. Brokers expire an idle producer after a day (`producer.id.expiration.ms`, checked every ten minutes). A marker
that is removed before its producer leaves an empty batch, which aiokafka's own reader refuses. So markers stay an hour
longer than a day, and no more: a claim reads over one marker for every turn.
"""
COMMAND_RECORD_BYTES: Final = MAX_COMMAND_BYTES + MIB
"""The largest record of a command, with its key and headers."""
DEAD_LETTER_BYTES: Final = 8 * MIB
"""The largest dead letter: a record of the commands topic, with our headers. Some hosted clusters allow no more."""
COMPACTION_LAG_MAX_MS: Final = 7 * DAY_MS
"""How long a changelog may stay uncompacted; Kafka's own `segment.ms`. More loses nothing, but claims read it all."""

_ALL: Final = {
    "retention.bytes": "-1",
    "unclean.leader.election.enable": "false",
    # The broker's clock: the age of a record is the time since it arrived, not what a producer or a worker believes.
    "message.timestamp.type": "LogAppendTime",
}
_DELETE: Final = _ALL | {"cleanup.policy": "delete"}
_CHANGELOG: Final = _ALL | {
    "cleanup.policy": "compact",
    "segment.bytes": str(64 * MIB),
    "segment.ms": str(HOUR_MS),
    "max.compaction.lag.ms": str(HOUR_MS),
    "min.cleanable.dirty.ratio": "0.2",
    "max.message.bytes": str(4 * MIB),
    "delete.retention.ms": str(DELETE_RETENTION_MS),
}


class Rule(Struct, frozen=True):
    """The accepted values of a setting, given the value that topics are created with, and the words for them."""

    accepts: Callable[[str, str], bool]
    words: str = "{}"


def _is_same(actual: str, expected: str) -> bool:
    return actual == expected


def _is_at_least(actual: str, expected: str) -> bool:
    return int(actual) >= int(expected)


def _keeps_as_long(actual: str, expected: str) -> bool:
    return actual == "-1" or (expected != "-1" and _is_at_least(actual, expected))


def _is_compacted(actual: str, _created_with: str) -> bool:
    return int(actual) <= COMPACTION_LAG_MAX_MS


_SAME: Final = Rule(_is_same)
_COMPARED: Final = {
    "cleanup.policy": _SAME,
    "message.timestamp.type": _SAME,
    "unclean.leader.election.enable": _SAME,
    "retention.ms": Rule(_keeps_as_long, "at least {}"),
    "retention.bytes": _SAME,
    "max.message.bytes": Rule(_is_at_least, "at least {}"),
    "delete.retention.ms": Rule(_is_at_least, "at least {}"),
    "max.compaction.lag.ms": Rule(_is_compacted, f"at most {COMPACTION_LAG_MAX_MS}"),
}
"""The settings that are compared. The others in the table make claims faster, and nothing is lost without them."""


class TopicNames(Struct, frozen=True):
    """The names of our topics under one prefix."""

    commands: str
    events: str
    rejections: str
    dead_letters: str
    table: str
    waiting: str
    operations: str

    @property
    def written(self) -> list[str]:
        """The topics that a turn writes to."""
        return [self.events, self.rejections, self.dead_letters, self.table, self.waiting]

    def of(self, message: type[Message]) -> str:
        """Return the topic of a message type."""
        if message in COMMAND_TYPES:
            return self.commands
        return self.rejections if message is Rejection else self.events


def topic_names(prefix: str = "") -> TopicNames:
    """Return the names of the topics. `prefix` separates services (and tests) on one Kafka."""
    return TopicNames(
        commands=f"{prefix}orders.commands.v1",
        events=f"{prefix}orders.events.v1",
        rejections=f"{prefix}orders.rejections.v1",
        dead_letters=f"{prefix}orders.dead-letters.v1",
        table=f"{prefix}orders.table.v1",
        waiting=f"{prefix}orders.waiting.v1",
        operations=f"{prefix}orders.operations.v1",
    )


def topic_configs(names: TopicNames) -> dict[str, dict[str, str]]:
    """Return the settings that each topic must have."""
    return {
        names.commands: _DELETE | {"retention.ms": str(7 * DAY_MS), "max.message.bytes": str(COMMAND_RECORD_BYTES)},
        names.events: _DELETE | {"retention.ms": "-1", "max.message.bytes": str(4 * MIB)},
        names.rejections: _DELETE | {"retention.ms": str(30 * DAY_MS), "max.message.bytes": str(4 * MIB)},
        names.dead_letters: _DELETE | {"retention.ms": str(30 * DAY_MS), "max.message.bytes": str(DEAD_LETTER_BYTES)},
        names.table: dict(_CHANGELOG),
        names.waiting: dict(_CHANGELOG),
        names.operations: _DELETE | {"retention.ms": "-1", "max.message.bytes": str(4 * MIB)},
    }


class Fault(Struct, frozen=True):
    """A shortcoming of a topic, and what fixes it: a setting to change, replicas to add, or a shell line."""

    topic: str
    text: str
    change: str = ""
    moves: tuple[dict[str, Any], ...] = ()
    line: str = ""


class Described(Struct, frozen=True):
    """A topic as Kafka describes it: the nodes with a replica of each partition, and the settings that it reports."""

    name: str
    replicas: dict[int, list[int]]
    config: dict[str, str]

    @property
    def replica_count(self) -> int:
        """The number of replicas of the partition with the fewest."""
        return min(map(len, self.replicas.values()))

    @property
    def in_sync(self) -> int:
        """The topic's `min.insync.replicas`; Kafka's default if the cluster does not report it."""
        return int(self.config.get(IN_SYNC, "1"))


class Risk(Struct, frozen=True):
    """A risk of topics that meet the table, and what removes it: a sentence, and a shell line if one does."""

    text: str
    advice: str
    line: str = ""


class Comparison(Struct, frozen=True):
    """The shortcomings of the topics against the table, their remaining risks, and their `min.insync.replicas`."""

    faults: list[Fault]
    risks: list[Risk]
    in_sync: dict[str, int]


class TopicSpec(Struct, frozen=True):
    """A topic as it is created."""

    name: str
    partitions: int
    replicas: int
    config: dict[str, str]


def topic_specs(settings: Settings, replicas: int) -> list[TopicSpec]:
    """Return the topics as they are created with this number of replicas."""
    return [
        TopicSpec(name, settings.partitions, replicas, config | {IN_SYNC: str(in_sync_for(replicas))})
        for name, config in topic_configs(topic_names(settings.topic_prefix)).items()
    ]


async def create_topics(admin: Admin, settings: Settings) -> list[str]:
    """Create the missing topics and return their names. Existing topics stay as they are."""
    specs = topic_specs(settings, replicas_for(len(await _nodes(admin))))
    existing = await _partitions(admin, [spec.name for spec in specs])
    topics = [
        NewTopic(
            name=spec.name,
            num_partitions=spec.partitions,
            replication_factor=spec.replicas,
            topic_configs=spec.config,
        )
        for spec in specs
        if spec.name not in existing
    ]
    missing = sorted(topic.name for topic in topics)
    if topics:
        response = await _created(admin, topics)
        for name, code, message in response.topic_errors:
            if code and for_code(code) is not TopicAlreadyExistsError:
                why = f"{for_code(code).__name__}: {message}"
                raise TopicsError(f"cannot create the topic {name}: {why}; {OTHER_MEANS}")
        await _until_led(admin, missing)
    return missing


async def check_topics(admin: Admin, settings: Settings) -> dict[str, int]:
    """Compare the topics with the table and return the `min.insync.replicas` of each.

    Raises TopicsError with all faults.
    """
    compared = await compare_topics(admin, settings)
    if compared.faults:
        raise TopicsError("; ".join([*(fault.text for fault in compared.faults), FIX_HINT]))
    for risk in compared.risks:
        log.warning("The settings of the topics are a risk.", risk=risk.text)
    return compared.in_sync


OTHER_MEANS: Final = "`order-service topics print` writes the topics for other tools"
FIX_HINT: Final = "`order-service topics check` prints the lines that fix it"


async def compare_topics(admin: Admin, settings: Settings) -> Comparison:
    """Compare the topics with the table."""
    partitions = await _partitions(admin, topic_configs(topic_names(settings.topic_prefix)))
    if not partitions:
        return judge_topics([], [], settings)
    actual = await _actual_configs(admin, sorted(partitions))
    topics = [Described(name, partitions[name], actual[name]) for name in sorted(partitions)]
    return judge_topics(topics, await _nodes(admin), settings)


def judge_topics(topics: list[Described], nodes: list[int], settings: Settings) -> Comparison:
    """Compare the existing topics of a cluster of `nodes` with the table.

    Exceeding it is allowed: longer retention, larger records, more replicas, more of them in sync. One replica of every
    topic is a risk and no fault: it can be a decision, where the storage below Kafka is replicated.
    """
    configs = topic_configs(topic_names(settings.topic_prefix))
    have_one_replica = all(len(replicas) == 1 for topic in topics for replicas in topic.replicas.values())
    faults = [
        Fault(name, f"the topic {name} is missing: run `order-service topics create`", line=CREATE)
        for name in configs.keys() - {topic.name for topic in topics}
    ]
    for topic in topics:
        faults += _partition_faults(topic, settings)
        faults += [] if have_one_replica else _replica_faults(topic, nodes)
        faults += _in_sync_faults(topic)
        faults += _config_faults(topic, configs[topic.name])
    risks = _unreported(topics, configs) + _in_sync_risks(topics, settings) + _forgetting_risks(topics, settings)
    if topics and have_one_replica and len(nodes) > 1:
        risks = [_one_replica(topics, nodes, settings), *risks]
    elif any(topic.replica_count == 2 for topic in topics):
        risks = [TWO_REPLICAS, *risks]
    return Comparison(sorted(faults, key=_in_order), risks, {topic.name: topic.in_sync for topic in topics})


CREATE: Final = "order-service topics create"
TWO_REPLICAS: Final = Risk(
    "the topics have two replicas, so records are acknowledged by one broker while the other is away, and are lost if "
    "that one fails too; with three brokers two of three must have them",
    "Run three brokers.",
)


def replicas_for(broker_count: int) -> int:
    """Return how many replicas a topic needs in a cluster with `broker_count` brokers."""
    return max(1, min(3, broker_count))


def in_sync_for(replica_count: int) -> int:
    """Return how many replicas must have a record. With three replicas, one may be away and another may fail."""
    return 2 if replica_count >= 3 else 1


def fix_lines(faults: Iterable[Fault], settings: Settings) -> list[str]:
    """Return the shell lines that fix faults (bash). Lines that need a decision are comments."""
    faults = list(faults)
    lines = list(dict.fromkeys(fault.line for fault in faults if fault.line))
    if moves := [move for fault in faults for move in fault.moves]:  # Kafka accepts one plan at a time
        lines.append(_reassign_line(moves, settings))
    for topic, topic_faults in groupby(faults, lambda fault: fault.topic):
        if changes := ",".join(fault.change for fault in topic_faults if fault.change):
            lines.append(alter_line(topic, changes, settings))
    return lines


def alter_line(topic: str, changes: str, settings: Settings) -> str:
    """Return the shell line that sets settings of a topic: `name=value`, separated by commas."""
    alter = f"--alter --entity-type topics --entity-name {topic} --add-config {changes}"
    return f"kafka-configs {servers_option(settings)} {alter}"


def _reassign_line(moves: Iterable[dict[str, Any]], settings: Settings) -> str:
    plan = json.dumps({"version": 1, "partitions": list(moves)}, separators=(",", ":"))
    execute = f"--execute --reassignment-json-file <(echo '{plan}')"
    return f"kafka-reassign-partitions {servers_option(settings)} {execute}"


def servers_option(settings: Settings) -> str:
    """Return the options that Kafka's own tools need to reach the cluster."""
    command_config = "" if settings.kafka_security_protocol == "PLAINTEXT" else " --command-config client.properties"
    return f"--bootstrap-server {connection(settings)['bootstrap_servers']}{command_config}"


def _in_order(fault: Fault) -> tuple[str, str]:
    return fault.topic, fault.text


def _partition_faults(topic: Described, settings: Settings) -> list[Fault]:
    count = len(topic.replicas)
    if count == settings.partitions:
        return []
    delete = f"kafka-topics {servers_option(settings)} --delete --topic {topic.name}"
    return [
        Fault(
            topic.name,
            f"the topic {topic.name} has {count} partitions, ORDERS_PARTITIONS says {settings.partitions}",
            line=f"# {topic.name}: if all topics have {count} partitions, set ORDERS_PARTITIONS={count}. "
            f"If it is empty: {delete}; then {CREATE}. Records cannot move to other partitions.",
        )
    ]


def _replica_faults(topic: Described, nodes: list[int]) -> list[Fault]:
    count, expected = topic.replica_count, replicas_for(len(nodes))
    if count >= expected:
        return []
    text = f"the topic {topic.name} has {count} replicas, expected at least {expected} with {len(nodes)} brokers"
    return [Fault(topic.name, text, moves=_moves(topic, nodes, expected))]


def _in_sync_faults(topic: Described) -> list[Fault]:
    count = topic.replica_count
    least = in_sync_for(count)
    if IN_SYNC not in topic.config or least <= topic.in_sync <= count:
        return []
    words = f"{least}" if least == count else f"{least} to {count}"
    text = f"the topic {topic.name} has {IN_SYNC}={topic.in_sync}, expected {words} of {count} replicas"
    return [Fault(topic.name, text, f"{IN_SYNC}={least}")]


def _one_replica(topics: list[Described], nodes: list[int], settings: Settings) -> Risk:
    """Return the risk of topics with one replica each. Kafka cannot see whether the storage below is replicated."""
    expected = replicas_for(len(nodes))
    moves = [move for topic in topics for move in _moves(topic, nodes, expected)]
    return Risk(
        f"the topics have one replica, though there are {len(nodes)} brokers: while one of them is away, its "
        "partitions stand still, and if its disk fails, acknowledged records are lost; this is safe only where the "
        "storage below Kafka is replicated",
        "Add replicas.",
        _reassign_line(moves, settings),
    )


def _unreported(topics: list[Described], configs: Mapping[str, Mapping[str, str]]) -> list[Risk]:
    """Return the compared settings that the cluster does not report: some that are not Apache Kafka leave some out."""
    unreported: dict[str, list[str]] = {}
    for topic in topics:
        for key in [IN_SYNC, *(key for key in _COMPARED if key in configs[topic.name])]:
            if key not in topic.config:
                unreported.setdefault(key, []).append(topic.name)
    advice = "Compare it with the table of topics in ARCHITECTURE.md."
    return [
        Risk(f"Kafka does not report {key} of {', '.join(names)}, so it is not compared", advice)
        for key, names in unreported.items()
    ]


def _in_sync_risks(topics: list[Described], settings: Settings) -> list[Risk]:
    return [
        Risk(
            f"the topic {topic.name} needs all of its {topic.replica_count} replicas in sync: while a broker of them "
            f"is away, nothing can be written to it; {IN_SYNC}={in_sync_for(topic.replica_count)} is enough",
            "Lower the setting.",
            alter_line(topic.name, f"{IN_SYNC}={in_sync_for(topic.replica_count)}", settings),
        )
        for topic in topics
        if topic.in_sync == topic.replica_count > 1
    ]


def _forgetting_risks(topics: list[Described], settings: Settings) -> list[Risk]:
    """Return the risk of closed orders that forget commands which are still in their topic.

    No command of a closed order is accepted, so none takes effect twice. But one that an operator or its producer
    repeats gets a second outcome: a rejection. If commands are kept for ever, the required retention counts.
    """
    names = topic_names(settings.topic_prefix)
    required = topic_configs(names)[names.commands]["retention.ms"]
    kept = next((topic.config.get("retention.ms", required) for topic in topics if topic.name == names.commands), "0")
    kept_days = int(required if kept == "-1" else kept) / DAY_MS
    days = settings.remember_closed_days
    if days is None or days >= kept_days:
        return []
    return [
        Risk(
            f"closed orders forget their commands after {days:g} days, but {names.commands} keeps them for "
            f"{kept_days:g} days: a repeat of an accepted command, which would else change nothing, is refused",
            f"Set ORDERS_REMEMBER_CLOSED_DAYS of all workers to {kept_days:g} or more.",
        )
    ]


def _moves(topic: Described, nodes: list[int], expected: int) -> tuple[dict[str, Any], ...]:
    """Return the partitions with replicas added on other nodes, each starting at another node."""
    moves = []
    for partition, replicas in sorted(topic.replicas.items()):
        start = partition % len(nodes)
        others = [node for node in nodes[start:] + nodes[:start] if node not in replicas]
        extended = [*replicas, *others][: max(expected, len(replicas))]
        moves.append({"topic": topic.name, "partition": partition, "replicas": extended})
    return tuple(moves)


def _config_faults(topic: Described, expected: Mapping[str, str]) -> list[Fault]:
    faults = []
    for key, rule in _COMPARED.items():
        if key not in expected or key not in topic.config or rule.accepts(topic.config[key], expected[key]):
            continue
        words = "-1" if expected[key] == "-1" else rule.words.format(expected[key])
        text = f"the topic {topic.name} has {key}={topic.config[key]}, expected {words}"
        faults.append(Fault(topic.name, text, f"{key}={expected[key]}"))
    return faults


async def _partitions(admin: Admin, names: Iterable[str]) -> dict[str, dict[int, list[int]]]:
    """Return the replicas of each partition of the topics that exist."""
    existing = {}
    for topic in await admin.describe_topics(sorted(names)):
        if topic["error_code"] == UNKNOWN_TOPIC:
            continue
        raise_for(topic["error_code"])
        existing[topic["topic"]] = {partition["partition"]: partition["replicas"] for partition in topic["partitions"]}
    return existing


async def _nodes(admin: Admin) -> list[int]:
    return sorted(broker["node_id"] for broker in (await admin.describe_cluster())["brokers"])


async def _actual_configs(admin: Admin, names: list[str]) -> dict[str, dict[str, str]]:
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    actual: dict[str, dict[str, str]] = {}
    for response in await admin.describe_configs(resources):
        for code, _message, _kind, name, entries in response.resources:
            raise_for(code)
            actual[name] = {entry[0]: entry[1] for entry in entries if entry[1] is not None}
    return actual


async def _created(admin: Admin, topics: list[NewTopic]) -> Any:
    try:
        return await admin.create_topics(topics)
    except AttributeError as error:  # aiokafka assumes that a cluster has a controller
        raise NodeNotReadyError("the cluster has no controller now") from error


async def _until_led(admin: Admin, names: list[str], *, tries: int = 100) -> None:
    """Wait until every broker knows the leaders of all partitions. Before that, new topics come and go for clients."""
    for _ in range(tries):
        if all([await _knows_leaders(admin, node, names) for node in await _nodes(admin)]):
            return
        await asyncio.sleep(0.1)
    raise KafkaAwayError(f"new topics have no leaders after {tries / 10:.0f} s: {', '.join(names)}")


async def _knows_leaders(admin: Admin, node: int, names: list[str]) -> bool:
    answer = await admin._send_request(MetadataRequest(names), node)  # noqa: SLF001, `describe_topics` asks any node
    topics = answer.to_object()["topics"]
    return all(topic["error_code"] == 0 and _is_led(topic["partitions"]) for topic in topics)


def _is_led(partitions: list[dict[str, int]]) -> bool:
    return bool(partitions) and all(partition["leader"] >= 0 for partition in partitions)
