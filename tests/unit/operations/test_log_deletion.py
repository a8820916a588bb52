"""The policy of a changelog is set back before a deletion ends: brokers show a setting some time after it was made."""

from types import SimpleNamespace

import pytest
from aiokafka.errors import PolicyViolationError
from aiokafka.structs import TopicPartition

from order_service.errors import KafkaAwayError
from order_service.kafka.topics import topic_names
from order_service.operations.rebuild import log_deletion
from order_service.operations.rebuild.log_deletion import delete_before, restore_policy
from order_service.settings import Settings

NAMES = topic_names()
DURING, AFTER = "compact,delete", "compact"


class SlowBroker:
    """A broker that shows the policy of a deletion in so many more answers after it was set back."""

    def __init__(self, answers, policy=AFTER):
        self.answers = answers
        self.policy = policy
        self.shown = policy
        self.others = 0
        """How often another rebuild sets the policy back before the records are deleted."""

    async def alter(self, _admin, topic, values):
        assert topic == NAMES.table
        self.policy = values["cleanup.policy"]
        if self.policy == DURING:
            self.shown = DURING

    async def delete_records(self, records):
        if self.others > 0:
            self.others -= 1
            self.policy = self.shown = AFTER
        if self.shown != DURING:
            raise PolicyViolationError
        assert [each.before_offset for each in records.values()] == [7]

    async def describe_configs(self, resources):
        if self.policy == AFTER:
            self.answers -= 1
            if self.answers < 0:
                self.shown = AFTER
        entries = [("cleanup.policy", self.shown), ("retention.ms", "-1" if self.shown == DURING else "604800000")]
        return [SimpleNamespace(resources=[(0, "", 2, each.name, entries) for each in resources])]


@pytest.fixture
def ask(monkeypatch):
    """Make the module talk to a given broker."""

    def of(broker):
        async def ask_admin(_settings, request):
            return await request(broker)

        monkeypatch.setattr(log_deletion, "ask_admin", ask_admin)
        monkeypatch.setattr(log_deletion, "alter_topic", broker.alter)
        monkeypatch.setattr(log_deletion, "LOOK_EVERY_S", 0.0)
        return broker

    return of


async def test_a_deletion_ends_when_the_broker_shows_the_policy_again(ask):
    broker = ask(SlowBroker(answers=3))
    await delete_before(Settings(), TopicPartition(NAMES.table, 1), 7)
    assert broker.shown == AFTER


async def test_a_policy_that_another_rebuild_sets_back_is_set_again(ask):
    broker = ask(SlowBroker(answers=3))
    broker.others = 2
    await delete_before(Settings(), TopicPartition(NAMES.table, 1), 7)
    assert (broker.others, broker.shown) == (0, AFTER)


async def test_a_restored_policy_is_shown_when_its_name_is_returned(ask, monkeypatch):
    broker = ask(SlowBroker(answers=3, policy=DURING))
    describe = broker.describe_configs
    monkeypatch.setattr(broker, "describe_configs", lambda resources: describe(resources[:1]))
    assert await restore_policy(Settings(), NAMES) == [NAMES.table]
    assert broker.shown == AFTER


async def test_a_policy_that_is_never_shown_is_an_error(ask, monkeypatch):
    ask(SlowBroker(answers=10**9))
    monkeypatch.setattr(log_deletion, "APPLIED_WITHIN_S", 0.0)
    with pytest.raises(KafkaAwayError, match=r"does not get cleanup\.policy=compact back"):
        await delete_before(Settings(), TopicPartition(NAMES.table, 1), 7)
