"""What topics that others have made must be, in every kind of cluster; a real broker's answers are in tests/broker."""

import pytest

from order_service.kafka.topics import Described, judge_topics, topic_specs
from order_service.settings import Settings

SETTINGS = Settings(partitions=2, topic_prefix="t.", kafka_bootstrap_servers="kafka:9092")
COMMANDS, EVENTS, TABLE = "t.orders.commands.v1", "t.orders.events.v1", "t.orders.table.v1"


def cluster(count, replicas, without=(), **changes):
    """Return the nodes of a cluster with our topics; `changes` go over the settings of one topic, by the key `of`."""
    nodes = list(range(1, count + 1))
    topic = changes.pop("of", EVENTS)
    described = []
    for spec in topic_specs(SETTINGS, replicas):
        config = spec.config | (changes if spec.name == topic else {})
        kept = {key: value for key, value in config.items() if key not in without}
        described.append(Described(spec.name, dict.fromkeys(range(spec.partitions), nodes[:replicas]), kept))
    return described, nodes


def judged(topics, nodes):
    """Return the texts of faults and risks."""
    compared = judge_topics(topics, nodes, SETTINGS)
    return [fault.text for fault in compared.faults], [risk.text for risk in compared.risks]


@pytest.mark.parametrize(
    ("key", "value", "topic"),
    [
        ("retention.ms", "-1", COMMANDS),
        ("retention.ms", "1209600000", COMMANDS),
        ("max.message.bytes", "10485760", COMMANDS),
        ("max.message.bytes", "10485760", EVENTS),
        ("delete.retention.ms", "604800000", TABLE),
        ("max.compaction.lag.ms", "60000", TABLE),
        ("segment.bytes", "1073741824", TABLE),
        ("compression.type", "zstd", EVENTS),
    ],
)
def test_more_than_the_table_is_accepted(key, value, topic):
    assert judged(*cluster(3, 3, of=topic, **{key: value})) == ([], [])


@pytest.mark.parametrize(
    ("key", "value", "topic"),
    [
        ("retention.ms", "86400000", COMMANDS),
        ("retention.ms", "1209600000", EVENTS),
        ("retention.bytes", "1073741824", EVENTS),
        ("max.message.bytes", "1048575", COMMANDS),
        ("delete.retention.ms", "86400000", TABLE),
        ("max.compaction.lag.ms", "9223372036854775807", TABLE),
        ("min.insync.replicas", "1", EVENTS),
        ("message.timestamp.type", "CreateTime", COMMANDS),
        ("unclean.leader.election.enable", "true", TABLE),
        ("cleanup.policy", "compact,delete", TABLE),
    ],
)
def test_less_than_the_table_is_refused_with_the_line_that_sets_it(key, value, topic):
    topics, nodes = cluster(3, 3, of=topic, **{key: value})
    [fault] = judge_topics(topics, nodes, SETTINGS).faults
    assert fault.text.startswith(f"the topic {topic} has {key}={value}, expected ")
    wanted = next(spec.config[key] for spec in topic_specs(SETTINGS, 3) if spec.name == topic)
    assert fault.change == f"{key}={wanted}"


@pytest.mark.parametrize(
    ("brokers", "replicas", "risk"),
    [
        pytest.param(1, 1, None, id="one broker, as on a laptop"),
        pytest.param(2, 1, "the topics have one replica, though there are 2 brokers", id="one of two"),
        pytest.param(3, 1, "the topics have one replica, though there are 3 brokers", id="one of three"),
        pytest.param(2, 2, "the topics have two replicas", id="two brokers"),
        pytest.param(3, 3, None, id="three brokers"),
        pytest.param(9, 5, None, id="more replicas than needed"),
    ],
)
def test_few_brokers_or_replicas_are_a_warning_that_says_what_is_at_risk(brokers, replicas, risk):
    faults, risks = judged(*cluster(brokers, replicas))
    assert faults == []
    assert [text.partition(risk or "")[1] for text in risks] == ([risk] if risk else [])
    assert all("lost" in text for text in risks)


def test_the_warning_about_one_replica_has_the_line_that_adds_some():
    topics, nodes = cluster(3, 1)
    [risk] = judge_topics(topics, nodes, SETTINGS).risks
    assert risk.line.startswith("kafka-reassign-partitions --bootstrap-server kafka:9092 --execute ")
    assert risk.line.count('"partition":') == 2 * len(topics)


def test_one_topic_with_fewer_replicas_than_the_others_is_refused():
    topics, nodes = cluster(3, 3)
    lesser = Described(COMMANDS, {0: [1], 1: [2]}, topics[0].config | {"min.insync.replicas": "1"})
    faults, risks = judged([lesser, *topics[1:]], nodes)
    assert faults == [f"the topic {COMMANDS} has 1 replicas, expected at least 3 with 3 brokers"]
    assert risks == []


def test_all_replicas_required_in_sync_are_a_warning_and_more_than_there_are_are_refused():
    faults, [risk] = judged(*cluster(3, 3, **{"min.insync.replicas": "3"}))
    assert faults == []
    assert f"the topic {EVENTS} needs all of its 3 replicas in sync" in risk
    faults, _ = judged(*cluster(3, 3, **{"min.insync.replicas": "4"}))
    assert faults == [f"the topic {EVENTS} has min.insync.replicas=4, expected 2 to 3 of 3 replicas"]


def test_a_setting_that_a_cluster_does_not_report_is_a_warning():
    """Clusters that only speak Kafka's protocol leave out settings that they do not have."""
    keys = ("unclean.leader.election.enable", "max.compaction.lag.ms", "min.insync.replicas")
    topics, nodes = cluster(3, 3, without=keys)
    faults, risks = judged(topics, nodes)
    assert faults == []
    assert [risk.partition(" of t.orders.")[0] for risk in risks] == [
        f"Kafka does not report {key}" for key in ("min.insync.replicas", "unclean.leader.election.enable", keys[1])
    ]
    assert judge_topics(topics, nodes, SETTINGS).in_sync[EVENTS] == 1


def test_missing_topics_and_other_partitions_are_refused():
    topics, nodes = cluster(3, 3)
    wider = Described(COMMANDS, dict.fromkeys(range(3), nodes), topics[0].config)
    faults, _ = judged([wider, *topics[2:]], nodes)
    assert faults == [
        f"the topic {COMMANDS} has 3 partitions, ORDERS_PARTITIONS says 2",
        f"the topic {EVENTS} is missing: run `order-service topics create`",
    ]
    faults, risks = judged([], [])
    assert (len(faults), risks) == (7, [])


@pytest.mark.parametrize(
    ("days", "retention_ms", "least"),
    [
        pytest.param(None, "604800000", None, id="orders remember for ever"),
        pytest.param(7, "604800000", None, id="as long as the topic"),
        pytest.param(6.5, "604800000", "7", id="half a day less than the topic"),
        pytest.param(14, "2592000000", "30", id="less than a topic that keeps more"),
        pytest.param(7, "-1", None, id="a topic that keeps all counts as one of seven days"),
        pytest.param(1, "-1", "7", id="less than that"),
    ],
)
def test_orders_that_forget_commands_which_are_still_in_the_topic_are_a_warning(days, retention_ms, least):
    topics, nodes = cluster(3, 3, of=COMMANDS, **{"retention.ms": retention_ms})
    risks = judge_topics(topics, nodes, SETTINGS.model_copy(update={"remember_closed_days": days})).risks
    advice = [] if least is None else [f"Set ORDERS_REMEMBER_CLOSED_DAYS of all workers to {least} or more."]
    assert [risk.advice for risk in risks] == advice
