"""The check of Kafka's ACLs: what our principal may do, as the brokers report it.

The brokers evaluate the ACLs themselves, with wildcards, denials and super users. They do not report what a principal
may do with transactional ids.
"""

from collections.abc import Mapping
from shlex import quote
from typing import Final

from cryptography.x509 import load_pem_x509_certificates

from order_service.kafka.connection import Admin, ask_admin
from order_service.kafka.rights_requests import Rights, group_rights, topic_rights
from order_service.kafka.topics import TopicNames, servers_option, topic_configs, topic_names
from order_service.operations.doctor.checks.brokers import RETRY_S
from order_service.operations.doctor.checks.check import Result, not_checked, ok, problem
from order_service.settings import Settings

OPERATIONS: Final = ("Read", "Write", "Describe", "DescribeConfigs")
"""What a worker needs."""
NOT_VISIBLE: Final = "Its rights on transactional ids are not visible."


async def check_rights(settings: Settings) -> list[Result]:
    """Compare what the principal of the settings may do with what a worker needs."""
    names = topic_names(settings.topic_prefix)

    async def ask(admin: Admin) -> tuple[dict[str, Rights], Rights]:
        return await topic_rights(admin, sorted(topic_configs(names))), await group_rights(admin, settings.group_id)

    topics, group = await ask_admin(settings, ask, patience_s=RETRY_S)
    return judge_rights(settings, names, topics, group)


def judge_rights(settings: Settings, names: TopicNames, topics: Mapping[str, Rights], group: Rights) -> list[Result]:
    """Return which operations a worker with these settings lacks, one result for each operation."""
    principal = principal_of(settings)
    if not all(rights.is_reported for rights in topics.values()):
        return [not_checked("The brokers do not report what a principal may do.")]
    results = []
    for operation in OPERATIONS:
        lacking = [
            topic for topic in sorted(topics) if needs(operation, topic, names) and topics[topic].lacks(operation)
        ]
        if lacking:
            text = f"{principal} lacks {operation} on {', '.join(lacking)}; a worker needs it."
            results.append(problem(text, _grant(settings, operation, "--topic", lacking)))
    if group.lacks("Read"):
        text = f"{principal} lacks Read on the group {settings.group_id}; a worker needs it."
        results.append(problem(text, _grant(settings, "Read", "--group", [settings.group_id])))
    return results or [ok(f"{principal} may do what a worker needs with the topics and the group. {NOT_VISIBLE}")]


def needs(operation: str, topic: str, names: TopicNames) -> bool:
    """Return whether a worker needs an operation on a topic: it only reads the commands and the operations."""
    return operation != "Write" or topic in names.written


def principal_of(settings: Settings) -> str:
    """Return the principal of the settings, as brokers name it unless they have rules of their own."""
    if settings.kafka_security_protocol.startswith("SASL"):
        return f"User:{settings.kafka_sasl_username or '<the subject of the access token>'}"
    if settings.kafka_ssl_certfile is None:
        return "User:ANONYMOUS"
    [certificate, *_] = load_pem_x509_certificates(settings.kafka_ssl_certfile.read_bytes())
    return f"User:{certificate.subject.rfc4514_string()}"


def _grant(settings: Settings, operation: str, option: str, resources: list[str]) -> str:
    where = " ".join(f"{option} {resource}" for resource in resources)
    return (
        f"kafka-acls {servers_option(settings)} --add --allow-principal {quote(principal_of(settings))}"
        f" --operation {operation} {where}"
    )
