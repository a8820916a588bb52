"""What `doctor` says about a real schema registry."""

import asyncio
from uuid import uuid4

from order_service.operations.doctor.checks.registry import check_registry
from order_service.settings import Settings
from tests.support.command_line import CommandLine


def test_a_registry_that_lacks_our_schemas_is_a_finding_until_they_are_registered(apicurio):
    prefix = f"t{uuid4().hex[:8]}."
    settings = Settings(schema_registry_url=apicurio.url, topic_prefix=prefix)
    [lacking] = asyncio.run(check_registry(settings))
    assert (lacking.status, lacking.fix) == ("problem", "Run `order-service schemas register`.")
    assert lacking.text.startswith("The schema registry lacks ")
    CommandLine({"SCHEMA_REGISTRY_URL": apicurio.url, "ORDERS_TOPIC_PREFIX": prefix})("schemas", "register")
    [complete] = asyncio.run(check_registry(settings))
    assert complete.status == "ok"
    assert complete.text.startswith(f"http://127.0.0.1:{apicurio.port} has all ")
