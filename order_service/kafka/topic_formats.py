"""The topics as other tools create them: shell lines for Kafka's own, resources of Strimzi, and of Terraform."""

import json
import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Final

from order_service.kafka.topics import TopicSpec, alter_line, servers_option
from order_service.settings import Settings

STRIMZI_API: Final = "kafka.strimzi.io/v1"
"""Served since Strimzi 0.49. Source: Strimzi's proposal 113."""
KUBERNETES_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
"""The name of a resource (RFC 1123 subdomain)."""


class TopicFormat(StrEnum):
    """A tool that creates topics."""

    KAFKA_CONFIGS = "kafka-configs"
    STRIMZI = "strimzi"
    TERRAFORM = "terraform"


def format_topics(specs: list[TopicSpec], form: TopicFormat, settings: Settings, cluster: str) -> str:
    """Return the topics in a format. `cluster` is the name of the Kafka resource that Strimzi's topics belong to."""
    match form:
        case TopicFormat.KAFKA_CONFIGS:
            lines = _shell(specs, settings)
        case TopicFormat.STRIMZI:
            lines = _strimzi(specs, cluster)
        case TopicFormat.TERRAFORM:
            lines = _terraform(specs)
    return "\n".join([*_heading(specs), *lines])


def _heading(specs: Iterable[TopicSpec]) -> Iterator[str]:
    spec = next(iter(specs))
    size = f"{spec.partitions} partitions (ORDERS_PARTITIONS), {spec.replicas} replicas"
    yield f"# The topics of the order service: {size}."
    yield "# Longer retention, larger records and more replicas are fine, other partitions are not."
    yield "# `order-service topics check` compares the result."


def _shell(specs: Iterable[TopicSpec], settings: Settings) -> Iterator[str]:
    yield "# In Apache Kafka's archive, the tools are called kafka-topics.sh and kafka-configs.sh. The second line of a"
    yield "# topic sets exactly these values: leave it out for an existing topic that keeps more."
    for spec in specs:
        size = f"--partitions {spec.partitions} --replication-factor {spec.replicas}"
        create = f"--create --if-not-exists --topic {spec.name} {size}"
        yield f"kafka-topics {servers_option(settings)} {create}"
        yield alter_line(spec.name, ",".join(f"{key}={value}" for key, value in spec.config.items()), settings)


def _strimzi(specs: Iterable[TopicSpec], cluster: str) -> Iterator[str]:
    yield f"# For Strimzi 0.49 or newer; before it, the apiVersion is kafka.strimzi.io/v1beta2, not {STRIMZI_API}."
    for spec in specs:
        yield from (
            "---",
            f"apiVersion: {STRIMZI_API}",
            "kind: KafkaTopic",
            "metadata:",
            f"  name: {json.dumps(_kubernetes_name(spec.name))}",
            "  labels:",
            f"    strimzi.io/cluster: {json.dumps(cluster)}",
            "spec:",
            f"  topicName: {json.dumps(spec.name)}",
            f"  partitions: {spec.partitions}",
            f"  replicas: {spec.replicas}",
            "  config:",
        )
        yield from (f"    {key}: {json.dumps(value)}" for key, value in spec.config.items())


def _kubernetes_name(topic: str) -> str:
    if KUBERNETES_NAME.fullmatch(topic):
        return topic
    return re.sub(r"[^a-z0-9]+", "-", topic.lower()).strip("-")


def _terraform(specs: Iterable[TopicSpec]) -> Iterator[str]:
    yield "# For the Terraform provider Mongey/kafka. Terraform would replace a topic, and lose its records, to change"
    yield "# its name or to have fewer partitions: prevent_destroy forbids that."
    for spec in specs:
        yield from (
            "",
            f'resource "kafka_topic" {json.dumps(_terraform_name(spec.name))} {{',
            f"  name               = {json.dumps(spec.name)}",
            f"  partitions         = {spec.partitions}",
            f"  replication_factor = {spec.replicas}",
            "  config = {",
        )
        width = max(map(len, spec.config)) + 2
        yield from (f"    {json.dumps(key):<{width}} = {json.dumps(value)}" for key, value in spec.config.items())
        yield from ("  }", "  lifecycle {", "    prevent_destroy = true", "  }", "}")


def _terraform_name(topic: str) -> str:
    """Return a name for a resource: letters, digits, `_` and `-`, and no digit or `-` first."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", topic)
    return name if re.match(r"[A-Za-z_]", name) else f"_{name}"
