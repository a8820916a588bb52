"""One registry for the tests of this folder; each test has topics, and so subjects, of its own."""

from uuid import uuid4

import pytest

from order_service.kafka.registry_client import RegistryPolicy, SchemaRegistry
from order_service.kafka.topics import topic_names
from tests.support.apicurio import Apicurio


@pytest.fixture(scope="package")
def apicurio(tmp_path_factory):
    with Apicurio(tmp_path_factory.mktemp("apicurio")) as running:
        yield running


@pytest.fixture
async def registry(apicurio):
    async with SchemaRegistry(RegistryPolicy(urls=(apicurio.url,))) as client:
        yield client


@pytest.fixture
def names():
    return topic_names(f"t{uuid4().hex[:8]}.")
