"""What `doctor` says about a real schema registry."""

import asyncio
from uuid import uuid4

from confluent_kafka.schema_registry import SchemaRegistryClient

from order_service.local.broker import free_port
from order_service.operations.doctor.checks.check import sentence
from order_service.operations.doctor.checks.registry import check_registry
from order_service.settings import Settings
from tests.support.command_line import CommandLine


def test_a_registry_that_lacks_our_schemas_is_a_finding_until_they_are_registered(apicurio):
    prefix = f"t{uuid4().hex[:8]}."
    settings = Settings(schema_registry_url=apicurio.url, topic_prefix=prefix)
    [lacking] = asyncio.run(check_registry(settings))
    assert lacking.status == "problem"
    assert "`ORDERS_SCHEMA_REGISTRY_REGISTER=true order-service schemas register`" in lacking.fix
    assert lacking.text.startswith("The schema registry lacks ")
    CommandLine({"SCHEMA_REGISTRY_URL": apicurio.url, "ORDERS_TOPIC_PREFIX": prefix})("schemas", "register")
    [complete] = asyncio.run(check_registry(settings))
    assert complete.status == "ok"
    assert complete.text.startswith(f"http://127.0.0.1:{apicurio.port} has all ")


def test_a_weak_level_and_a_silent_url_are_warnings_that_name_them(apicurio):
    prefix, closed = f"t{uuid4().hex[:8]}.", f"http://127.0.0.1:{free_port()}"
    subject = f"{prefix}orders.events.v1-orders.v1.OrderPaid"
    environment = {"SCHEMA_REGISTRY_URL": f"{closed},{apicurio.url}", "ORDERS_TOPIC_PREFIX": prefix}
    with SchemaRegistryClient({"url": apicurio.url}) as foreign:
        foreign.set_compatibility(subject, "FULL")
    CommandLine(environment)("schemas", "register")
    settings = Settings(schema_registry_url=environment["SCHEMA_REGISTRY_URL"], topic_prefix=prefix)
    silent, weak = asyncio.run(check_registry(settings))
    assert (silent.status, weak.status) == ("warning", "warning")
    assert silent.text.startswith(f"No schema registry answers at {closed}: ")
    assert weak.text == f"{sentence(subject)[:-1]} has the compatibility FULL, which is weaker than FULL_TRANSITIVE."
