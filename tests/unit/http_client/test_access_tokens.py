from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from structlog.testing import capture_logs

from order_service.access_tokens import TOKEN_MAX, ClientCredentials, FileToken
from order_service.errors import NoToken
from tests.support.token_endpoint import TokenEndpoint

SECRET = "s3cr3t/+ &:ü"


@pytest.fixture
def endpoint():
    return TokenEndpoint()


@pytest.fixture
async def url(endpoint):
    async with endpoint.serving() as url:
        yield url


@pytest.fixture
async def open_source(url, clock):
    """Make sources of tokens that are closed at the end."""
    async with AsyncExitStack() as stack:

        def make(token_url=url, **options):
            source = ClientCredentials(token_url, "orders", SECRET, clock=clock, **options)
            stack.push_async_callback(source.close)
            return source

        yield make


async def reason(source) -> str:
    with pytest.raises(NoToken) as refused:
        await source.token()
    return str(refused.value)


# A file


@pytest.mark.parametrize("content", ["abc.def", "abc.def\n", "  abc.def\r\n", pytest.param("x" * TOKEN_MAX, id="long")])
async def test_a_file_is_a_token_without_the_space_around_it(tmp_path, content):
    path = tmp_path / "token"
    path.write_text(content)
    assert await FileToken(path).token() == content.strip()


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"a b", b"a\nb", "ü".encode(), b"a\x00", pytest.param(b"x" * (TOKEN_MAX + 1), id="too long")],
)
async def test_a_file_with_anything_else_is_no_token_and_is_not_shown(tmp_path, content):
    path = tmp_path / "token"
    path.write_bytes(content)
    line = f"the token file {path} does not hold one line of 1 to {TOKEN_MAX} printable ASCII characters"
    assert await reason(FileToken(path)) == line


async def test_a_missing_file_is_named_and_read_once_it_is_there(tmp_path):
    path = tmp_path / "token"
    source = FileToken(path)
    assert await reason(source) == f"the token file {path} cannot be read: No such file or directory"
    path.write_text("abc")
    assert await source.token() == "abc"


async def test_a_file_is_read_again_a_second_after_it_changed(tmp_path, clock):
    path = tmp_path / "token"
    path.write_text("first")
    source = FileToken(path, clock=clock)
    assert await source.token() == "first"
    (tmp_path / "next").write_text("other")
    (tmp_path / "next").replace(path)  # as Kubernetes does it
    assert await source.token() == "first"
    clock.now += 1
    assert await source.token() == "other"
    path.unlink()
    clock.now += 1
    assert "cannot be read" in await reason(source)


# The client credentials grant


async def test_a_token_is_requested_as_rfc_6749_says(open_source, endpoint):
    source = open_source(scope="users.read users.list", audience="https://users.example")
    assert await source.token() == "token-1"
    assert endpoint.credentials == [("orders", SECRET)]
    assert endpoint.forms == [
        {
            "grant_type": "client_credentials",
            "scope": "users.read users.list",
            "audience": "https://users.example",
        }
    ]


async def test_the_credentials_go_into_the_body_if_asked(open_source, endpoint):
    await open_source(in_body=True).token()
    assert endpoint.credentials == [()]
    assert endpoint.forms == [{"grant_type": "client_credentials", "client_id": "orders", "client_secret": SECRET}]


async def test_a_token_is_kept_and_replaced_before_its_end(open_source, endpoint, clock, until):
    source = open_source()
    assert [await source.token() for _ in range(3)] == ["token-1"] * 3
    clock.now += 0.74 * 3600
    assert await source.token() == "token-1"
    assert len(endpoint.forms) == 1
    clock.now += 0.02 * 3600
    assert await source.token() == "token-1"  # callers do not wait for the next one
    await until(lambda: len(endpoint.forms) == 2 and source._flight is None)
    assert await source.token() == "token-2"


async def test_all_who_need_a_token_share_one_request(open_source, endpoint):
    source = open_source()
    assert await asyncio.gather(*(source.token() for _ in range(50))) == ["token-1"] * 50
    assert len(endpoint.forms) == 1


async def test_cancelling_one_who_waits_does_not_end_the_request(open_source, endpoint, until):
    source, answering = open_source(), endpoint.hang()
    first, second = (asyncio.create_task(source.token()) for _ in range(2))
    await until(lambda: endpoint.forms)
    first.cancel()
    answering.set()
    assert await second == "token-1"


