"""How the producer of operators' tools ends after Kafka has refused its transaction."""

import asyncio

import pytest

from order_service.errors import Fenced, OperationRefused, Stuck, TurnRefused
from order_service.operations import operator_producer as module
from order_service.settings import Settings


class RefusedProducer:
    """A producer that starts, and whose transaction is refused."""

    def __init__(self, *_arguments, **_named):
        pass

    async def start(self):
        pass

    async def abandon(self):
        pass


async def refusal(monkeypatch, fence):
    monkeypatch.setattr(module, "TurnProducer", RefusedProducer)
    monkeypatch.setattr(module, "START_WITHIN_S", 0.5)
    monkeypatch.setattr(module, "fence", fence)
    with pytest.raises(OperationRefused) as caught:
        async with module.operator_producer(Settings()):
            raise TurnRefused("refused", {0: "Kafka refuses a record"})
    return str(caught.value)


async def test_a_refused_transaction_is_aborted_at_once(monkeypatch):
    async def fence(*_arguments):
        pass

    assert await refusal(monkeypatch, fence) == (
        "Kafka refused a transaction, which was aborted and has changed nothing: Kafka refuses a record"
    )


@pytest.mark.parametrize("error", [Fenced("fenced"), Stuck("stuck"), TimeoutError(), None])
async def test_if_it_cannot_be_aborted_kafka_does_it(monkeypatch, error):
    async def fence(*_arguments):
        if error is None:
            await asyncio.Event().wait()
        raise error

    assert await refusal(monkeypatch, fence) == (
        "Kafka refused a transaction, which is aborted by Kafka within 15 s and changes nothing: Kafka refuses a record"
    )
