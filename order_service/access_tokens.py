"""Access tokens for other services (RFC 6750): from a file, or from the token endpoint of an identity provider.

A source belongs to one event loop. `HttpClient` takes one as its `authorization`, and closes it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from ssl import SSLContext
from typing import Final
from urllib.parse import quote_plus, urlencode, urlsplit

import aiohttp
import msgspec
import structlog
from msgspec import Struct

from order_service.errors import NoResponse, NoToken
from order_service.http_client import HttpClient, Reply

TOKEN_MAX: Final = 32 * 1024
"""The longest accepted token, in characters."""
BODY_MAX: Final = 2 * TOKEN_MAX
TOKEN: Final = re.compile(r"[\x21-\x7e]+")
ERROR_CODE: Final = re.compile(r"[a-z0-9_.-]{1,64}", re.IGNORECASE)

STAT_EVERY_S: Final = 1.0
TIMEOUT_S: Final = 5.0
FAILED_PAUSE_S: Final = 5.0
"""The pause after a request for a token that failed."""
REFUSED_PAUSE_S: Final = 10.0
"""How old a token must be to be replaced because a server refused it."""
LIFETIME_S: Final = 300.0
"""How long a token is used whose endpoint does not say how long it is valid (`expires_in` is only recommended)."""
MARGIN_S: Final = 30.0
"""How long before its end a token is no longer used; a quarter of its lifetime, if that is shorter."""

log = structlog.get_logger()


class FileToken:
    """The token in a file, such as one that Kubernetes projects. It is read again when the file has changed."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._token = ""
        self._stamp: tuple[int, ...] = ()
        self._look_at = clock()

    async def token(self) -> str:
        """Return the token. Raises NoToken if the file cannot be read, or does not hold one line of printable ASCII."""
        if self._clock() >= self._look_at or not self._token:
            self._refresh()
            self._look_at = self._clock() + STAT_EVERY_S
        return self._token

    def refused(self, token: str) -> None:
        """Do nothing: a file that has changed is noticed within a second."""

    async def close(self) -> None:
        """Do nothing: there are no resources to close."""

    def _refresh(self) -> None:
        """Read the file if it has changed. This takes microseconds, so it is done on the loop."""
        try:
            stat = self._path.stat()
            stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            if stamp != self._stamp or not self._token:
                self._token, self._stamp = "", stamp  # from before reading, so that a write in between is noticed
                with self._path.open("rb") as file:
                    self._token = _read_token(file.read(TOKEN_MAX + 1), self._path)
        except OSError as error:
            self._token = ""
            raise NoToken(f"the token file {self._path} cannot be read: {error.strerror}") from error


def _read_token(data: bytes, path: Path) -> str:
    token = data.decode("latin-1").strip()
    if len(data) > TOKEN_MAX or TOKEN.fullmatch(token) is None:
        raise NoToken(f"the token file {path} does not hold one line of 1 to {TOKEN_MAX} printable ASCII characters")
    return token


class TokenResponse(Struct):
    """The response of a token endpoint (RFC 6749, 5.1 and 5.2). Some servers write `expires_in` as a string."""

    access_token: str | None = None
    token_type: str | None = None
    expires_in: float | str | None = None
    error: str | None = None


