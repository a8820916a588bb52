"""The topics keep what the table of topics says, or more; with less a worker does not run and says what mends it."""

import asyncio
import time

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    ConfigSource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
)

from order_service.domain.messages import Command
from order_service.errors import TopicsError
from order_service.kafka.connection import ask_admin
from order_service.kafka.topics import (
    FIX_HINT,
    check_topics,
    compare_topics,
    create_topics,
    in_sync_for,
    replicas_for,
    topic_names,
)
from order_service.local.broker import free_port
from order_service.runtime.readiness import NotReady
from order_service.settings import Settings
from order_service.worker.monitoring.topic_watch import TopicWatch
from tests.support.command_line import CommandLine
from tests.support.kafka import running_broker
from tests.support.samples import but, create
from tests.support.service import Service, until, vars_of
from tests.support.topic_settings import configs, run_lines

MIB = 1024 * 1024
HOUR_MS = 3600 * 1000
DAY_MS = 24 * HOUR_MS
ALL = {
    "retention.bytes": "-1",
    "unclean.leader.election.enable": "false",
    "message.timestamp.type": "LogAppendTime",
    "min.insync.replicas": "1",
}
CHANGELOG = ALL | {
    "cleanup.policy": "compact",
    "segment.bytes": str(64 * MIB),
    "segment.ms": str(HOUR_MS),
    "max.compaction.lag.ms": str(HOUR_MS),
    "max.message.bytes": str(4 * MIB),
    "delete.retention.ms": str(25 * HOUR_MS),
}
LOG = ALL | {"cleanup.policy": "delete", "max.message.bytes": str(4 * MIB)}
TABLE = {
    "commands": LOG | {"retention.ms": str(7 * DAY_MS), "max.message.bytes": str(6 * MIB)},
    "events": LOG | {"retention.ms": "-1"},
    "rejections": LOG | {"retention.ms": str(30 * DAY_MS)},
    "dead_letters": LOG | {"retention.ms": str(30 * DAY_MS), "max.message.bytes": str(8 * MIB)},
    "table": CHANGELOG,
    "waiting": CHANGELOG,
    "operations": LOG | {"retention.ms": "-1"},
}
"""The settings of each topic on one broker."""


async def with_admin(service, work):
    return await ask_admin(service.settings(), lambda admin: work(admin, service.settings()))


def faults(service):
    """Return what `check_topics` says against the topics."""
    with pytest.raises(TopicsError) as raised:
        asyncio.run(with_admin(service, check_topics))
    *said, cure = str(raised.value).split("; ")
    assert cure == FIX_HINT
    return said


def said_of(settings):
    """Return the faults of the topics of these settings."""
    return asyncio.run(ask_admin(settings, lambda admin: compare_topics(admin, settings))).faults


def delete(service, *topics):
    """Delete topics, and wait until the broker's metadata is without them."""
    for future in service.kafka.delete_topics(list(topics)).values():
        future.result(30)
    until(lambda: not set(topics) & service.kafka.list_topics(timeout=30).topics.keys(), "topics are deleted")


def test_topics_are_created_once_and_as_the_table_says(service):
    asyncio.run(with_admin(service, check_topics))
    assert asyncio.run(with_admin(service, create_topics)) == []
    for field, actual in configs(service).items():
        assert {key: actual[key].value for key in TABLE[field]} == TABLE[field]
        # of the topic itself: not what the broker has as its default today
        assert {actual[key].source for key in TABLE[field]} == {ConfigSource.DYNAMIC_TOPIC_CONFIG.value}
    described = service.kafka.list_topics(timeout=30).topics
    assert {len(described[getattr(service.names, field)].partitions) for field in TABLE} == {4}


def test_a_worker_accepts_topics_that_keep_more(service):
    names = service.names
    service.configure(names.commands, retention_ms=str(14 * DAY_MS), max_message_bytes=str(10 * MIB))
    service.configure(names.rejections, retention_ms="-1")
    service.configure(names.dead_letters, retention_ms=str(90 * DAY_MS))
    service.configure(names.table, delete_retention_ms=str(7 * DAY_MS), max_compaction_lag_ms="60000")
    service.configure(names.waiting, max_compaction_lag_ms=str(7 * DAY_MS), segment_ms="60000")
    asyncio.run(with_admin(service, check_topics))
    assert CommandLine(service.environment).json("topics", "create")[-1]["state"] == "exists"
    service.start_worker().wait_ready()


