"""Whatever asks about topics creates none, on a broker that creates what it is asked about (Kafka's default)."""

import asyncio
import subprocess
import sys

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined] # it is documented there

from order_service.errors import KafkaAwayError, TopicsError
from order_service.kafka.command_producer import CommandsTopic
from order_service.kafka.connection import Admin, Consumer, Producer, connection
from order_service.local.broker import free_port
from order_service.sdk import OrderCommands, OrderEvents
from order_service.settings import Settings
from tests.support.command_line import CommandLine
from tests.support.kafka import running_broker
from tests.support.samples import create
from tests.support.service import PATIENCE_S, Service, until, vars_of

NEW = ["create", "order-1", "--user", "dana", "--currency", "EUR", "--line", "mug-blue:2:1250"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with running_broker(tmp_path_factory.mktemp("creating"), {"auto.create.topics.enable": "true"}) as broker:
        yield broker.bootstrap_servers


@pytest.fixture
def service(servers, tmp_path, users):
    """Return a service without topics; at its end they may still be missing."""
    made = Service(servers, tmp_path, users)
    made.environment |= {"ORDERS_DATA_DIR": str(tmp_path)}
    yield made
    for worker in made.workers:
        worker.end()


def topics_of(service):
    """Return the service's topics that exist, without asking for any by name."""
    return set(vars_of(service.names).values()) & service.kafka.list_topics(timeout=30).topics.keys()


async def ask(client, topic):
    """Make a client of aiokafka learn all it can about a topic, as it does before it reads or writes there."""
    client.add_topic(topic)
    await client.force_metadata_update()


def make_topic(servers, topic):
    admin = AdminClient({"log_level": 0, "bootstrap.servers": servers})
    admin.create_topics([NewTopic(topic, 1)])[topic].result(PATIENCE_S)


async def test_a_plain_client_of_aiokafka_creates_what_it_asks_about(servers):
    consumer = AIOKafkaConsumer(bootstrap_servers=servers)
    await consumer.start()
    try:
        await ask(consumer._client, "made-by-asking")
    finally:
        await consumer.stop()
    admin = AdminClient({"log_level": 0, "bootstrap.servers": servers})
    until(lambda: "made-by-asking" in admin.list_topics(timeout=30).topics, "the broker creates by itself")


@pytest.mark.parametrize("make", [Admin, Consumer, Producer])
async def test_our_clients_create_nothing_by_asking(servers, make):
    client = make(**connection(Settings(kafka_bootstrap_servers=servers)))
    await client.start()
    try:
        kafka = client.client if isinstance(client, Producer) else client._client
        for _ in range(2):  # on a new connection, and on one that is there
            await ask(kafka, "not-there")
            assert kafka.cluster.partitions_for_topic("not-there") is None
        admin = AdminClient({"log_level": 0, "bootstrap.servers": servers})
        assert "not-there" not in admin.list_topics(timeout=30).topics
    finally:
        await (client.close() if isinstance(client, Admin) else client.stop())


class Assignments(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka has no types
    """The partitions that a consumer was assigned, one set after the other."""

    def __init__(self):
        self.queue: asyncio.Queue[set[TopicPartition]] = asyncio.Queue()

    def on_partitions_revoked(self, revoked):
        """Nothing is to be done."""

    def on_partitions_assigned(self, assigned):
        self.queue.put_nowait(set(assigned))


async def test_a_group_gets_the_partitions_of_a_topic_that_was_unknown_when_it_joined(servers):
    """As after the start of a broker, which at first reports its topics as unknown."""
    settings, topic, assignments = Settings(kafka_bootstrap_servers=servers), "unknown-at-first", Assignments()
    consumer = Consumer(group_id="early", **connection(settings))
    await consumer.start()
    try:
        consumer.subscribe([topic], listener=assignments)
        async with asyncio.timeout(PATIENCE_S):
            assert await assignments.queue.get() == set()
            await asyncio.to_thread(make_topic, servers, topic)
            assert await assignments.queue.get() == {TopicPartition(topic, 0)}
    finally:
        await consumer.stop()


COMMANDS = [
    pytest.param(["timeline", "order-1"], 1, id="timeline"),
    pytest.param(["tail"], 1, id="tail"),
    pytest.param(["projector"], 1, id="projector"),
    pytest.param(NEW, 1, id="create"),
    pytest.param(["topics", "check"], 13, id="topics check"),
    pytest.param(["worker"], 13, id="worker"),
]


@pytest.mark.parametrize(("arguments", "code"), COMMANDS)
def test_a_command_without_topics_fails_and_creates_none(service, arguments, code):
    environment = service.environment | {"ORDERS_ADMIN_PORT": str(free_port())}
    command = [sys.executable, "-m", "order_service.cli", *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=service.directory
    )
    assert done.returncode == code, done.stderr
    assert "order-service topics create" in done.stdout + done.stderr
    assert topics_of(service) == set()


async def test_the_sdk_and_the_http_server_fail_and_create_none(service):
    settings, servers = service.settings(), service.bootstrap_servers
    with pytest.raises(TopicsError, match="a topic is missing"):
        async with OrderCommands(servers, actor="service:shop", settings=settings):
            pass
    with pytest.raises(TopicsError, match="a topic is missing"):
        async with OrderEvents.effects(servers, group="mailer", settings=settings):
            pass
    topic = CommandsTopic(settings)  # as the HTTP server sends
    try:
        with pytest.raises(KafkaAwayError, match="a topic is missing"):
            await topic.send(create, [])
    finally:
        await topic.stop()
    assert topics_of(service) == set()


def test_after_reading_what_was_not_there_all_topics_are_as_they_must_be(service):
    cli = CommandLine(service.environment)
    cli("timeline", "order-1", code=1)
    cli(*NEW, code=1)
    assert {told["state"] for told in cli.json("topics", "create")} == {"created"}
    cli("topics", "check")
    service.start_worker().wait_ready()
    cli(*NEW)


def test_a_worker_does_not_create_again_what_is_deleted(service):
    CommandLine(service.environment)("topics", "create")
    worker = service.start_worker().wait_ready()
    service.kafka.delete_topics([service.names.commands])[service.names.commands].result(30)
    until(lambda: f"the topic {service.names.commands} does not exist" in worker.faults(), "the worker has asked again")
    assert service.names.commands not in topics_of(service)
    assert worker.process.poll() is None
