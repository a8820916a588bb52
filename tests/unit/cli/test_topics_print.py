"""The topics as other tools create them; Kafka's own tools run the printed lines in tests/broker."""

import shlex

import pytest
import yaml
from hcl2.api import loads

from order_service.kafka.topics import topic_configs, topic_names
from tests.support.command_line import CommandLine

SETTINGS = {"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", "ORDERS_PARTITIONS": "6"}


def printed(form, *options, **settings):
    return CommandLine(SETTINGS | settings)("topics", "print", "--format", form, *options).stdout


def expected(prefix="", in_sync="2"):
    """Return the settings of each topic."""
    return {
        name: config | {"min.insync.replicas": in_sync} for name, config in topic_configs(topic_names(prefix)).items()
    }


def test_strimzi_resources_are_valid_yaml_with_every_setting():
    resources = list(yaml.safe_load_all(printed("strimzi", "--cluster", "shop")))
    assert {resource["spec"]["topicName"]: resource["spec"]["config"] for resource in resources} == expected()
    for resource in resources:
        assert (resource["apiVersion"], resource["kind"]) == ("kafka.strimzi.io/v1", "KafkaTopic")
        assert resource["metadata"] == {
            "name": resource["spec"]["topicName"],
            "labels": {"strimzi.io/cluster": "shop"},
        }
        assert (resource["spec"]["partitions"], resource["spec"]["replicas"]) == (6, 3)


def test_a_prefix_that_kubernetes_refuses_is_only_in_the_name_of_the_topic():
    resources = list(yaml.safe_load_all(printed("strimzi", ORDERS_TOPIC_PREFIX="Shop_EU.")))
    assert {resource["spec"]["topicName"] for resource in resources} == expected("Shop_EU.").keys()
    assert "shop-eu-orders-commands-v1" in {resource["metadata"]["name"] for resource in resources}


def test_terraform_resources_are_valid_hcl_with_every_setting():
    text = printed("terraform", "--replicas", "1", ORDERS_TOPIC_PREFIX="2.")
    assert "Mongey/kafka" in text
    resources = [unquoted(block) for block in loads(text)["resource"]]
    topics = {label: topic for block in resources for label, topic in block["kafka_topic"].items()}
    assert {topic["name"]: topic["config"] for topic in topics.values()} == expected("2.", "1")
    for label, topic in topics.items():
        assert label == "_" + topic["name"].replace(".", "_")
        assert (topic["partitions"], topic["replication_factor"]) == (6, 1)
        assert topic["lifecycle"] == [{"prevent_destroy": True}]


def unquoted(value):
    """Return a value of HCL without the quotes that the parser keeps, and without its own notes."""
    match value:
        case dict():
            return {unquoted(key): unquoted(inner) for key, inner in value.items() if key != "__is_block__"}
        case list():
            return [unquoted(inner) for inner in value]
        case str():
            return value.strip('"')
        case _:
            return value


def test_lines_for_kafka_s_own_tools_create_each_topic_and_set_each_value():
    lines = [shlex.split(line) for line in printed("kafka-configs").splitlines() if not line.startswith("#")]
    creates = [line for line in lines if line[0] == "kafka-topics"]
    assert {option(line, "--topic") for line in creates} == expected().keys()
    assert {(option(line, "--partitions"), option(line, "--replication-factor")) for line in creates} == {("6", "3")}
    alters = [line for line in lines if line[0] == "kafka-configs"]
    assert {
        option(line, "--entity-name"): dict(pair.split("=") for pair in option(line, "--add-config").split(","))
        for line in alters
    } == expected()
    assert {option(line, "--bootstrap-server") for line in lines} == {"kafka:9092"}


def option(line, name):
    return line[line.index(name) + 1]


def test_json_has_one_topic_in_each_line():
    topics = CommandLine(SETTINGS).json("topics", "print", "--replicas", "2")
    assert {topic["name"]: topic["config"] for topic in topics} == expected(in_sync="1")
    assert {(topic["partitions"], topic["replicas"]) for topic in topics} == {(6, 2)}


def test_partitions_are_those_of_a_cluster_and_not_of_a_local_kafka():
    topics = CommandLine({"KAFKA_BOOTSTRAP_SERVERS": "", "ORDERS_PARTITIONS": "12"}).json("topics", "print")
    assert {topic["partitions"] for topic in topics} == {12}


@pytest.mark.parametrize("arguments", [("--format", "pulumi"), ("--replicas", "0"), ("--replicas", "x")])
def test_another_format_or_number_of_replicas_is_refused(arguments):
    CommandLine(SETTINGS)("topics", "print", *arguments, code=2)
