"""Where the keys that verify tokens come from: a file, or a URL with a JWKS document.

A URL is fetched every ten minutes, and when a token needs a key that is unknown; only then does a request wait for the
fetch. While fetches fail, the known keys stay valid for a day.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from contextvars import Context
from http import HTTPStatus
from pathlib import Path
from typing import Final, Protocol

import structlog
from msgspec import Struct
from prometheus_client import Counter

from order_service.errors import KeysAway, SetupError, Unauthorized, Unavailable
from order_service.http_client import HttpClient
from order_service.web.access.jwks import KEYS_MAX, Key, KeySet, read_jwks, read_keys

FETCHES = Counter("orders_jwks_fetches", "Fetches of the issuer's keys, by outcome: ok or failed.", ["outcome"])
ACCEPT: Final = {"Accept": "application/jwk-set+json, application/json"}
"""Kubernetes serves its keys only as the first type. Source: RFC 7517, 8.5.2."""

log = structlog.get_logger()


class KeySource(Protocol):
    """A source of keys. `find` returns the keys to try for a token, except those that were tried before."""

    async def start(self) -> None:
        """Start what keeps the keys up to date."""

    async def close(self) -> None:
        """Stop it."""

    async def find(self, kid: str | None, algorithm: str, tried: Collection[Key] = ()) -> tuple[Key, ...]:
        """Return one or more keys. Raises Unauthorized if there are none, KeysAway if that cannot be known."""

    def fault(self) -> str | None:
        """Return why no token can be verified, or None."""


class KeyFile:
    """The keys of a file, read again when it changes; while the file is unusable, the keys read before stay valid.

    Checking the file takes microseconds, so it is done for every token and on the loop. Raises SetupError if the file
    is unusable at the start.
    """

    def __init__(self, path: Path, algorithms: Collection[str]) -> None:
        self._path = path
        self._algorithms = algorithms
        self._keys = KeySet()
        self._stamp: tuple[int, ...] = ()
        self._content_fault: str | None = None  # what is wrong with the content that was read last
        self._logged_fault = self._refresh()
        if self._logged_fault is not None:
            raise SetupError(f"ORDERS_JWT_KEY_FILE {path}: {self._logged_fault}")

    @property
    def keys(self) -> KeySet:
        """The keys that were read last."""
        return self._keys

    async def start(self) -> None:
        """Do nothing: the file was read at construction."""

    async def close(self) -> None:
        """Do nothing: there are no resources to close."""

    async def find(self, kid: str | None, algorithm: str, tried: Collection[Key] = ()) -> tuple[Key, ...]:
        """Return the keys to try. Raises Unauthorized if there are none, KeysAway if the file is unusable."""
        fault = self._refresh()
        self._log_change(fault)
        keys = _untried(self._keys, kid, algorithm, tried)
        if not keys and fault is not None:
            raise KeysAway(f"key file: {fault}")
        if not keys:
            raise _no_key(kid, tried)
        return keys

    def fault(self) -> None:
        """Return None: the keys that were read before stay valid."""

    def _refresh(self) -> str | None:
        """Read the file if it has changed; return what is wrong with it, or None."""
        try:
            stat = self._path.stat()
            stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)  # chmod changes only the last
            if stamp != self._stamp:
                self._content_fault = self._read()
                self._stamp = stamp  # from before reading, so that a write in between is noticed
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return self._content_fault

    def _read(self) -> str | None:
        with self._path.open("rb") as file:
            data = file.read(KEYS_MAX + 1)
        try:
            self._keys = read_keys(data, self._algorithms)
        except KeysAway as error:
            return str(error)
        return None

    def _log_change(self, fault: str | None) -> None:
        """Log a new or cleared fault, once."""
        if fault == self._logged_fault:
            return
        self._logged_fault = fault
        if fault is None:
            log.info("Key file is usable again.")
        else:
            log.error("Key file is unusable; keeping the keys read before.", fault=fault)


class JwksPolicy(Struct, frozen=True, kw_only=True):
    """The intervals for fetching keys from a URL. One fetch runs at a time, and a failed one is not retried at once."""

    fresh_s: float = 600.0  # refresh interval: how long a withdrawn key stays valid
    again_s: float = 10.0  # minimum interval after a failure, or for an unknown key
    keep_s: float = 24 * 3600.0  # how long known keys stay valid while fetches fail: a night and a morning
    timeout_s: float = 5.0


POLICY: Final = JwksPolicy()


class KeyServer:
    """The keys of a URL. `find` waits only if it knows no key to try, and then for the fetch in flight."""

    def __init__(
        self,
        url: str,
        algorithms: Collection[str],
        *,
        policy: JwksPolicy = POLICY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._algorithms = algorithms
        self._policy = policy
        self._clock = clock
        self._keys = KeySet()
        self._read_at = self._fetched_at = clock()
        self._fault: str | None = None  # why the last fetch failed
        self._http: HttpClient | None = None
        self._flight: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Start to fetch the keys regularly, without waiting: an unavailable issuer must not block the start."""
        self._http = jwks_client(self._policy.timeout_s)
        self._start_fetch(self._http)

    async def close(self) -> None:
        """Stop the fetches; requests that wait for a key get KeysAway."""
        http, self._http = self._http, None
        if self._flight is not None:
            self._flight.cancel()
            await asyncio.wait((self._flight,))
        if self._timer is not None:
            self._timer.cancel()
        if http is not None:
            await http.close()

    async def find(self, kid: str | None, algorithm: str, tried: Collection[Key] = ()) -> tuple[Key, ...]:
        """Return the keys to try. Raises Unauthorized if the issuer lacks them, KeysAway if the fetch failed."""
        keys = self._known(kid, algorithm, tried)
        if not keys:
            await self._refresh()
            keys = self._known(kid, algorithm, tried)
        if not keys and self._fault is not None:
            raise KeysAway(self._fault)
        if not keys:
            raise _no_key(kid, tried)
        return keys

    def fault(self) -> str | None:
        """Return why no token can be verified, or None while keys are known and valid."""
        if self._keys.keys and self._is_valid():
            return None
        return self._fault or "the keys are being fetched"

    def _known(self, kid: str | None, algorithm: str, tried: Collection[Key]) -> tuple[Key, ...]:
        return _untried(self._keys, kid, algorithm, tried) if self._is_valid() else ()

    def _is_valid(self) -> bool:
        return self._clock() - self._read_at < self._policy.keep_s

    async def _refresh(self) -> None:
        """Wait for the fetch in flight, or for a new one unless the last one started less than `again_s` ago."""
        if self._http is None:
            raise KeysAway("the service is not running")
        flight = self._flight
        if flight is None:
            if self._clock() - self._fetched_at < self._policy.again_s:
                return
            flight = self._start_fetch(self._http)
        await asyncio.wait((flight,))  # `wait` does not cancel the fetch when one request is cancelled
        if flight.cancelled():
            raise KeysAway("the service is stopping")
        flight.result()

    def _start_fetch(self, http: HttpClient) -> asyncio.Task[None]:
        if self._timer is not None:
            self._timer.cancel()
        self._fetched_at = self._clock()
        # It and its timer serve every request, so they must not log in the name of the one that was first.
        self._flight = asyncio.create_task(self._fetch(http), name="JWKS", context=Context())
        return self._flight

    async def _fetch(self, http: HttpClient) -> None:
        """Fetch once, record the outcome, and schedule the next fetch in any case."""
        next_s = self._policy.again_s
        try:
            self._on_success(read_jwks(await fetch_jwks(http, self._url), self._algorithms))
            next_s = self._policy.fresh_s
        except Unavailable as error:
            self._on_failure(str(error))
        finally:
            self._flight = None
            self._timer = asyncio.get_running_loop().call_later(next_s, self._start_fetch, http)

    def _on_success(self, keys: KeySet) -> None:
        FETCHES.labels("ok").inc()
        self._keys = keys
        self._read_at = self._clock()
        if self._fault is not None:
            log.info("JWKS fetch succeeded again.")
        self._fault = None

    def _on_failure(self, fault: str) -> None:
        FETCHES.labels("failed").inc()
        if fault != self._fault:
            log.warning("JWKS fetch failed; known keys stay valid for a day.", fault=fault)
        self._fault = fault


