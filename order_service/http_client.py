"""The one way to call another service over HTTP, bounded in time and in size.

A request is sent once: its callers have policies of their own for retries. A redirect is a response like any other,
because its target must not get the credential. Cookies are ignored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextvars import ContextVar
from http import HTTPStatus
from pathlib import Path
from ssl import SSLCertVerificationError, SSLContext, SSLError, create_default_context
from types import MappingProxyType
from typing import Final, Protocol
from urllib.parse import urlsplit

import aiohttp
from aiohttp.typedefs import StrOrURL
from msgspec import Struct

from order_service.errors import NoResponse, NoResponseInTime, ResponseTooLong, SetupError
from order_service.tls_files import FileContext

HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "order-service"}
HOST: Final = re.compile(r"[a-z0-9._:-]{1,255}", re.IGNORECASE)
TRACE_HEADERS: Final[ContextVar[Mapping[str, str]]] = ContextVar("trace headers", default=MappingProxyType({}))
"""The trace to which the requests of a task belong, as their headers have it; empty if it is not recorded."""
MEDIA_TYPE: Final = re.compile(r"[a-z0-9.+/-]{1,100}", re.IGNORECASE)


class TokenSource(Protocol):
    """A source of access tokens that change: see `access_tokens`."""

    async def token(self) -> str:
        """Return an access token that is valid for some time yet. Raises NoToken."""

    def refused(self, token: str) -> None:
        """Record that a server refused this token, so that the next one is another."""

    async def close(self) -> None:
        """Release what the source holds. Closing twice is allowed."""


class Reply(Struct, frozen=True):
    """A response. `body` is empty if it was not read, and the texts are if their header is missing."""

    status: int
    body: bytes
    retry_after: str
    date: str = ""
    location: str = ""
    content_type: str = ""
    content_encoding: str = ""

    @property
    def summary(self) -> str:
        """What an unexpected response is: its status, the target's host of a redirect, type and coding of a body."""
        if 300 <= self.status < 400 and self.location:
            return f"status {self.status}, a redirect to {_host(self.location)}"
        media_type = self.content_type.partition(";")[0].strip()
        body = f" with {media_type}" if MEDIA_TYPE.fullmatch(media_type) else ""
        encoded = f" in {self.content_encoding}" if MEDIA_TYPE.fullmatch(self.content_encoding) else ""
        return f"status {self.status}{body}{encoded}"


def _host(location: str) -> str:
    """Return the host and port that a redirect leads to; its path and query may hold a secret."""
    try:
        host = urlsplit(location).netloc.rpartition("@")[2]
    except ValueError:
        return "an invalid URL"
    if not host:
        return "another path of the same host"
    return host if HOST.fullmatch(host) else "an invalid URL"


