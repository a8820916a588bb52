"""The one way to call another service over HTTP, bounded in time and in size.

A request is sent once: its callers have policies of their own for retries. A redirect is a response like any other,
because its target must not get the credential. Cookies are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp.typedefs import StrOrURL
from msgspec import Struct

from order_service.errors import NoResponse, NoResponseInTime, ResponseTooLong

HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "order-service"}
HOST: Final = re.compile(r"[a-z0-9._:-]{1,255}", re.IGNORECASE)
MEDIA_TYPE: Final = re.compile(r"[a-z0-9.+/-]{1,100}", re.IGNORECASE)


class Reply(Struct, frozen=True):
    """A response. `body` is empty if it was not read, and the texts are if their header is missing."""

    status: int
    body: bytes
    retry_after: str
    date: str = ""
    location: str = ""
    content_type: str = ""

    @property
    def summary(self) -> str:
        """What an unexpected response is: its status, the target's host of a redirect, and the type of a body."""
        if 300 <= self.status < 400 and self.location:
            return f"status {self.status}, a redirect to {_host(self.location)}"
        media_type = self.content_type.partition(";")[0].strip()
        return f"status {self.status}" + (f" with {media_type}" if MEDIA_TYPE.fullmatch(media_type) else "")


def _host(location: str) -> str:
    """Return the host and port that a redirect leads to; its path and query may hold a secret."""
    try:
        host = urlsplit(location).netloc.rpartition("@")[2]
    except ValueError:
        return "an invalid URL"
    if not host:
        return "another path of the same host"
    return host if HOST.fullmatch(host) else "an invalid URL"


class HttpClient:
    """A client of one service, to be made on a running event loop and closed.

    `timeout_s` bounds a request and its response together; with None, the caller has a timeout of its own. The body of
    a response other than 200 is read only if `reads_errors`. `authorization` is the value of that header. With
    `uses_proxy`, requests go through the proxy that the environment names (`http_proxy`, `no_proxy`).
    """

    def __init__(
        self,
        *,
        timeout_s: float | None,
        body_max_bytes: int,
        authorization: str = "",
        headers: Mapping[str, str] | None = None,
        reads_errors: bool = False,
        keeps_alive: bool = True,
        connections_max: int = 100,
        uses_proxy: bool = False,
    ) -> None:
        self._timeout_s = timeout_s
        self._body_max_bytes = body_max_bytes
        self._reads_errors = reads_errors
        credential = {"Authorization": authorization} if authorization else {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections_max, force_close=not keeps_alive),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # else the limit would bound the bytes sent, not the memory
            headers={**HEADERS, **(headers or {}), **credential},
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            middlewares=(_send_once,),
            trust_env=uses_proxy,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def request(self, method: str, url: StrOrURL, data: bytes | None = None) -> Reply:
        """Send a request and return the response, whatever its status.

        Raises NoResponse if the connection fails, NoResponseInTime after `timeout_s`, and ResponseTooLong for a body of
        more than `body_max_bytes`.
        """
        try:
            async with self._session.request(method, url, data=data, allow_redirects=False) as response:
                is_read = response.status == HTTPStatus.OK or self._reads_errors
                body = await self._body(response) if is_read else b""
                return Reply(
                    response.status,
                    body,
                    response.headers.get("Retry-After", ""),
                    response.headers.get("Date", ""),
                    response.headers.get("Location", ""),
                    response.headers.get("Content-Type", ""),
                )
        except TimeoutError as error:
            raise NoResponseInTime(f"no response within {self._timeout_s} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise NoResponse("the connection failed") from error

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
        raise NoResponse("the connection failed") from error
