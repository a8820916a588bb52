"""A registry that is away, hangs, refuses us, or is another server: always one clear line, within the time."""

import asyncio
from base64 import b64encode
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiokafka.structs import ConsumerRecord
from pydantic import SecretStr

from order_service.errors import RegistryAwayError, SchemaError
from order_service.kafka.reader import Reader
from order_service.kafka.registry_client import Ids, RegistryPolicy, SchemaRegistry, adopt, adopt_when_available
from order_service.kafka.topics import topic_names
from order_service.local.broker import free_port
from order_service.settings import Settings
from order_service.wire.schemas.catalogue import load

TRIES = 2
"""Of the client that has little patience, below."""
VALUE = b"\0\0\0\0\7rest"


@asynccontextmanager
async def server(answer):
    """Run a server that answers everything like this; give its address."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


def says(status, body="{}", **headers):
    """Make an answer."""

    async def answer(_request):
        return web.Response(status=status, text=body, headers=headers)

    return answer


async def hang(_request):
    await asyncio.Event().wait()


def quick(url, try_s=10.0, **changes):
    """Return a client that has little patience, but for an answer that is on its way."""
    return SchemaRegistry(RegistryPolicy(url=url, try_s=try_s, waits_s=(0.01,), **changes))


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        pytest.param(hang, "does not answer in time", id="hangs"),
        pytest.param(says(500), "returned an error: GET /schemas/ids/7: status 500", id="500"),
        pytest.param(
            says(401),
            "denies access: GET /schemas/ids/7: status 401: set ORDERS_SCHEMA_REGISTRY_USERNAME",
            id="401",
        ),
        pytest.param(says(200, "<html>"), "is not a schema registry", id="a page"),
        pytest.param(says(200, '{"schema": 7}'), "is not a schema registry", id="another shape"),
        pytest.param(says(404, "{}"), "returned an error: GET /schemas/ids/7: status 404", id="another address"),
        pytest.param(says(302, "{}", Location="/elsewhere"), "status 302", id="a redirect"),
        pytest.param(says(200, "[" * 100_000), "is not a schema registry", id="deep"),
        pytest.param(says(200, " " * 2_000_000), "more than 1048576 bytes", id="huge"),
    ],
)
async def test_no_answer_that_we_can_use_is_one_line(answer, line):
    async with server(answer) as url, quick(url, try_s=2.0) as registry:
        with pytest.raises(RegistryAwayError, match=line) as caught:
            await registry.text_of(7)
        assert "\n" not in str(caught.value)


async def test_nobody_there_is_one_line():
    async with quick(f"http://127.0.0.1:{free_port()}") as registry:
        with pytest.raises(RegistryAwayError, match="no schema registry answers at"):
            await registry.text_of(7)


async def test_our_credential_is_sent_and_never_said():
    seen = []

    async def answer(request):
        seen.append(request.headers["Authorization"])
        return web.Response(status=403, text="{}")

    async with server(answer) as url, quick(url, username="us", password=SecretStr("hunter2")) as registry:
        with pytest.raises(RegistryAwayError) as caught:
            await registry.text_of(7)
    assert set(seen) == {f"Basic {b64encode(b'us:hunter2').decode()}"}
    assert "hunter2" not in str(caught.value)


async def test_an_id_that_is_another_s_is_refused():
    """A registry that counts where our own ids lie would make two schemas of one id."""
    catalogue = load()
    with pytest.raises(SchemaError, match="which is invalid or belongs to another schema"):
        catalogue.adopt("OrderPaid.v1.avsc", catalogue.of_file("OrderShipped.v1.avsc").id)


async def test_a_registry_that_is_away_for_too_long_is_asked_once_more_for_each_new_id():
    asked = []

    async def answer(request):
        asked.append(request.path)
        await asyncio.Event().wait()

    async with server(answer) as url, Ids(quick(url, try_s=1.0), load(), patience_s=0) as ids:
        await ids.learn_patiently([VALUE])
        assert len(asked) == TRIES
        assert ids.are_known([VALUE])
        await ids.learn_patiently([VALUE, b"\0\0\0\0\x08rest"])
        assert len(asked) == 2 * TRIES


async def test_an_id_that_the_registry_refuses_makes_no_other_id_unknown():
    catalogue = load()
    text = catalogue.of_file("CreateOrder.v1.avsc").text

    async def answer(request):
        return web.Response(status=500) if request.path.endswith("/7") else web.json_response({"schema": text})

    async with server(answer) as url, Ids(quick(url), catalogue, patience_s=0) as ids:
        await ids.learn_patiently([VALUE])
        await ids.learn_patiently([b"\0\0\0\0\x08rest"])
    assert {7, 8} & catalogue.by_id.keys() == {8}


async def test_a_registry_that_is_away_for_a_moment_is_asked_again():
    asked = []

    async def answer(request):
        asked.append(request.path)
        return web.Response(status=503) if len(asked) < 3 else web.json_response({"schema": text})

    catalogue = load()
    text = catalogue.of_file("CreateOrder.v1.avsc").text
    async with server(answer) as url, Ids(quick(url), catalogue) as ids:
        assert not ids.are_known([VALUE])
        await ids.learn_patiently([VALUE])
        assert ids.are_known([VALUE])
    assert (len(asked), 7 in catalogue.by_id) == (3, True)


async def test_many_unknown_ids_do_not_make_the_registry_silent():
    """Garbage that looks like ids is asked about sixteen at a time; the next id is looked up all the same."""
    asked = []

    async def answer(request):
        asked.append(request.path)
        return web.Response(status=404, text='{"error_code": 40403}')

    async with server(answer) as url, Ids(quick(url), load()) as ids:
        await ids.learn_patiently([b"\0" + number.to_bytes(4, "big") for number in (*range(1, 201), 0, 2**31)])
        assert len(asked) == 200
        await ids.learn_patiently([b"\0" + (201).to_bytes(4, "big")])
        assert len(asked) == 201


async def test_a_level_that_is_not_kept_is_an_error():
    async def answer(request):
        level = '{"compatibilityLevel": "NONE"}'
        return web.Response(text=level if request.method == "GET" else "{}")

    async with server(answer) as url, quick(url) as registry:
        with pytest.raises(SchemaError, match=r"keeps .*OrderCreated at NONE, not FULL_TRANSITIVE"):
            await adopt(registry, topic_names().of, load())


async def test_a_closed_client_says_so():
    async with quick("http://127.0.0.1:9") as registry:
        pass
    with pytest.raises(RegistryAwayError, match="is closed"):
        await registry.text_of(7)


async def test_who_waits_is_told_each_reason_once():
    told = []
    twice = asyncio.Event()
    statuses = iter([500] * 6 + [401] * 1000)

    async def answer(_request):
        return web.Response(status=next(statuses), text="{}")

    def tell(why):
        told.append(why)
        if len(told) == 2:
            twice.set()

    async with server(answer) as url:
        settings = Settings(schema_registry_url=url)
        waiting = asyncio.create_task(adopt_when_available(settings, topic_names().of, tell, retry_s=0.01))
        await asyncio.wait_for(twice.wait(), 20)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert "status 500" in told[0]
    assert "denies access" in told[1]


@pytest.mark.parametrize("url", ["http://us:hunter2@registry", "registry:8081", "http://registry?x=1"])
def test_an_address_that_cannot_be_used_is_refused(url):
    with pytest.raises(ValueError, match="schema_registry_url"):
        Settings(schema_registry_url=url)


async def test_a_reader_that_looks_ids_up_by_itself_is_told_why_it_cannot():
    record = ConsumerRecord(topic_names().events, 0, 0, 0, 0, b"order-1", VALUE, None, 0, 0, ())
    reader = Reader(Settings(schema_registry_url=f"http://127.0.0.1:{free_port()}"))
    try:
        async with reader._ids:
            away = await reader.look_up([record])
    finally:
        await reader._consumer.stop()
    assert "no schema registry answers at" in str(away)
