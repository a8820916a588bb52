"""Kafka is not there yet, goes away, and comes back: a worker waits or ends, and nothing is lost or doubled."""

import asyncio
import signal
from types import SimpleNamespace

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.errors import NodeNotReadyError, TopicAuthorizationFailedError
from confluent_kafka import Producer

from chaos.cluster import Cluster
from chaos.faults.proxy import Api
from order_service.errors import KafkaAwayError
from order_service.kafka.connection import Consumer, ask_admin
from order_service.local.broker import free_port
from order_service.settings import Settings
from tests.support.samples import create
from tests.support.service import GRACE_S, Service, histories, until

STUCK = 12


@pytest.fixture
def service(broker, tmp_path, users):
    """Make a service on the broker of these tests, whose producer neither repeats nor reorders on its own."""
    with Service(broker.bootstrap_servers, tmp_path, users) as made:
        made.producer = Producer(
            {
                "log_level": 0,
                "bootstrap.servers": broker.bootstrap_servers,
                "partitioner": "murmur2_random",
                "enable.idempotence": True,
                "linger.ms": 5,
                "reconnect.backoff.max.ms": 500,
            }
        )
        yield made


async def test_who_waits_for_kafka_in_vain_is_told_where():
    servers = f"127.0.0.1:{free_port()}"
    with pytest.raises(KafkaAwayError, match=f"no Kafka answers at {servers} within 0 s$"):
        await ask_admin(Settings(kafka_bootstrap_servers=servers), AIOKafkaAdminClient.list_topics, patience_s=0.2)


async def test_who_asks_while_kafka_goes_away_asks_again(broker):
    asked: list[AIOKafkaAdminClient] = []

    async def ask(admin):
        asked.append(admin)
        if len(asked) < 3:
            raise (NodeNotReadyError, TimeoutError)[len(asked) - 1]
        return await admin.list_topics()

    settings = Settings(kafka_bootstrap_servers=broker.bootstrap_servers)
    assert isinstance(await ask_admin(settings, ask), list)
    assert len(asked) == 3

    async def ask_in_vain(_admin):
        raise NodeNotReadyError

    with pytest.raises(KafkaAwayError, match=r"no Kafka answers at .* within 0 s: NodeNotReadyError"):
        await ask_admin(settings, ask_in_vain, patience_s=0.1)


async def test_who_asks_for_what_kafka_refuses_is_told_at_once(broker):
    async def ask(_admin):
        raise TopicAuthorizationFailedError

    with pytest.raises(KafkaAwayError, match="refuses the request: TopicAuthorizationFailedError"):
        await ask_admin(Settings(kafka_bootstrap_servers=broker.bootstrap_servers), ask)


@pytest.fixture
def other_service(broker, tmp_path, users):
    directory = tmp_path / "other"
    directory.mkdir()
    with Service(broker.bootstrap_servers, directory, users) as made:
        yield made


def test_workers_that_were_started_first_wait_for_kafka_and_can_be_told_to_end(service, broker):
    broker.stop()
    worker, ended = service.start_worker(), service.start_worker()
    until(lambda: all(each.lines("Kafka does not answer yet; trying again.") for each in (worker, ended)), "both wait")
    ended.send(signal.SIGTERM)
    assert ended.wait_ended(within_s=GRACE_S) == 0
    broker.start()
    worker.wait_ready()
    service.send([create])
    service.wait_outcomes(1)
    service.check([create])
    assert "Traceback" not in worker.log() + ended.log()


def test_a_broker_that_restarts_under_load_costs_nothing(service, broker):
    """Restarted in order: one that is killed between two markers of a transaction can leave it open for ever."""
    commands = histories(200)
    worker = service.start_worker().wait_lanes(4)
    with service.sending(commands, per_s=400) as sender:
        service.wait_outcomes(100)
        with sender.at_rest:
            broker.stop()
        broker.start()
    until(lambda: worker.process.poll() is not None or service.outcome_count() >= len(commands), "it ends or goes on")
    if worker.process.poll() is not None:
        assert worker.wait_ended() == STUCK
        assert [line["exit_code"] for line in worker.lines("This worker ends.")] == [STUCK]
        service.start_worker()
        service.wait_outcomes(len(commands))
    service.check(commands)


def test_workers_are_told_to_end_while_kafka_is_away(service, other_service, broker):
    commands = histories(20)
    busy = service.start_worker(("turn.begun", 1, "SIGSTOP"))
    idle = other_service.start_worker().wait_lanes(4)
    busy.wait_lanes(4)
    service.send(commands)
    busy.wait_stopped()
    broker.kill()
    for worker in (busy, idle):
        worker.send(signal.SIGTERM)
    busy.send(signal.SIGCONT)
    try:
        assert idle.wait_ended(within_s=GRACE_S) == 0
        assert busy.wait_ended(within_s=GRACE_S) == STUCK
    finally:
        broker.start()
    assert [line["exit_code"] for line in busy.lines("This worker ends.")] == [STUCK]
    assert "Traceback" not in idle.log() + busy.log()
    service.start_worker()
    service.wait_outcomes(len(commands))
    service.check(commands)


def test_a_worker_that_loses_kafka_again_and_again_while_it_begins_begins_in_the_end(tmp_path, users):
    commands = histories(5)
    with (
        Cluster(tmp_path / "kafka") as cluster,
        Service(cluster.bootstrap_servers, tmp_path, users, KAFKA_BOOTSTRAP_SERVERS=cluster.proxied_servers) as behind,
    ):
        [proxy] = cluster.proxies.values()
        worker = behind.start_worker()
        for _ in range(6):
            proxy.lose_request(Api.METADATA)
            until(lambda: not proxy.armed, "a connection is cut")
        worker.wait_lanes(4)
        behind.send(commands)
        behind.wait_outcomes(len(commands))
        behind.check(commands)


async def test_a_consumer_stops_where_a_fetch_has_just_failed():
    """aiokafka's own `stop` raises CancelledError then: it would end a subscriber that was not told to end."""
    has_failed, is_closed = asyncio.Event(), asyncio.Event()

    async def fail(*_):
        has_failed.set()
        raise NodeNotReadyError

    async def close():
        is_closed.set()

    consumer = Consumer(bootstrap_servers=f"127.0.0.1:{free_port()}")
    consumer._client.send, consumer._client.close = fail, close
    fetcher = consumer._fetcher = Fetcher(consumer._client, consumer._subscription, retry_backoff_ms=60_000)
    await asyncio.sleep(0)  # its routine begins by cancelling what it has not begun
    fetcher._pending_tasks.add(asyncio.ensure_future(fetcher._proc_fetch_request(None, 1, SimpleNamespace(topics=[]))))
    async with asyncio.timeout(10):
        await has_failed.wait()
        await consumer.stop()
    assert is_closed.is_set()