def tls_context(prefix: str, ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> SSLContext | None:
    """Return the TLS context with the CAs of a file and a client certificate, or None if neither is set.

    The file's CAs are trusted beside the system's: the token endpoint of a service may have a public certificate.
    Without a key file, the certificate's file holds the key. Changed files are read again for new connections. Raises
    SetupError, which names the setting: `prefix` is what stands before `CAFILE`, `CERTFILE` and `KEYFILE`.
    """
    if key_file is not None and cert_file is None:
        raise SetupError(f"{prefix}KEYFILE is set without {prefix}CERTFILE: set both")
    if ca_file is None and cert_file is None:
        return None
    return FileContext([ca_file, cert_file, key_file], lambda: _read_tls(prefix, ca_file, cert_file, key_file))


def _read_tls(prefix: str, ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> SSLContext:
    """Return a context with the present contents of the files. Raises SetupError, which names the setting."""
    context = create_default_context()
    try:
        if ca_file is not None:
            context.load_verify_locations(ca_file)
    except OSError as error:  # SSLError is one
        raise SetupError(f"{prefix}CAFILE {ca_file} is not a file of PEM certificates: {_cause(error)}") from error
    if cert_file is not None:
        files = f"{prefix}CERTFILE {cert_file}" + (f" with {prefix}KEYFILE {key_file}" if key_file else "")
        try:
            context.load_cert_chain(cert_file, key_file, password=_no_password)
        except (OSError, ValueError) as error:
            raise SetupError(f"{files} is not a PEM certificate and its unencrypted key: {_cause(error)}") from error
    return context


def _no_password() -> str:
    """Refuse an encrypted key, for which OpenSSL would ask the terminal."""
    raise ValueError("the key is encrypted")


def _cause(error: Exception) -> str:
    """Return what the system or OpenSSL says of an error."""
    if isinstance(error, SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, SSLError):
        return (error.reason or "TLS failed").replace("_", " ").lower()
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error)


class HttpClient:
    """A client of one service, to be made on a running event loop and closed.

    `timeout_s` bounds a request and its response together; with None, the caller has a timeout of its own. The body of
    a response other than 200 is read only if `reads_errors`. `authorization` is the value of that header, or a source
    of bearer tokens, which has a time limit of its own and is closed with this client. `ssl_context` is for https; by
    default, the system's CAs verify the server. With `uses_proxy`, requests go through the proxy that the environment
    names (`http_proxy`, `no_proxy`).
    """

    def __init__(
        self,
        *,
        timeout_s: float | None,
        body_max_bytes: int,
        authorization: str | TokenSource = "",
        headers: Mapping[str, str] | None = None,
        reads_errors: bool = False,
        keeps_alive: bool = True,
        connections_max: int = 100,
        uses_proxy: bool = False,
        ssl_context: SSLContext | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._body_max_bytes = body_max_bytes
        self._reads_errors = reads_errors
        self._tokens = None if isinstance(authorization, str) else authorization
        credential = {"Authorization": authorization} if isinstance(authorization, str) and authorization else {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=connections_max, force_close=not keeps_alive, ssl=True if ssl_context is None else ssl_context
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # else the limit would bound the bytes sent, not the memory
            headers={**HEADERS, **(headers or {}), **credential},
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            middlewares=(_send_once,),
            trust_env=uses_proxy,
        )

    async def close(self) -> None:
        """Close all connections, and the source of tokens."""
        await self._session.close()
        if self._tokens is not None:
            await self._tokens.close()

    async def request(self, method: str, url: StrOrURL, data: bytes | None = None) -> Reply:
        """Send a request and return the response, whatever its status.

        Raises NoResponse if the connection fails, NoResponseInTime after `timeout_s`, ResponseTooLong for a body of
        more than `body_max_bytes`, and NoToken without an access token.
        """
        if self._tokens is None:
            return await self._send(method, url, data, None)
        token = await self._tokens.token()
        reply = await self._send(method, url, data, {"Authorization": f"Bearer {token}"})
        if reply.status == HTTPStatus.UNAUTHORIZED:
            self._tokens.refused(token)
        return reply

    async def _send(self, method: str, url: StrOrURL, data: bytes | None, headers: dict[str, str] | None) -> Reply:
        if trace_headers := TRACE_HEADERS.get():
            headers = {**trace_headers, **(headers or {})}
        try:
            async with self._session.request(
                method, url, data=data, headers=headers, allow_redirects=False
            ) as response:
                is_read = response.status == HTTPStatus.OK or self._reads_errors
                body = await self._body(response) if is_read else b""
                return Reply(
                    response.status,
                    body,
                    response.headers.get("Retry-After", ""),
                    response.headers.get("Date", ""),
                    response.headers.get("Location", ""),
                    response.headers.get("Content-Type", ""),
                    response.headers.get("Content-Encoding", ""),
                )
        except TimeoutError as error:
            raise NoResponseInTime(f"no response within {self._timeout_s} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _no_response(error) from error

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > self._body_max_bytes:
                raise ResponseTooLong(f"the body has more than {self._body_max_bytes} bytes")
        return bytes(body)


async def _send_once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Prevent aiohttp's own retry of a request on a reused connection, which it makes for these two errors."""
    try:
        return await send(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _no_response(error) from error


def _no_response(error: Exception) -> NoResponse:
    """Return the error of a connection that failed, with its cause but without its address."""
    cause = ""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = f"the certificate is not trusted ({_cause(error.certificate_error)})"
    elif isinstance(error, aiohttp.ClientConnectorDNSError):
        cause = "the name of the host cannot be resolved"
    elif isinstance(error, aiohttp.ClientConnectorError):
        cause = _cause(error.os_error)
    elif isinstance(error, aiohttp.ServerDisconnectedError):
        cause = "the server closed it without a response"
    elif isinstance(error, OSError):
        cause = _cause(error.__cause__ if isinstance(error.__cause__, SSLError) else error)
    elif isinstance(error, aiohttp.ClientPayloadError):
        cause = "the body was cut short"
    elif isinstance(error, aiohttp.ClientResponseError):
        cause = "the response is not HTTP"
    return NoResponse("the connection failed" + (f": {cause}" if cause else ""))