def test_less_is_refused_and_the_printed_lines_mend_it(service, tmp_path):
    names = service.names
    service.configure(names.commands, retention_ms="1000", max_message_bytes="1000", cleanup_policy="compact,delete")
    service.configure(names.events, retention_ms=str(30 * DAY_MS), retention_bytes=str(1024 * MIB))
    service.configure(names.rejections, unclean_leader_election_enable="true", min_insync_replicas="2")
    service.configure(names.dead_letters, message_timestamp_type="CreateTime")
    service.configure(names.table, delete_retention_ms=str(DAY_MS), max_compaction_lag_ms=str(7 * DAY_MS + 1))
    service.configure(names.waiting, cleanup_policy="delete", retention_bytes="1000")
    service.configure(names.operations, retention_ms="1000")
    expected = [
        f"the topic {names.commands} has cleanup.policy=compact,delete, expected delete",
        f"the topic {names.commands} has max.message.bytes=1000, expected at least {6 * MIB}",
        f"the topic {names.commands} has retention.ms=1000, expected at least {7 * DAY_MS}",
        f"the topic {names.dead_letters} has message.timestamp.type=CreateTime, expected LogAppendTime",
        f"the topic {names.events} has retention.bytes={1024 * MIB}, expected -1",
        f"the topic {names.events} has retention.ms={30 * DAY_MS}, expected -1",
        f"the topic {names.operations} has retention.ms=1000, expected -1",
        f"the topic {names.rejections} has min.insync.replicas=2, expected 1 of 1 replicas",
        f"the topic {names.rejections} has unclean.leader.election.enable=true, expected false",
        f"the topic {names.table} has delete.retention.ms={DAY_MS}, expected at least {25 * HOUR_MS}",
        f"the topic {names.table} has max.compaction.lag.ms={7 * DAY_MS + 1}, expected at most {7 * DAY_MS}",
        f"the topic {names.waiting} has cleanup.policy=delete, expected compact",
        f"the topic {names.waiting} has retention.bytes=1000, expected -1",
    ]
    assert faults(service) == expected
    cli = CommandLine(service.environment)
    told = cli("topics", "check", code=13)
    assert told.stderr.splitlines() == [f"order-service: {fault}" for fault in expected]
    lines = told.stdout.splitlines()
    assert len(lines) == 7, "one line for each topic"
    assert cli.json("topics", "check", code=13) == [{"ok": False, "faults": expected, "fix": lines, "risks": []}]
    run_lines(lines, tmp_path)

    def actual():
        return {field: {key: found[key].value for key in TABLE[field]} for field, found in configs(service).items()}

    until(lambda: actual() == TABLE, "the topics are as the table says")
    asyncio.run(with_admin(service, check_topics))


def test_a_worker_refuses_topics_that_are_less_than_they_must_be(service):
    names = service.names
    service.configure(names.events, cleanup_policy="compact")
    service.kafka.create_partitions([NewPartitions(names.rejections, 5)])[names.rejections].result(30)
    until(lambda: len(service.kafka.list_topics(timeout=30).topics[names.rejections].partitions) == 5, "5 partitions")
    delete(service, names.waiting)
    expected = [
        f"the topic {names.events} has cleanup.policy=compact, expected delete",
        f"the topic {names.rejections} has 5 partitions, ORDERS_PARTITIONS says 4",
        f"the topic {names.waiting} is missing: run `order-service topics create`",
    ]
    assert faults(service) == expected
    worker = service.start_worker()
    assert worker.wait_ended() == 13
    [line] = worker.lines("This worker ends.")
    assert (line["exit_code"], line["reason"]) == (13, "; ".join([*expected, FIX_HINT]))
    assert "Traceback" not in worker.log()
    assert len(worker.log().splitlines()) == 1


def test_create_makes_what_is_missing_reports_the_rest_and_changes_nothing(service):
    names = service.names
    service.configure(names.commands, retention_ms="1000")
    service.kafka.create_partitions([NewPartitions(names.events, 5)])[names.events].result(30)
    delete(service, names.waiting, names.table)
    cli = CommandLine(service.environment)
    told = cli("topics", "create", code=13)
    made = {line for line in told.stdout.splitlines() if line.startswith("created")}
    assert made == {f"created  {names.table}", f"created  {names.waiting}"}
    expected = [
        f"the topic {names.commands} has retention.ms=1000, expected at least {7 * DAY_MS}",
        f"the topic {names.events} has 5 partitions, ORDERS_PARTITIONS says 4",
    ]
    assert told.stderr.splitlines() == [f"order-service: {fault}" for fault in expected]
    assert next(line for line in told.stdout.splitlines() if line.startswith("#")).startswith(f"# {names.events}: ")
    assert faults(service) == expected
    assert cli.json("topics", "create", code=13)[-1]["faults"] == expected


