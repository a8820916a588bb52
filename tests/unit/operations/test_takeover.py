"""The line that an operator reads when Kafka refuses or does not answer."""

from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, TopicAuthorizationFailedError, TransactionalIdAuthorizationFailed

from order_service.errors import Fenced, KafkaAwayError, OperationRefused, Stuck, TurnRefused
from order_service.operations.takeover import KEPT, UNCHANGED, Takeover, explained
from tests.unit.operations.topics_in_memory import TABLE, MemoryLock, MemoryReader, Topics


def caused(error, cause):
    """Return an error with its cause, as our producers raise it."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        pytest.param(
            Fenced("fenced"), OperationRefused, "another operator has taken over partition 3", id="another was faster"
        ),
        pytest.param(
            caused(Stuck("a transaction of orders-claim-3 failed"), TransactionalIdAuthorizationFailed()),
            OperationRefused,
            "orders-claim-3 failed): grant this principal Write and Describe on that transactional id",
            id="no right to the lock",
        ),
        pytest.param(
            caused(TurnRefused("orders.table.v1-3", {3: "why"}), TopicAuthorizationFailedError("orders.table.v1")),
            OperationRefused,
            "orders.table.v1-3): grant this principal Write on that topic",
            id="no right to write",
        ),
        pytest.param(
            caused(KafkaAwayError("a request failed"), TopicAuthorizationFailedError("orders.table.v1")),
            OperationRefused,
            "grant this principal Read on that topic",
            id="no right to read",
        ),
        pytest.param(
            TurnRefused("too large", {3: "why"}), OperationRefused, "too large; nothing was changed", id="size"
        ),
        pytest.param(Stuck("no answer within 10 s"), KafkaAwayError, "no answer within 10 s", id="no answer"),
        pytest.param(KafkaConnectionError(), KafkaAwayError, "KafkaConnectionError", id="no connection"),
        pytest.param(KafkaAwayError("no Kafka answers"), KafkaAwayError, "no Kafka answers", id="Kafka is away"),
    ],
)
def test_an_error_of_kafka_is_one_line_that_says_what_to_do(error, kind, line):
    with pytest.raises(kind) as raised, explained(3):
        raise error
    assert line in str(raised.value)
    assert type(raised.value) is kind


class LateLock(MemoryLock):
    """A producer that commits, gets no answer, and is then fenced."""

    async def commit(self, sent):
        await super().commit(sent)
        raise Fenced("fenced")


class RefusedLock(MemoryLock):
    """A producer whose records Kafka refuses."""

    async def wait_for_acks(self, _sent):
        raise TurnRefused("too large", {3: "why"})


def taken_over(lock):
    """Return a takeover with this kind of lock."""
    topics: Any = Topics()
    reader: Any = MemoryReader(topics)
    return Takeover(reader, 3, lock(topics), "orders", {})


@pytest.mark.parametrize(("lock", "outcome"), [(LateLock, KEPT), (RefusedLock, UNCHANGED)])
async def test_a_commit_without_an_answer_may_have_written(lock, outcome):
    takeover = taken_over(lock)
    with pytest.raises(OperationRefused, match=outcome), explained(3, lambda: takeover.has_written):
        await takeover.commit([(TABLE, [(b"o-1", b"", [])])])


@pytest.mark.parametrize(
    "error",
    [
        Fenced("fenced"),
        caused(Stuck("a transaction failed"), TransactionalIdAuthorizationFailed()),
        TurnRefused("too large", {3: "why"}),
    ],
)
async def test_a_refusal_says_whether_something_was_written(error):
    takeover = taken_over(MemoryLock)
    with pytest.raises(OperationRefused, match=UNCHANGED), explained(3, lambda: takeover.has_written):
        raise error
    await takeover.commit([])
    with pytest.raises(OperationRefused, match=KEPT), explained(3, lambda: takeover.has_written):
        raise error
