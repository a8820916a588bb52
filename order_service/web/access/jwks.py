"""The public keys that verify tokens, from a file or from a URL (JWKS, RFC 7517).

A URL is fetched every ten minutes, and when a token names an unknown key; only then does a request wait for the fetch.
While fetches fail, the known keys stay valid for a day.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Literal

import jwt
import msgspec
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, SECP521R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import AllowedPublicKeys
from msgspec import MsgspecError, Struct
from prometheus_client import Counter

from order_service.errors import KeysAway, SetupError, Unauthorized, Unavailable
from order_service.http_client import HttpClient

FETCHES = Counter("orders_jwks_fetches", "Fetches of the issuer's keys, by outcome: ok or failed.", ["outcome"])

KEYS_MAX: Final = 256 * 1024
RSA_BITS_MIN: Final = 2048
"""Minimum size of an RSA key. Source: RFC 7518, 3.3."""

log = structlog.get_logger()


class Key(Struct, frozen=True):
    """A public key, and the algorithms it may verify: those that the settings allow and that fit its type."""

    public: AllowedPublicKeys
    algorithms: list[str]


class KeySet(Struct, frozen=True):
    """The keys of an issuer by their key id (`kid`), or a single key that needs no id."""

    by_id: dict[str, Key]
    only: Key | None = None

    def find(self, kid: str | None) -> Key | None:
        """Return the key with this id, or None."""
        return self.only or self.by_id.get(kid or "")


class Jwk(Struct):
    """A usable JSON Web Key; others are skipped, such as symmetric keys and encryption keys."""

    kty: Literal["RSA", "EC", "OKP"]
    kid: str
    use: Literal["sig"] | None = None
    alg: str | None = None
    key_ops: list[str] | None = None


class Jwks(Struct):
    """A JWKS document."""

    keys: list[dict[str, Any]]


PARSED_AS: Final = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}
"""The algorithm under which PyJWT parses each key type; `_signatures` returns those that the key can verify."""


def read_jwks(data: bytes, algorithms: Collection[str]) -> KeySet:
    """Return the usable keys of a JWKS document. Raises KeysAway if it holds no usable key."""
    if len(data) > KEYS_MAX:
        raise KeysAway(f"the JWKS document is longer than {KEYS_MAX} bytes")
    try:
        document = msgspec.json.decode(data, type=Jwks)
    except (MsgspecError, UnicodeError, RecursionError) as error:  # every error that msgspec raises for bytes
        raise KeysAway("not a JWKS document") from error
    keys = {kid: key for jwk in document.keys for kid, key in _of_jwk(jwk, algorithms)}
    if not keys:
        raise KeysAway("no key with a kid can verify an algorithm of ORDERS_JWT_ALGORITHMS")
    return KeySet(keys)


def read_pem(data: bytes, algorithms: Collection[str]) -> KeySet:
    """Return the single public key of a PEM file. Raises KeysAway if it is not usable."""
    if data.count(b"-----BEGIN") > 1:  # only the first would be read
        raise KeysAway("more than one key: use a JWKS document")
    try:
        key = _key(load_pem_public_key(data), algorithms)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeysAway("neither a public key in PEM nor a JWKS document") from error
    if not key.algorithms:
        raise KeysAway("the key cannot verify an algorithm of ORDERS_JWT_ALGORITHMS")
    return KeySet({}, only=key)


def _of_jwk(jwk: dict[str, Any], algorithms: Collection[str]) -> list[tuple[str, Key]]:
    """Return the id and the key, or an empty list: an unusable key must not affect the others (RFC 7517, 5)."""
    try:
        parsed = msgspec.convert(jwk, Jwk)
        public = jwt.PyJWK(jwk, PARSED_AS[parsed.kty]).key
    except (msgspec.ValidationError, jwt.PyJWTError, UnsupportedAlgorithm):
        return []
    allowed = [name for name in algorithms if parsed.alg in (None, name)]
    key = _key(public, allowed)
    can_verify = parsed.key_ops is None or "verify" in parsed.key_ops
    return [(parsed.kid, key)] if parsed.kid and can_verify and key.algorithms else []


def _key(public: Any, algorithms: Collection[str]) -> Key:
    return Key(public, [name for name in _signatures(public) if name in algorithms])


def _signatures(public: object) -> tuple[str, ...]:
    """Return the algorithms that fit a public key (RFC 7518, 3.1); none for a private key, which must stay secret."""
    match public:
        case RSAPublicKey(key_size=bits) if bits >= RSA_BITS_MIN:
            return ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
        case EllipticCurvePublicKey(curve=SECP256R1()):
            return ("ES256",)
        case EllipticCurvePublicKey(curve=SECP384R1()):
            return ("ES384",)
        case EllipticCurvePublicKey(curve=SECP521R1()):
            return ("ES512",)
        case Ed25519PublicKey() | Ed448PublicKey():
            return ("EdDSA",)
        case _:
            return ()


class KeyFile:
    """The keys of a file, read again when it changes; while the file is unusable, the keys read before stay valid.

    Checking the file takes microseconds, so it is done for every token and on the loop. Raises SetupError if the file
    is unusable at the start.
    """

    def __init__(self, path: Path, algorithms: Collection[str]) -> None:
        self._path = path
        self._algorithms = algorithms
        self._keys = KeySet({})
        self._stamp: tuple[int, ...] = ()
        self._content_fault: str | None = None  # what is wrong with the content that was read last
        self._logged_fault = self._refresh()
        if self._logged_fault is not None:
            raise SetupError(f"ORDERS_JWT_KEY_FILE {path}: {self._logged_fault}")

    async def start(self) -> None:
        """Do nothing: the file was read at construction."""

    async def close(self) -> None:
        """Do nothing: there are no resources to close."""

    async def find(self, kid: str | None) -> Key:
        """Return the key with this id. Raises Unauthorized if it is missing, KeysAway if the file is unusable."""
        fault = self._refresh()
        self._log_change(fault)
        key = self._keys.find(kid)
        if key is not None:
            return key
        if fault is not None:
            raise KeysAway(f"key file: {fault}")
        raise Unauthorized("the token names a key that is not in the file")

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
        read = read_jwks if data.lstrip().startswith(b"{") else read_pem
        try:
            self._keys = read(data, self._algorithms)
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
    """The keys of a URL. `find` waits only for an unknown key, and then for the fetch in flight."""

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
        self._keys = KeySet({})
        self._read_at = self._fetched_at = clock()
        self._fault: str | None = None  # why the last fetch failed
        self._http: HttpClient | None = None
        self._flight: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Start to fetch the keys regularly, without waiting: an unavailable issuer must not block the start."""
        self._http = HttpClient(
            timeout_s=self._policy.timeout_s,
            body_max_bytes=KEYS_MAX,
            keeps_alive=False,  # after ten minutes, a connection is mostly closed
        )
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

    async def find(self, kid: str | None) -> Key:
        """Return the key with this id. Raises Unauthorized if the issuer lacks it, KeysAway if the fetch failed."""
        if kid is None:
            raise Unauthorized("the token has no key id")
        key = self._known(kid)
        if key is None:
            await self._refresh()
            key = self._known(kid)
        if key is not None:
            return key
        if self._fault is not None:
            raise KeysAway(self._fault)
        raise Unauthorized("the token names a key that its issuer does not publish")

    def _known(self, kid: str) -> Key | None:
        return self._keys.find(kid) if self._clock() - self._read_at < self._policy.keep_s else None

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
        self._flight = asyncio.create_task(self._fetch(http), name="JWKS")
        return self._flight

    async def _fetch(self, http: HttpClient) -> None:
        """Fetch once, record the outcome, and schedule the next fetch in any case."""
        next_s = self._policy.again_s
        try:
            self._on_success(read_jwks(await self._get(http), self._algorithms))
            next_s = self._policy.fresh_s
        except Unavailable as error:
            self._on_failure(str(error))
        finally:
            self._flight = None
            self._timer = asyncio.get_running_loop().call_later(next_s, self._start_fetch, http)

    async def _get(self, http: HttpClient) -> bytes:
        reply = await http.request("GET", self._url)
        if reply.status != HTTPStatus.OK:
            raise KeysAway(f"status {reply.status}")
        return reply.body

    def _on_success(self, keys: KeySet) -> None:
        FETCHES.labels("ok").inc()
        self._keys = keys
        self._read_at = self._clock()
        if self._fault is not None:
            log.info("JWKS fetch succeeded again.")
        self._fault = None

    def _on_failure(self, fault: str) -> None:
        FETCHES.labels("failed").inc()
        if self._fault is None:
            log.warning("JWKS fetch failed; known keys stay valid for a day.", fault=fault)
        self._fault = fault
