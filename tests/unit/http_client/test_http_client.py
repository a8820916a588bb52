from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from order_service.errors import NoResponse, NoToken, SetupError
from order_service.http_client import HttpClient, Reply, tls_context
from tests.support.certificates import CertificateAuthority
from tests.support.serving import serving


@asynccontextmanager
async def answering(answer, ssl_context=None):
    """Serve one answer at every path, and yield the URL."""
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with serving(app, ssl_context) as url:
        yield f"{url}/"


@asynccontextmanager
async def calling(**options):
    client = HttpClient(timeout_s=10.0, body_max_bytes=1024, **options)
    try:
        yield client
    finally:
        await client.close()


async def failure(url, **options) -> str:
    async with calling(**options) as client:
        with pytest.raises(NoResponse) as failed:
            await client.request("GET", url)
    return str(failed.value)


# What a response is


@pytest.mark.parametrize(
    ("reply", "summary"),
    [
        (Reply(503, b"", ""), "status 503"),
        (Reply(200, b"", "", content_type="text/html; charset=utf-8"), "status 200 with text/html"),
        (Reply(200, b"", "", content_type="a secret\n"), "status 200"),
        (Reply(200, b"", "", content_type="text/json", content_encoding="gzip"), "status 200 with text/json in gzip"),
        (Reply(302, b"", "", location="https://sso.example:8443/in?t=1"), "status 302, a redirect to sso.example:8443"),
        (Reply(302, b"", "", location="https://me:secret@sso.example"), "status 302, a redirect to sso.example"),
        (Reply(302, b"", "", location="/login?t=1"), "status 302, a redirect to another path of the same host"),
        (Reply(302, b"", "", location="http://[/"), "status 302, a redirect to an invalid URL"),
        (Reply(302, b"", "", location="http://a b\x1b/"), "status 302, a redirect to an invalid URL"),
        (Reply(201, b"", "", location="https://users.example/1"), "status 201"),
    ],
    ids=lambda value: value if isinstance(value, str) else "reply",
)
def test_an_unexpected_response_is_named_as_what_it_is(reply, summary):
    assert reply.summary == summary


# A token that changes


class Tokens:
    """A source whose token a server may refuse."""

    def __init__(self):
        self.number = 1
        self.is_closed = False

    async def token(self):
        if self.number > 2:
            raise NoToken("there is no other token")
        return f"token-{self.number}"

    def refused(self, token):
        assert token == f"token-{self.number}"
        self.number += 1

    async def close(self):
        self.is_closed = True


async def test_each_request_carries_the_token_of_its_time():
    seen = []

    async def answer(request):
        seen.append(request.headers.get("Authorization"))
        return web.Response(status=401)

    tokens = Tokens()
    async with answering(answer) as url, calling(authorization=tokens) as client:
        for _ in range(2):
            await client.request("GET", url)
        with pytest.raises(NoToken, match="there is no other token"):
            await client.request("GET", url)
    assert seen == ["Bearer token-1", "Bearer token-2"]
    assert tokens.is_closed


# Why there is no response


async def test_a_connection_that_fails_says_why(unused_tcp_port):
    assert await failure(f"http://127.0.0.1:{unused_tcp_port}/") == "the connection failed: Connection refused"
    assert await failure("http://missing.invalid/") == (
        "the connection failed: the name of the host cannot be resolved"
    )


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"", "the connection failed: the server closed it without a response"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the connection failed: the response is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "the connection failed: the body was cut short"),
    ],
)
async def test_a_server_that_breaks_off_or_speaks_something_else_is_named(sent, why):
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        assert await failure(f"http://{host}:{port}/") == why


# TLS


@pytest.fixture
def authority(tmp_path):
    return CertificateAuthority(tmp_path)


