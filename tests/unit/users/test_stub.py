from __future__ import annotations

import asyncio

import aiohttp
import pytest
from yarl import URL

from order_service.users.stub import USERS_MAX, Mode, Stub, running, serve_stub


@pytest.fixture
async def http():
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        yield session


@pytest.mark.parametrize(
    ("user_id", "statuses", "body"),
    [
        pytest.param("ann", [200], {"id": "ann", "status": "active"}, id="any id is an active user"),
        pytest.param("unknown-1", [404], {"error": "no such user"}, id="unknown is not there"),
        pytest.param("inactive-1", [200], {"id": "inactive-1", "status": "inactive"}, id="inactive may not order"),
        pytest.param("slow-30-ann", [200], {"id": "slow-30-ann", "status": "active"}, id="slow answers"),
        pytest.param("flaky", [503, 200, 503, 200], {"id": "flaky", "status": "active"}, id="flaky fails first"),
        pytest.param("a%2Fb", [200], {"id": "a/b", "status": "active"}, id="a quoted slash is part of the id"),
    ],
)
async def test_what_the_stub_answers_depends_on_the_id(http, url, stub, *, user_id, statuses, body):
    for status in statuses:
        async with http.get(URL(f"{url}/v1/users/{user_id}", encoded=True)) as response:
            assert response.status == status
            last = await response.json() if status != 503 else None
    assert last == body
    assert sum(stub.requests.values()) == len(statuses)


async def test_a_slow_user_takes_its_time_and_the_base_latency(http, clock):
    loop = asyncio.get_running_loop()
    async with running(Stub(latency_ms=30)) as url:
        start = loop.time()
        async with http.get(f"{url}/v1/users/slow-40-ann") as response:
            assert response.status == 200
    assert loop.time() - start >= 0.07


@pytest.mark.parametrize(
    ("mode", "status"),
    [("500", 500), ("429", 429), ("401", 401), ("403", 403), ("redirect", 302), ("garbage", 200), ("ok", 200)],
)
async def test_a_mode_is_switched_while_it_runs(http, url, mode, status):
    async with http.put(f"{url}/mode", json={"mode": mode, "retry_after_s": 7}) as response:
        assert await response.json() == {"mode": mode, "retry_after_s": 7}
    async with http.get(f"{url}/v1/users/ann", allow_redirects=False) as response:
        assert response.status == status
        assert response.headers.get("Retry-After") == ("7" if mode == "429" else None)
    async with http.get(f"{url}/mode") as response:
        assert (await response.json())["mode"] == mode


async def test_reset_breaks_the_connection(http, url, stub):
    stub.mode = Mode.RESET
    with pytest.raises(aiohttp.ClientConnectionError):
        await http.get(f"{url}/v1/users/ann")


async def test_drip_begins_a_right_answer_and_does_not_hurry(http, url, stub):
    stub.mode = Mode.DRIP
    async with http.get(f"{url}/v1/users/ann") as response:
        assert await response.content.readexactly(2) == b'{"'
        assert not response.content.at_eof()


async def test_huge_is_huge(http, url, stub):
    stub.mode = Mode.HUGE
    async with http.get(f"{url}/v1/users/ann") as response:
        assert response.content_length is not None
        assert response.content_length > 2**20
        await response.content.readexactly(2**20)


@pytest.mark.parametrize("body", [b"", b"hang", b'{"mode": "dance"}', b'{"mode": "ok", "more": 1}'])
async def test_a_mode_that_is_none_is_refused_with_the_list(http, url, stub, body):
    async with http.put(f"{url}/mode", data=body) as response:
        assert response.status == 422
        assert "hang" in await response.text()
    assert stub.mode is Mode.OK


async def test_stopping_does_not_wait_for_lookups_that_hang(http, stub, until):
    stub.mode = Mode.HANG
    async with running(stub) as url:
        hanging = [asyncio.create_task(http.get(f"{url}/v1/users/u{n}")) for n in range(3)]
        await until(lambda: len(stub.requests) == 3)
        stopping = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - stopping < 2
    answers = await asyncio.gather(*hanging, return_exceptions=True)
    assert all(isinstance(answer, aiohttp.ClientError) for answer in answers)


async def test_the_books_of_the_stub_are_bounded(stub):
    for n in range(USERS_MAX + 10):
        stub._count(f"u{n}")
    assert len(stub.requests) == USERS_MAX


async def test_serving_ends_when_it_is_cancelled(http):
    ready = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve_stub("127.0.0.1", 0, ready=ready.set_result))
    async with http.get(f"{await ready}/v1/users/ann") as response:
        assert response.status == 200
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