def jwks_client(timeout_s: float = POLICY.timeout_s) -> HttpClient:
    """Return a client for `fetch_jwks`, which keeps no connections: servers close them within ten minutes."""
    return HttpClient(timeout_s=timeout_s, body_max_bytes=KEYS_MAX, headers=ACCEPT, keeps_alive=False)


async def fetch_jwks(http: HttpClient, url: str) -> bytes:
    """Return the document at a URL. Raises KeysAway for another status than 200, and NoResponse."""
    reply = await http.request("GET", url)
    if reply.status != HTTPStatus.OK:
        is_redirect = 300 <= reply.status < 400 and reply.location
        raise KeysAway(reply.summary + (": set ORDERS_JWT_JWKS_URL to its target" if is_redirect else ""))
    return reply.body


def _untried(keys: KeySet, kid: str | None, algorithm: str, tried: Collection[Key]) -> tuple[Key, ...]:
    return tuple(key for key in keys.find(kid, algorithm) if key not in tried)


def _no_key(kid: str | None, tried: Collection[Key]) -> Unauthorized:
    if tried:
        return Unauthorized("the signature fits none of the keys")
    if kid is None:
        return Unauthorized("no key fits the token's algorithm")
    return Unauthorized("no key has the token's key id and fits its algorithm")
