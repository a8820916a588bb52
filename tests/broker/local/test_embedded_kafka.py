"""The embedded Kafka: it starts, ends with its parent, and keeps its records."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import UnknownTopicOrPartitionError

import order_service
from order_service.errors import EmbeddedError
from order_service.local.broker import Broker, free_port, is_taken
from order_service.local.kafka import (
    Embedded,
    choose_kafka,
    embedded_broker,
)
from order_service.runtime.supervisor import Supervisor
from order_service.runtime.watcher import kill_group
from order_service.settings import Settings
from tests.support.kafka import running_broker, running_kafka
from tests.support.quick_kafka import java_options

ROOT = Path(order_service.__file__).parent.parent
DEADLINE_S = 60.0
PARENT = """
import signal, sys
from pathlib import Path
from order_service.local.kafka import choose_kafka, embedded_broker
from order_service.settings import Settings
with embedded_broker(choose_kafka(Settings(kafka="embedded")), Path(sys.argv[1]), int(sys.argv[2])):
    print("ready", flush=True)
    signal.pause()
"""


def is_alive(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(state.stdout.strip()) and not state.stdout.strip().startswith("Z")


@pytest.fixture(autouse=True)
def quick_start(monkeypatch):
    monkeypatch.setenv("JDK_JAVA_OPTIONS", java_options())


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with running_broker(tmp_path_factory.mktemp("kafka ä, x")) as broker:
        yield broker


async def create_topic(servers, topic):
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()


async def produce(servers, topic, value, transactional_id=None):
    async with AIOKafkaProducer(bootstrap_servers=servers, transactional_id=transactional_id) as producer:
        if transactional_id is None:
            await producer.send_and_wait(topic, value)
            return
        async with producer.transaction():
            await producer.send_and_wait(topic, value)


async def read(servers, topic, count, **more):
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=servers, auto_offset_reset="earliest", isolation_level="read_committed", **more
    )
    async with consumer, asyncio.timeout(DEADLINE_S):
        return [(await consumer.getone()).value for _ in range(count)]


@pytest.mark.parametrize("end", [Broker.stop, Broker.kill], ids=["stop", "kill"])
async def test_records_survive_the_end_of_a_broker(broker, end):
    topic = f"survives-{end.__name__}"
    await create_topic(broker.bootstrap_servers, topic)
    await produce(broker.bootstrap_servers, topic, b"before")
    end(broker)
    assert not broker.answers()
    assert not is_taken(broker.port)
    broker.start()
    await produce(broker.bootstrap_servers, topic, b"after", transactional_id="survivor")
    assert await read(broker.bootstrap_servers, topic, 2) == [b"before", b"after"]


async def test_a_group_may_have_a_session_of_two_seconds(broker):
    await create_topic(broker.bootstrap_servers, "sessions")
    await produce(broker.bootstrap_servers, "sessions", b"x")
    quick = {"group_id": "quick", "session_timeout_ms": 2000, "heartbeat_interval_ms": 500}
    assert await read(broker.bootstrap_servers, "sessions", 1, **quick) == [b"x"]


async def test_a_topic_is_not_created_by_a_typing_error(broker):
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers, request_timeout_ms=1000) as producer:
        with pytest.raises(UnknownTopicOrPartitionError):
            await producer.partitions_for("no-such-topic")


def test_a_broker_is_not_started_twice(broker):
    with pytest.raises(EmbeddedError, match="is already running"):
        broker.start()


def test_data_in_use_is_one_line(broker):
    settings = (broker.directory / "server.properties").read_text()
    with pytest.raises(EmbeddedError, match=r"^another run uses .* ORDERS_DATA_DIR"):
        embedded_broker(Embedded("java", "mvn"), broker.directory)
    second = Broker(["false"], broker.directory, free_port())
    with pytest.raises(EmbeddedError, match=r"^another run uses .* ORDERS_DATA_DIR"):
        second.start()
    assert (broker.directory / "server.properties").read_text() == settings
    assert broker.answers()


def test_the_tests_use_a_named_kafka(tmp_path):
    with running_kafka(tmp_path, Settings(kafka="", kafka_bootstrap_servers="k:1")) as servers:
        assert servers == "k:1"


@contextmanager
def parent_of_a_broker(directory, port) -> Iterator[subprocess.Popen[Any]]:
    """A process of its own session that runs a broker; what a test leaves of it ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(directory), str(port)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            kill_group(process.pid)


def descendants(pid):
    """The processes that a process has started, and those that they have."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listing.splitlines())}
    children = [child for child, parent in parents.items() if parent == pid]
    return children + [one for child in children for one in descendants(child)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_no_broker_outlives_its_parent(tmp_path, number):
    port = free_port()
    with parent_of_a_broker(tmp_path, port) as process:
        watcher, java = descendants(process.pid)
        os.kill(process.pid, number)
        process.wait(DEADLINE_S)
        deadline = time.monotonic() + DEADLINE_S
        while is_alive(watcher) or is_alive(java) or is_taken(port):  # the last thread of a killed process closes files
            assert time.monotonic() < deadline
    assert "shut down completed" in (tmp_path / "kafka.log").read_text()


async def test_a_supervised_broker_comes_back_after_a_crash_and_stops_in_order(tmp_path):
    choice = choose_kafka(Settings(kafka="embedded"))
    assert isinstance(choice, Embedded)
    broker = embedded_broker(choice, tmp_path)
    others = descendants(os.getpid())
    ready = asyncio.Event()
    lines: list[str] = []
    supervisor = Supervisor([broker.child()], out=lines.append, err=lines.append)
    async with asyncio.timeout(DEADLINE_S):
        running = asyncio.create_task(supervisor.run(ready.set))
        await ready.wait()
        [java] = [pid for pid in descendants(os.getpid()) if pid not in others and is_java(pid)]
        os.kill(java, signal.SIGKILL)
        while is_alive(java) or not await asyncio.to_thread(broker.answers):  # noqa: ASYNC110 - Kafka sends no event
            await asyncio.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
        assert await running == 0
    assert [line for line in lines if "ended with exit code 137, restarting it in 1 s" in line] == lines
    assert not is_taken(broker.port)
    assert (tmp_path / "kafka.log").read_text().count("shut down completed") == 1


def is_java(pid):
    command = subprocess.run(["ps", "-o", "comm=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return command.stdout.strip().endswith("java")