async def test_a_valid_token_is_used_while_its_endpoint_is_down(open_source, endpoint, clock, until):
    source = open_source()
    await source.token()
    endpoint.answers(503, b"")
    clock.now += 0.8 * 3600
    with capture_logs() as logs:
        assert await source.token() == "token-1"
        await until(lambda: source._fault)
        for _ in range(3):
            assert await source.token() == "token-1"
        assert len(endpoint.forms) == 2  # not again at once
        clock.now += 0.2 * 3600
        assert "status 503" in await reason(source)
        clock.now += 5
        endpoint.answer = None
        assert await source.token() == "token-4"
    assert [entry["event"] for entry in logs] == ["Access token renewal failed; the current token is still valid."]


@pytest.mark.parametrize("expires_in", [None, 60, "3599", 3599.5, 10**12])
async def test_a_lifetime_is_read_however_it_is_written(open_source, endpoint, clock, expires_in):
    endpoint.expires_in = expires_in
    source = open_source()
    assert await source.token() == "token-1"
    clock.now += 44
    assert await source.token() == "token-1"


async def test_a_short_lifetime_ends_a_quarter_earlier(open_source, endpoint, clock):
    endpoint.expires_in = 60
    source = open_source()
    await source.token()
    clock.now += 45
    assert await source.token() == "token-2"


@pytest.mark.parametrize(
    ("status", "body", "headers", "why"),
    [
        pytest.param(
            401,
            {"error": "invalid_client"},
            {},
            "status 401 with application/json, error invalid_client",
            id="a wrong secret",
        ),
        pytest.param(
            400, {"error": f"a {SECRET}"}, {}, "status 400 with application/json", id="an error that is no code"
        ),
        pytest.param(
            200,
            b"<html>",
            {"Content-Type": "text/html"},
            "status 200 with text/html, without a JSON object as its body",
            id="a page",
        ),
        pytest.param(
            302,
            b"",
            {"Location": "https://login.example/?secret=1"},
            "status 302, a redirect to login.example, without a JSON object as its body",
            id="a redirect",
        ),
        pytest.param(
            200, b"[]", {}, "status 200 with application/json, without a JSON object as its body", id="a list"
        ),
        pytest.param(200, {}, {}, "its access_token is missing, or is not printable ASCII", id="no token"),
        pytest.param(
            200, {"access_token": "a\nb"}, {}, "its access_token is missing, or is not printable ASCII", id="two lines"
        ),
        pytest.param(
            200, {"access_token": "a", "token_type": "mac"}, {}, "its token_type is not Bearer", id="another type"
        ),
        pytest.param(
            200, {"access_token": "a", "expires_in": "soon"}, {}, "its expires_in is not a number", id="no number"
        ),
        pytest.param(200, {"access_token": "a", "expires_in": 0}, {}, "its expires_in is not above 0", id="expired"),
        pytest.param(200, {"access_token": "a", "expires_in": "nan"}, {}, "its expires_in is not above 0", id="nan"),
        pytest.param(200, b" " * 100_000, {}, "the body has more than 65536 bytes", id="too long"),
    ],
)
async def test_anything_else_is_no_token_and_says_why(open_source, endpoint, url, status, body, headers, why):
    endpoint.answers(status, body, **headers)
    source = open_source()
    host = url.split("/")[2]
    with capture_logs() as logs:
        assert await reason(source) == f"the token endpoint at {host} returned no access token: {why}"
    assert "s3cr3t" not in f"{logs}{source!r}"


async def test_an_endpoint_that_is_away_is_not_asked_again_at_once(open_source, endpoint, clock, unused_tcp_port):
    source = open_source(f"http://127.0.0.1:{unused_tcp_port}/token")
    assert (await reason(source)).endswith("the connection failed: Connection refused")
    endpoint.answers(503, b"")
    source = open_source()
    for _ in range(3):
        await reason(source)
    assert len(endpoint.forms) == 1
    clock.now += 5
    endpoint.answer = None
    assert await source.token() == "token-2"


async def test_a_token_that_was_refused_is_replaced_unless_it_is_new(open_source, endpoint, clock):
    source = open_source()
    token = await source.token()
    source.refused(token)
    assert await source.token() == token
    clock.now += 10
    source.refused("another")
    assert await source.token() == token
    source.refused(token)
    assert await source.token() == "token-2"


async def test_closing_ends_the_request_and_all_who_wait_for_it(open_source, endpoint, until):
    source = open_source()
    endpoint.hang()
    waiting = asyncio.create_task(source.token())
    await until(lambda: endpoint.forms)
    await source.close()
    with pytest.raises(NoToken):
        await waiting
    assert await reason(source) == "the source of access tokens is closed"
    await source.close()  # a second time does nothing
