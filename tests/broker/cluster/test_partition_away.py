"""One partition has no leader: what depends on it waits, and the other lanes of the same worker go on."""

import asyncio
import json

import pytest
from confluent_kafka import Producer
from sqlalchemy import make_url

from chaos.faults.broker_data import place_on
from order_service.errors import LeaderAwayError
from order_service.sdk import Accepted, OrderCommands
from order_service.views.queries import Views
from order_service.views.tables import open_database
from tests.support.samples import but, create
from tests.support.service import until

AWAY = 0


def take_away(cluster, service, topic):
    """Leave a partition of a topic to one node, which may acknowledge records alone; kill that node and return it."""
    node = next(node for node in cluster.nodes if node != cluster.coordinator_of_group(service.group_id))
    service.configure(topic, min_insync_replicas=1)
    place_on(service.bootstrap_servers, topic, AWAY, [node])
    cluster.kill(node)
    return node


def test_a_lane_whose_output_has_no_leader_waits_and_the_others_go_on(cluster, service):
    worker = service.start_worker(ORDERS_SESSION_TIMEOUT_S="15").wait_lanes(4)
    node = take_away(cluster, service, service.names.events)
    reason = f"partition {AWAY} waits for Kafka: {service.names.events}-{AWAY} has no leader"
    until(lambda: reason in worker.faults(), "the lane waits")
    commands = [but(create, order_id=f"order-{number}", command_id=f"create-{number}") for number in range(40)]
    others = [command for command in commands if service.partition_of(command.order_id) != AWAY]
    service.send(others)
    until(lambda: len(service.read(service.names.events, partitions=[1, 2, 3])) == len(others), "the others go on")
    until(lambda: worker.lanes("unavailable") == 1, "the metric counts it")
    waiting = [command for command in commands if command not in others]
    service.send(waiting)
    assert worker.process.poll() is None
    cluster.start(node)
    service.wait_outcomes(len(commands))
    service.check(commands)
    assert worker.process.poll() is None


def test_a_lane_waits_for_as_many_in_sync_replicas_as_its_topic_asks_for(cluster, service):
    worker = service.start_worker(ORDERS_SESSION_TIMEOUT_S="15", TEST_TOPICS_EVERY_S="0.2").wait_lanes(4)
    service.configure(service.names.events, min_insync_replicas=3)
    until(lambda: "needs all of its 3 replicas in sync" in worker.log(), "the worker knows the setting")
    node = next(node for node in cluster.nodes if node != cluster.coordinator_of_group(service.group_id))
    cluster.kill(node)
    waits = f"{service.names.events}-{AWAY} has 2 of 3 in-sync replicas"
    until(lambda: waits in worker.faults() and worker.lanes("unavailable") == 4, "all lanes wait")
    commands = [but(create, order_id=f"order-{number}", command_id=f"create-{number}") for number in range(8)]
    service.send(commands)
    cluster.start(node)
    service.configure(service.names.events, min_insync_replicas=2)
    service.wait_outcomes(len(commands))
    service.check(commands)
    assert worker.process.poll() is None


def test_the_ends_of_the_other_commands_are_known_while_one_partition_has_no_leader(cluster, service):
    worker = service.start_worker(ORDERS_SESSION_TIMEOUT_S="15").wait_lanes(4)
    node = take_away(cluster, service, service.names.commands)
    away = f"Kafka has not reported the end of {service.names.commands} partition {AWAY} for "
    until(lambda: away in worker.faults(), "the end of one partition is old")
    foreign = Producer(
        {"log_level": 0, "bootstrap.servers": service.bootstrap_servers, "transactional.id": f"{service.app_id}-erp"}
    )
    foreign.init_transactions(30)
    foreign.begin_transaction()
    foreign.produce(service.names.commands, b"{}", b"order-1", partition=AWAY + 1)
    assert foreign.flush(30) == 0
    held_back = f"partition {AWAY + 1}: a transaction of another program is open on {service.names.commands} "
    until(lambda: held_back in worker.faults(), "what holds another partition back is seen")
    assert len(json.loads(worker.faults())["faults"]) == 2
    foreign.abort_transaction(30)
    cluster.start(node)
    worker.wait_ready()


async def test_views_and_commands_of_the_other_partitions_go_on_while_one_has_no_leader(cluster, service, tmp_path):
    worker = service.start_worker(ORDERS_SESSION_TIMEOUT_S="15").wait_lanes(4)
    node = await asyncio.to_thread(take_away, cluster, service, service.names.events)
    until(lambda: f"{service.names.events}-{AWAY} has no leader" in worker.faults(), "the partition has no leader")
    url = f"sqlite:///{tmp_path}/views.db"
    projector = service.start_worker(module=("order_service.cli", "projector"), ORDERS_DATABASE_URL=url)
    away = f"partition {AWAY} of {service.names.events} has no leader"
    until(lambda: away in projector.faults(), "the projector names it")
    commands = [but(create, order_id=f"order-{number}", command_id=f"create-{number}") for number in range(20)]
    others = [command for command in commands if service.partition_of(command.order_id) != AWAY]
    waiting = [command for command in commands if command not in others]
    async with OrderCommands(actor="service:shop", settings=service.settings()) as orders:
        assert isinstance(await orders.send(others[0], wait_s=30), Accepted)
        with pytest.raises(LeaderAwayError, match=away):
            await orders.send(waiting[0])
        service.send(others[1:])
        views = Views(open_database(make_url(url)), service.names)
        await asyncio.to_thread(
            until, lambda: len(views.orders([one.order_id for one in others])) == len(others), "the other views go on"
        )
        assert away in projector.faults()
        await asyncio.to_thread(cluster.start, node)
        await asyncio.to_thread(projector.wait_ready)
        assert isinstance(await orders.send(waiting[0], wait_s=30), Accepted)
    until(lambda: views.orders([waiting[0].order_id]), "the partition is read again")
    assert projector.process.poll() is None
