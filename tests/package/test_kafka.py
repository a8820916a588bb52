"""What one node of a cluster says, or does not, on its own."""

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import NodeNotReadyError, TopicAuthorizationFailedError

from order_service import kafka
from order_service.kafka import NODE_TRIES, partition_counts

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


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr(kafka, "NODE_PAUSE_S", 0.0)


def client_of(nodes: Nodes) -> Any:
    return SimpleNamespace(_client=nodes)


async def test_a_node_that_is_away_is_not_the_cluster():
    nodes = Nodes(*[NodeNotReadyError()] * (NODE_TRIES - 1))
    assert await partition_counts(client_of(nodes), ["orders"]) == {"orders": 2}


@pytest.mark.parametrize(
    ("failures", "asked"),
    [
        pytest.param([NodeNotReadyError()] * (NODE_TRIES + 5), NODE_TRIES, id="no node answers"),
        pytest.param([TopicAuthorizationFailedError("orders")], 1, id="an answer that no other node would change"),
    ],
)
async def test_what_every_node_says_is_raised(failures, asked):
    nodes = Nodes(*failures)
    with pytest.raises(type(failures[0])):
        await partition_counts(client_of(nodes), ["orders"])
    assert nodes.asked == asked
