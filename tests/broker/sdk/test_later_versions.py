"""Subscribers that meet the next version of the service: a new type of event, and a new field of a known one."""

import json
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from order_service.errors import RegistryAwayError
from order_service.sdk import EventRecord, OrderEvents, UnknownEvent
from order_service.sdk.testing import order_cancelled, order_created, order_delivered, order_shipped
from order_service.sdk.testing.samples import as_unknown
from order_service.wire.avro import encode_event
from order_service.wire.headers import event_headers
from order_service.wire.schemas.catalogue import EVERY_EVENT, SCHEMAS, prefix_of
from tests.support.serving import serving

RETURNED = {"type": "record", "name": "OrderReturned", "namespace": "orders.v1"} | {
    "fields": [*EVERY_EVENT["fields"], {"name": "reason", "type": "string"}]
}
SHIPPED = SCHEMAS.of_file("OrderShipped.v1.avsc").avro
SHIPPED_V2 = SHIPPED | {
    "fields": [*SHIPPED["fields"], {"name": "service_level", "type": ["null", "string"], "default": None}]
}


def projection(settings, _group):
    return OrderEvents.projection(settings=settings)


def effects(settings, group):
    return OrderEvents.effects(group=group, settings=settings)


def write_as_the_next_version(service, returned_id, shipped_id):
    """Write four events of an order: a known one, one of a new type, one with a new field, and a known one."""
    shipped = order_shipped(version=3)
    records = [
        (encode_event(order_created()), event_headers(order_created(), None, 1)),
        as_unknown(order_delivered(version=2), "OrderReturned", returned_id),
        (prefix_of(shipped_id) + encode_event(shipped)[5:] + b"\2\x0eexpress", event_headers(shipped, None, 3)),
        (encode_event(order_cancelled(version=4)), event_headers(order_cancelled(version=4), None, 4)),
    ]
    for value, headers in records:
        service.producer.produce(service.names.events, key="order-1", value=value, headers=headers)
    assert service.producer.flush(30) == 0


async def read_four(events, seen=()):
    """Read the events of `write_as_the_next_version` that were not seen yet, and check all."""
    records = [*seen, *[await anext(events) for _ in range(4 - len(seen))]]
    created, returned, shipped, cancelled = [record.event for record in records]
    assert isinstance(returned, UnknownEvent)
    assert (returned.type, returned.version, returned.occurred_at) == (
        "OrderReturned",
        2,
        order_delivered(version=2).occurred_at,
    )
    assert [created, shipped, cancelled] == [order_created(), order_shipped(version=3), order_cancelled(version=4)]


async def read_into(seen, events):
    async for record in events:
        seen.append(record)


@pytest.mark.parametrize("make", [projection, effects])
async def test_without_a_registry_a_subscriber_goes_on(service, group, make):
    async with OrderEvents.effects(group=group, settings=service.settings()):
        pass  # the group begins here
    write_as_the_next_version(service, 1_888_000_001, 1_888_000_002)
    async with make(service.settings(), group) as events:
        await read_four(events)


@asynccontextmanager
async def newer_server(schemas):
    """Serve `/schema-registry` as the HTTP server of the next version does; yield its URL and its state."""
    state = {"is_away": False}

    async def schema(request):
        if state["is_away"]:
            return web.Response(status=503)
        avro = schemas.get(int(request.match_info["id"]))
        if avro is None:
            return web.json_response({"error_code": 40403, "message": "Schema not found"}, status=404)
        return web.json_response({"schema": json.dumps(avro)})

    app = web.Application()
    app.router.add_get("/schema-registry/schemas/ids/{id}", schema)
    async with serving(app) as url:
        yield f"{url}/schema-registry", state


@pytest.mark.parametrize(
    ("make", "first_id", "is_known"),
    [
        pytest.param(projection, 1_888_000_011, True, id="a projection, ids known"),
        pytest.param(effects, 1_888_000_021, True, id="effects, ids known"),
        pytest.param(projection, 1_888_000_031, False, id="a projection, ids unknown"),
        pytest.param(effects, 1_888_000_041, False, id="effects, ids unknown"),
    ],
)
async def test_with_a_registry_a_subscriber_goes_on_as_soon_as_it_answers(service, group, make, first_id, is_known):
    schemas = {first_id: RETURNED, first_id + 1: SHIPPED_V2} if is_known else {}
    async with newer_server(schemas) as (url, state):
        settings = service.settings().model_copy(update={"schema_registry_url": url})
        async with OrderEvents.effects(group=group, settings=settings):
            pass  # the group begins here
        write_as_the_next_version(service, first_id, first_id + 1)
        async with make(settings, group) as events:
            state["is_away"] = True
            seen: list[EventRecord] = []
            with pytest.raises(RegistryAwayError):
                await read_into(seen, events)
            state["is_away"] = False
            await read_four(events, seen)