@pytest.fixture
def server_context(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server"))
    return context


async def peer(request):
    certificate = request.transport.get_extra_info("peercert")
    return web.Response(text=str(certificate and certificate["subject"]))


async def test_a_server_is_trusted_only_by_the_ca_file(authority, server_context, tmp_path):
    async with answering(peer, server_context) as url:
        async with calling(ssl_context=tls_context("X_", authority.file, None, None)) as client:
            assert (await client.request("GET", url)).status == 200
        another = tls_context("X_", CertificateAuthority(tmp_path, "another").file, None, None)
        for options in ({}, {"ssl_context": another}):
            assert (await failure(url, **options)).startswith("the connection failed: the certificate is not trusted (")


async def test_a_client_certificate_is_sent_to_a_server_that_requires_one(authority, server_context):
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.load_verify_locations(authority.file)
    cert_file, key_file = authority.issue("orders")
    async with answering(peer, server_context) as url:
        async with calling(ssl_context=tls_context("X_", authority.file, cert_file, key_file)) as client:
            assert b"orders" in (await client.request("GET", url)).body
        why = await failure(url, ssl_context=tls_context("X_", authority.file, None, None))
        assert why.startswith("the connection failed: ")  # the server may have closed it before its alert is read


async def test_replaced_files_are_used_for_the_next_connection(authority, server_context, tmp_path):
    """Also by a client that runs. What cannot be used is reported, and the files that were read last stay in use."""
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.load_verify_locations(authority.file)
    files = tmp_path / "tls.crt", tmp_path / "tls.key"
    _put(authority.issue("first"), files)
    async with answering(peer, server_context) as url:
        context = tls_context("X_", authority.file, *files)
        async with calling(ssl_context=context, keeps_alive=False) as client:
            assert b"first" in (await client.request("GET", url)).body
            _put(authority.issue("second"), files)
            assert b"second" in (await client.request("GET", url)).body
            files[1].write_text("no key")
            with capture_logs() as lines:
                assert b"second" in (await client.request("GET", url)).body
            assert "tls.crt with X_KEYFILE" in lines[0]["why"]


def _put(issued, files):
    for file, new in zip(files, issued, strict=True):
        new.replace(file)


async def test_a_certificate_and_its_key_may_stand_in_one_file(authority, tmp_path):
    cert_file, key_file = authority.issue("orders")
    both = tmp_path / "both.pem"
    both.write_bytes(cert_file.read_bytes() + key_file.read_bytes())
    assert tls_context("X_", None, both, None) is not None
    assert tls_context("X_", None, None, None) is None


def test_files_that_cannot_be_used_are_named_with_their_settings(authority, tmp_path):
    cert_file, key_file = authority.issue("orders")
    _, other_key = authority.issue("other")
    encrypted_cert, encrypted_key = authority.issue("encrypted", password="secret")
    missing, empty = tmp_path / "missing.pem", tmp_path / "empty.pem"
    empty.touch()
    for files, line in [
        ((missing, None, None), f"X_CAFILE {missing} is not a file of PEM certificates: No such file or directory"),
        ((empty, None, None), f"X_CAFILE {empty} is not a file of PEM certificates: "),
        ((None, None, key_file), "X_KEYFILE is set without X_CERTFILE: set both"),
        ((None, cert_file, None), f"X_CERTFILE {cert_file} is not a PEM certificate and its unencrypted key: "),
        (
            (None, cert_file, other_key),
            f"X_CERTFILE {cert_file} with X_KEYFILE {other_key} is not a PEM certificate and its unencrypted key: key",
        ),
        ((None, missing, key_file), f"X_CERTFILE {missing} with X_KEYFILE {key_file} is not a PEM certificate and"),
        (
            (None, encrypted_cert, encrypted_key),
            f"X_CERTFILE {encrypted_cert} with X_KEYFILE {encrypted_key} is not a PEM certificate and",
        ),
    ]:
        with pytest.raises(SetupError) as refused:
            tls_context("X_", *files)
        assert str(refused.value).startswith(line)