def test_topics_that_the_printed_lines_create_are_as_expected(service, tmp_path):
    prefix = f"{service.environment['ORDERS_TOPIC_PREFIX']}printed."
    cli = CommandLine(service.environment | {"ORDERS_TOPIC_PREFIX": prefix})
    lines = cli("topics", "print", "--format", "kafka-configs", "--replicas", "1").stdout.splitlines()
    try:
        run_lines(lines, tmp_path)
        settings = service.settings().model_copy(update={"topic_prefix": prefix})
        until(lambda: not said_of(settings), "the broker has the topics and their settings from its controller")
        assert cli.json("topics", "check") == [{"ok": True, "faults": [], "fix": [], "risks": []}]
        assert {line["state"] for line in cli.json("topics", "create")} == {"exists"}
        run_lines(lines[:6], tmp_path)  # the heading, and the lines of a topic that exists
    finally:
        delete(service, *vars_of(topic_names(prefix)).values())


def test_a_setting_that_becomes_less_shows_while_the_worker_runs(service):
    worker = service.start_worker(TEST_TOPICS_EVERY_S="0.2").wait_ready()
    topic = service.names.events
    service.configure(topic, retention_bytes=str(1024 * MIB))
    fault = f"the topic {topic} has retention.bytes={1024 * MIB}, expected -1"
    until(lambda: fault in worker.faults(), "readiness names the setting")
    until(lambda: "orders_topic_faults 1.0" in worker.admin("/metrics")[1], "the metric counts it")
    lines = until(lambda: worker.lines("A topic is below its required configuration."), "the log has it")
    assert [line["fault"] for line in lines] == [fault]
    service.send([create])
    service.wait_outcomes(1)
    service.configure(topic, retention_bytes="-1")
    worker.wait_ready()
    until(lambda: "orders_topic_faults 0.0" in worker.admin("/metrics")[1], "the metric counts none")
    until(lambda: worker.lines("All topics meet their required configuration again."), "the log has it")
    assert worker.process.poll() is None


async def test_what_was_found_stands_while_kafka_is_away():
    watch = TopicWatch(Settings(kafka_bootstrap_servers=f"127.0.0.1:{free_port()}"), {})
    last = [NotReady.TOPIC_WEAKENED.fault(fault="the topic a is missing")]
    watch.faults = last
    await watch.compare()
    assert watch.faults == last


@pytest.mark.parametrize(("brokers", "replicas", "in_sync"), [(1, 1, 1), (2, 2, 1), (3, 3, 2), (7, 3, 2)], ids=str)
def test_as_many_replicas_as_the_cluster_can_have(brokers, replicas, in_sync):
    assert (replicas_for(brokers), in_sync_for(replicas)) == (replicas, in_sync)


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory):
    """Run a broker that looks every fifth of a second for what is too old to be kept."""
    soon = {"log.retention.check.interval.ms": "200", "log.initial.task.delay.ms": "200"}
    with running_broker(tmp_path_factory.mktemp("forgetful"), soon) as broker:
        yield broker.bootstrap_servers


def test_what_a_producer_says_of_the_time_neither_deletes_nor_refuses_its_commands(forgetful, tmp_path, users):
    """Eight days old, two days ahead, and 1970; the twin is a topic that believes its producers."""
    now_ms = round(time.time() * 1000)
    times = (now_ms - 8 * DAY_MS, now_ms + 2 * DAY_MS, 1)
    with Service(forgetful, tmp_path, users) as service:
        commands: list[Command] = [but(create, order_id=f"order-{at}", command_id=f"create-{at}") for at in times]
        for command, at in zip(commands, times, strict=True):
            service.send([command], timestamp=at)
        twin = NewTopic(f"{service.names.commands}.twin", 1, 1, config={"message.timestamp.type": "CreateTime"})
        service.kafka.create_topics([twin])[twin.topic].result(30)
        refused = []
        for at in times:
            service.producer.produce(twin.topic, b"a", timestamp=at, on_delivery=lambda error, _: refused.append(error))
        assert service.producer.flush(30) == 0
        assert [error.name() for error in refused if error] == ["INVALID_TIMESTAMP"] * len([e for e in refused if e])
        assert any(refused), "a topic that believes its producers refuses the future"
        service.producer.produce(twin.topic, b"a", timestamp=times[0])
        assert service.producer.flush(30) == 0
        until(lambda: start_of(service, twin.topic, 0) > 0, "a topic that believes its producers has deleted the old")
        assert sum(start_of(service, service.names.commands, partition) for partition in range(4)) == 0
        service.start_worker().wait_ready()
        service.wait_outcomes(len(commands))
        service.check(commands)
        for topic in vars_of(service.names).values():
            for message in service.read(topic):
                assert message.timestamp()[0] == 2, "LogAppendTime"
                assert message.timestamp()[1] >= now_ms - 60_000


def start_of(service, topic, partition):
    place = TopicPartition(topic, partition)
    return service.kafka.list_offsets({place: OffsetSpec.earliest()})[place].result(30).offset
