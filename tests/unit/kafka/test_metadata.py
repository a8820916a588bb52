"""What one node of a cluster says, or does not, on its own."""

from types import SimpleNamespace
from typing import Any

import pytest
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
