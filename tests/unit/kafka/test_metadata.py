"""What one node of a cluster says, or does not, on its own."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import NodeNotReadyError, TopicAuthorizationFailedError

from order_service.kafka import connection
from order_service.kafka.connection import partition_counts

TOPICS = {"topics": [{"error_code": 0, "topic": "orders", "partitions": [{}, {}]}]}


class Nodes:
    """Some nodes that fail, and then one that answers."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.asked = 0

    def get_random_node(self):
        return self.asked

    async def send(self, _node, _request):
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        return SimpleNamespace(to_object=lambda: TOPICS)


def client_of(nodes: Nodes) -> Any:
    return SimpleNamespace(_client=nodes)


async def test_a_node_that_is_away_is_not_the_cluster():
    nodes = Nodes(NodeNotReadyError(), NodeNotReadyError())
    assert await partition_counts(client_of(nodes), ["orders"]) == {"orders": 2}


@pytest.mark.parametrize(
    ("failure", "within_s"),
    [
        pytest.param(NodeNotReadyError(), 0.0, id="no node answers in time"),
        pytest.param(TopicAuthorizationFailedError("orders"), 60.0, id="an answer that no other node would change"),
    ],
)
async def test_what_no_other_node_would_change_is_raised(monkeypatch, failure, within_s):
    monkeypatch.setattr(connection, "NODES_WITHIN_S", within_s)
    nodes = Nodes(*[failure] * 1000)
    with pytest.raises(type(failure)):
        await partition_counts(client_of(nodes), ["orders"])
    assert nodes.asked <= 2


async def test_a_connection_that_opens_while_its_client_closes_is_closed(monkeypatch):
    opened, opening, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def close():
        closed.set()

    async def open_connection(*_):
        opening.set()
        await opened.wait()
        return SimpleNamespace(close=close)

    monkeypatch.setattr(AIOKafkaClient, "_get_conn", open_connection)
    producer = connection.Producer(bootstrap_servers="127.0.0.1:1")
    connecting = asyncio.create_task(producer.client._get_conn(1))
    await opening.wait()
    await producer.client.close()
    opened.set()
    assert await connecting is None
    assert closed.is_set()
    await producer.stop()
