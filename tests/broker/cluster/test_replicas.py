"""How many replicas topics get, and which number a cluster accepts."""

import json

from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

from order_service.kafka.topics import topic_configs, topic_specs
from order_service.local.broker import free_port
from tests.support.command_line import CommandLine
from tests.support.samples import create
from tests.support.service import Service, vars_of
from tests.support.topic_settings import run_lines


def test_replicas_are_as_many_as_the_cluster_can_have(cluster, users, tmp_path):
    """Topics of a cluster that had two nodes and now has three; then new ones while one of three is away."""
    service = Service(cluster.bootstrap_servers, tmp_path, users, ORDERS_PARTITIONS="2")
    cli = CommandLine(service.environment)
    of_two = {"min.insync.replicas": "1"}
    made = [NewTopic(name, 2, 2, config=config | of_two) for name, config in topic_configs(service.names).items()]
    for future in service.kafka.create_topics(made).values():
        future.result(30)
    cluster.wait_all_in_sync(topic_configs(service.names))

    told = cli("topics", "create", code=13)
    [warning, *said] = told.stderr.splitlines()
    assert "the topics have two replicas" in warning
    assert [line.partition(" has ")[2] for line in said] == ["2 replicas, expected at least 3 with 3 brokers"] * 7
    lines = [line for line in told.stdout.splitlines() if line.startswith("kafka-")]
    assert len(lines) == 1, "one plan for all topics, since Kafka takes one at a time"
    run_lines(lines, tmp_path)
    cluster.wait_all_in_sync(vars_of(service.names).values(), replicas=3)
    told = cli("topics", "check", code=13)
    assert f"the topic {service.names.table} has min.insync.replicas=1, expected 2 to 3 of 3 replicas" in told.stderr
    assert len(told.stdout.splitlines()) == 7
    for topic in vars_of(service.names).values():
        service.configure(topic, min_insync_replicas="2")
    assert cli.json("topics", "check") == [{"ok": True, "faults": [], "fix": [], "risks": []}]
    service.configure(service.names.events, min_insync_replicas="3")
    [risk] = cli("topics", "check").stderr.splitlines()
    assert f"the topic {service.names.events} needs all of its 3 replicas in sync" in risk
    service.configure(service.names.events, min_insync_replicas="2")

    cluster.stop(3)
    cluster.wait_brokers(2)
    cli("topics", "check")  # three replicas are more than two brokers need
    other = CommandLine(service.environment | {"ORDERS_TOPIC_PREFIX": "other."})
    assert "the topics have two replicas" in other("topics", "create").stderr
    assert other.json("topics", "check")[0]["ok"]
    cluster.start(3)


def test_one_replica_of_three_brokers_is_a_warning_everywhere_and_its_line_adds_replicas(cluster, users, tmp_path):
    service = Service(cluster.bootstrap_servers, tmp_path, users, ORDERS_PARTITIONS="2")
    cli = CommandLine(service.environment | {"ORDERS_ADMIN_PORT": str(free_port())})
    specs = topic_specs(service.settings(), 1)
    made = [NewTopic(spec.name, spec.partitions, spec.replicas, config=spec.config) for spec in specs]
    for future in service.kafka.create_topics(made).values():
        future.result(30)
    cluster.wait_all_in_sync(vars_of(service.names).values())
    risk = "the topics have one replica, though there are 3 brokers"
    with service:  # its topics are there
        told = cli("topics", "create")
        assert risk in told.stderr
        assert {line.split()[0] for line in told.stdout.splitlines()} == {"exists", "#"}
        [line, said] = cli("topics", "check").stdout.splitlines()
        assert said.startswith("all topics are as expected")
        document = json.loads(cli("doctor", "--json", code=1).stdout.splitlines()[-1])  # after lines of this log
        [found] = [each for each in document["results"] if each["check"] == "topics"]
        assert (found["status"], risk in found["text"].lower()) == ("warning", True)
        assert f"# {found['fix']}" == line
        worker = service.start_worker(TEST_TOPICS_EVERY_S="0.2").wait_lanes(2)
        service.send([create])
        service.wait_outcomes(1)
        [logged] = worker.lines("The settings of the topics are a risk.")
        assert risk in logged["risk"]
        run_lines([line.removeprefix("# ")], tmp_path)
        cluster.wait_all_in_sync(vars_of(service.names).values(), replicas=3)
        assert "min.insync.replicas=1, expected 2 to 3 of 3 replicas" in cli("topics", "check", code=13).stderr
        assert len(worker.lines("The settings of the topics are a risk.")) == 1