class ClientCredentials:
    """Tokens by the client credentials grant (RFC 6749, 4.4), requested when one is needed, and one request at a time.

    A token is replaced in the background after three quarters of its lifetime, so callers wait only for the first one.
    The credentials go into the `Authorization` header, or with `in_body` into the body (RFC 6749, 2.3.1). `token_url`
    must not hold any.
    """

    def __init__(
        self,
        token_url: str,
        client_id: str,
        client_secret: str,
        *,
        scope: str = "",
        audience: str = "",
        in_body: bool = False,
        ssl_context: SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        form = {"grant_type": "client_credentials", "scope": scope, "audience": audience}
        self._authorization = ""
        if in_body:
            form |= {"client_id": client_id, "client_secret": client_secret}
        else:
            self._authorization = aiohttp.encode_basic_auth(quote_plus(client_id), quote_plus(client_secret))
        self._body = urlencode({name: value for name, value in form.items() if value}).encode()
        self._url = token_url
        self._host = urlsplit(token_url).netloc
        self._ssl_context = ssl_context
        self._clock = clock
        self._token = ""
        self._fetched_at = 0.0
        self._renew_at = self._usable_until = self._retry_at = clock()
        self._fault = ""  # why the last request failed
        self._flight: asyncio.Task[None] | None = None
        self._is_closed = False

    async def token(self) -> str:
        """Return a token. Raises NoToken if no token can be had within `TIMEOUT_S`."""
        if self._is_closed:
            raise NoToken("the source of access tokens is closed")
        now = self._clock()
        if self._flight is None and now >= self._renew_at and now >= self._retry_at:
            self._flight = asyncio.create_task(self._fetch(), name="access token")
        if now < self._usable_until:
            return self._token
        if self._flight is not None:
            await self._wait_for(self._flight)
        if self._clock() >= self._usable_until:
            raise NoToken(self._fault or f"the token endpoint at {self._host} returned an expired token")
        return self._token

    def refused(self, token: str) -> None:
        """Replace a token that a server refused, unless it is new: then another one would be refused as well."""
        if token == self._token and self._clock() - self._fetched_at >= REFUSED_PAUSE_S:
            self._renew_at = self._usable_until = self._clock()

    async def close(self) -> None:
        """Cancel the request under way. Callers that wait for it get NoToken."""
        self._is_closed = True
        flight = self._flight
        if flight is not None:
            flight.cancel()
            await asyncio.wait((flight,))

    async def _wait_for(self, flight: asyncio.Task[None]) -> None:
        await asyncio.wait((flight,))  # `wait` does not cancel the request when one caller is cancelled
        if flight.cancelled():
            raise NoToken("the source of access tokens was closed")
        flight.result()

    async def _fetch(self) -> None:
        """Request a token once, and record the outcome."""
        asked_at = self._clock()
        try:
            token, lifetime_s = self._read(await self._request())
        except NoResponse as error:  # NoToken, too
            fault = f"the token endpoint at {self._host} returned no access token: {error}"
            if not self._fault and self._clock() < self._usable_until:  # else callers get the error
                log.warning("Access token renewal failed; the current token is still valid.", why=fault)
            self._fault, self._retry_at = fault, self._clock() + FAILED_PAUSE_S
            return
        finally:
            self._flight = None
        self._fault = ""
        self._token, self._fetched_at = token, asked_at
        self._renew_at = asked_at + 0.75 * lifetime_s
        self._usable_until = asked_at + lifetime_s - min(MARGIN_S, 0.25 * lifetime_s)

    async def _request(self) -> Reply:
        http = HttpClient(
            timeout_s=TIMEOUT_S,
            body_max_bytes=BODY_MAX,
            authorization=self._authorization,
            headers={"Content-Type": "application/x-www-form-urlencoded"},
            reads_errors=True,
            keeps_alive=False,
            ssl_context=self._ssl_context,
        )
        try:
            return await http.request("POST", self._url, self._body)
        finally:
            await http.close()

    def _read(self, reply: Reply) -> tuple[str, float]:
        """Return the token and its lifetime in seconds."""
        try:
            response = msgspec.json.decode(reply.body, type=TokenResponse)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:  # all that msgspec raises for bytes
            raise NoToken(f"{reply.summary}, without a JSON object as its body") from error
        if reply.status != HTTPStatus.OK:
            has_code = ERROR_CODE.fullmatch(response.error or "") is not None
            raise NoToken(reply.summary + (f", error {response.error}" if has_code else ""))
        if (response.token_type or "Bearer").lower() != "bearer":
            raise NoToken("its token_type is not Bearer")
        token = response.access_token or ""
        if len(token) > TOKEN_MAX or TOKEN.fullmatch(token) is None:
            raise NoToken("its access_token is missing, or is not printable ASCII")
        return token, _lifetime_s(response.expires_in)


def _lifetime_s(expires_in: float | str | None) -> float:
    if expires_in is None:
        return LIFETIME_S
    try:
        lifetime_s = float(expires_in)
    except ValueError as error:
        raise NoToken("its expires_in is not a number") from error
    if not lifetime_s > 0:  # nor NaN
        raise NoToken("its expires_in is not above 0")
    return lifetime_s
