"""Subscribers where there is a schema registry: an id that they do not know is looked up before the event is given."""

from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from order_service.errors import RegistryAwayError
from order_service.sdk import OrderEvents
from order_service.sdk.testing import order_delivered
from order_service.wire.avro import encode_event
from order_service.wire.schemas.catalogue import SCHEMAS, prefix_of
from tests.support.serving import serving

DELIVERED = SCHEMAS.of_file("OrderDelivered.v1.avsc")


class Registry:
    """Knows the schema of a delivery by any id, if it is not away."""

    def __init__(self):
        self.is_away = False
        self.url = ""

    async def answer(self, _request):
        return web.Response(status=503) if self.is_away else web.json_response({"schema": DELIVERED.text})


@pytest.fixture
async def registry():
    async with answering(Registry()) as made:
        yield made


@asynccontextmanager
async def answering(registry):
    app = web.Application()
    app.router.add_get("/schemas/ids/{id}", registry.answer)
    async with serving(app) as registry.url:
        yield registry


def projection(settings, _group):
    return OrderEvents.projection(settings=settings)


def effects(settings, group):
    return OrderEvents.effects(group=group, settings=settings)


@pytest.mark.parametrize(("make", "schema_id"), [(projection, 4001), (effects, 4002)])
async def test_an_id_that_is_not_known_is_looked_up(service, group, registry, make, schema_id):
    settings = service.settings().model_copy(update={"schema_registry_url": registry.url})
    event = order_delivered(version=1)
    value = prefix_of(schema_id) + encode_event(event)[len(DELIVERED.prefix) :]
    async with OrderEvents.effects(group=group, settings=settings):
        pass  # the group begins here
    service.producer.produce(service.names.events, key=event.order_id, value=value)
    assert service.producer.flush(30) == 0
    registry.is_away = True
    async with make(settings, group) as events:
        for _ in range(2):
            with pytest.raises(RegistryAwayError):
                await anext(events)
        registry.is_away = False
        assert (await anext(events)).event == event
