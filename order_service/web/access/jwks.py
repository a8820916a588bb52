"""The keys that tokens are checked with: public ones alone, from a file, or from a URL (JWKS, RFC 7517).

A URL is asked every ten minutes and when a token names a key that we do not know. A request waits for it only where its
key is unknown; while the URL gives nothing, the keys known go on for a day.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp
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

from order_service.errors import KeysAway, SetupError, Unauthorized

FETCHES = Counter("orders_jwks_fetches", "Times that the issuer's keys were asked for, by outcome", ["outcome"])

KEYS_MAX: Final = 256 * 1024
RSA_BITS_MIN: Final = 2048
"""RFC 7518, 3.3: a key of this size or larger must be used."""

log = structlog.get_logger()


class Key(Struct, frozen=True):
    """A public key, and the algorithms that it may check: allowed by the settings, and fit for its type."""

    public: AllowedPublicKeys
    algorithms: list[str]


class KeySet(Struct, frozen=True):
    """The keys of an issuer by the names that tokens use for them, or the only one, which needs no name."""

    by_id: dict[str, Key]
    only: Key | None = None

    def find(self, kid: str | None) -> Key | None:
        """Give the key of this name."""
        return self.only or self.by_id.get(kid or "")


class Jwk(Struct):
    """What a JSON Web Key must be for us; all others are skipped, symmetric ones and those to encrypt with too."""

    kty: Literal["RSA", "EC", "OKP"]
    kid: str
    use: Literal["sig"] | None = None
    alg: str | None = None
    key_ops: list[str] | None = None


class Jwks(Struct):
    """A JWKS document."""

    keys: list[dict[str, Any]]


PARSED_AS: Final = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}
"""The algorithm under which PyJWT parses each type of key; which ones the key then serves is `_signatures`."""


def read_jwks(data: bytes, algorithms: Collection[str]) -> KeySet:
    """Take what is of use from a JWKS document; KeysAway if that is nothing."""
    if len(data) > KEYS_MAX:
        raise KeysAway(f"more than {KEYS_MAX} bytes")
    try:
        document = msgspec.json.decode(data, type=Jwks)
    except (MsgspecError, UnicodeError, RecursionError) as error:  # all that msgspec raises for bytes
        raise KeysAway("no JWKS document") from error
    keys = {kid: key for jwk in document.keys for kid, key in _of_jwk(jwk, algorithms)}
    if not keys:
        raise KeysAway("no key with a kid that can check what ORDERS_JWT_ALGORITHMS names")
    return KeySet(keys)


def read_pem(data: bytes, algorithms: Collection[str]) -> KeySet:
    """Take the one public key of a PEM file; KeysAway if it is of no use."""
    if data.count(b"-----BEGIN") > 1:  # only the first would ever be read
        raise KeysAway("more than one key: use a JWKS document")
    try:
        key = _key(load_pem_public_key(data), algorithms)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeysAway("neither a public key in PEM nor a JWKS document") from error
    if not key.algorithms:
        raise KeysAway("a key that cannot check what ORDERS_JWT_ALGORITHMS names")
    return KeySet({}, only=key)


def _of_jwk(jwk: dict[str, Any], algorithms: Collection[str]) -> list[tuple[str, Key]]:
    """Give the name and the key, or nothing: a key that we cannot use must not spoil the others (RFC 7517, 5)."""
    try:
        known = msgspec.convert(jwk, Jwk)
        public = jwt.PyJWK(jwk, PARSED_AS[known.kty]).key
    except (msgspec.ValidationError, jwt.PyJWTError, UnsupportedAlgorithm):
        return []
    allowed = [name for name in algorithms if known.alg in (None, name)]
    key = _key(public, allowed)
    checks = known.key_ops is None or "verify" in known.key_ops
    return [(known.kid, key)] if known.kid and checks and key.algorithms else []


def _key(public: Any, algorithms: Collection[str]) -> Key:
    return Key(public, [name for name in _signatures(public) if name in algorithms])


def _signatures(public: object) -> tuple[str, ...]:
    """Name the algorithms that fit a key (RFC 7518, 3.1); a private key, which nobody should show us, serves none."""
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
    """The keys of a file, read again when it changes; while it cannot be used, the keys read before stay.

    Looking at it takes microseconds, so that is done for every token and on the loop. Raises SetupError where the file
    is of no use from the start.
    """

    def __init__(self, path: Path, algorithms: Collection[str]) -> None:
        self._path = path
        self._algorithms = algorithms
        self._keys = KeySet({})
        self._stamp: tuple[int, ...] = ()
        self._unfit: str | None = None  # what is wrong with the file as it was read last
        self._told = self._look()
        if self._told is not None:
            raise SetupError(f"ORDERS_JWT_KEY_FILE {path}: {self._told}")

    async def start(self) -> None:
        """There is nothing to start."""

    async def close(self) -> None:
        """There is nothing to close."""

    async def find(self, kid: str | None) -> Key:
        """Give the key of this name; Unauthorized if there is none, KeysAway if the file cannot tell."""
        fault = self._look()
        self._tell(fault)
        key = self._keys.find(kid)
        if key is not None:
            return key
        if fault is not None:
            raise KeysAway(f"key file: {fault}")
        raise Unauthorized("the token names no key of the file")

    def _look(self) -> str | None:
        """Read the file if it is not the one read last; say what is wrong with it."""
        try:
            found = self._path.stat()
            stamp = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)  # chmod moves only the last
            if stamp != self._stamp:
                self._unfit = self._read()
                self._stamp = stamp  # taken before reading: what is written meanwhile differs from it
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return self._unfit

    def _read(self) -> str | None:
        with self._path.open("rb") as file:
            data = file.read(KEYS_MAX + 1)
        read = read_jwks if data.lstrip().startswith(b"{") else read_pem
        try:
            self._keys = read(data, self._algorithms)
        except KeysAway as error:
            return str(error)
        return None

    def _tell(self, fault: str | None) -> None:
        """Log what has changed, once."""
        if fault == self._told:
            return
        self._told = fault
        if fault is None:
            log.info("The key file can be used again.")
        else:
            log.error("The key file cannot be used; the keys read before stay.", fault=fault)


class JwksPolicy(Struct, frozen=True, kw_only=True):
    """How the keys of a URL are asked for. One request is out at a time, and a failed one is not repeated at once."""

    fresh_s: float = 600.0  # asked again after this: how long a key that was withdrawn serves on
    again_s: float = 10.0  # a failure, or a key that we do not know, has us ask again no sooner
    keep_s: float = 24 * 3600.0  # known keys serve as long as this while the server gives none: a night and a morning
    timeout_s: float = 5.0


POLICY: Final = JwksPolicy()


class KeyServer:
    """The keys of a URL. `find` waits only for a key that it does not know, and then for the request that is out."""

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
        self._read_at = self._asked_at = clock()
        self._fault: str | None = None  # why the last request brought nothing
        self._session: aiohttp.ClientSession | None = None
        self._flight: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Ask for the keys, and go on asking; this waits for no answer, so an issuer that is away stops no start."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),  # one of ten minutes ago is mostly closed by now
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # else KEYS_MAX would bound what is sent, not what we hold
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "order-service"},
            timeout=aiohttp.ClientTimeout(total=self._policy.timeout_s),
            middlewares=(_send_once,),
        )
        self._ask(self._session)

    async def close(self) -> None:
        """Stop asking; whoever waits for a key gets KeysAway."""
        session, self._session = self._session, None
        if self._flight is not None:
            self._flight.cancel()
            await asyncio.wait((self._flight,))
        if self._timer is not None:
            self._timer.cancel()
        if session is not None:
            await session.close()

    async def find(self, kid: str | None) -> Key:
        """Give the key of this name; Unauthorized if the issuer has none, KeysAway if nobody can tell."""
        if kid is None:
            raise Unauthorized("the token names no key")
        key = self._known(kid)
        if key is None:
            await self._ask_again()
            key = self._known(kid)
        if key is not None:
            return key
        if self._fault is not None:
            raise KeysAway(self._fault)
        raise Unauthorized("the token names a key that its issuer does not publish")

    def _known(self, kid: str) -> Key | None:
        return self._keys.find(kid) if self._clock() - self._read_at < self._policy.keep_s else None

    async def _ask_again(self) -> None:
        """Wait for the request that is out, or for a new one unless the last was a moment ago."""
        if self._session is None:
            raise KeysAway("nobody asks for keys any more")
        flight = self._flight
        if flight is None:
            if self._clock() - self._asked_at < self._policy.again_s:
                return
            flight = self._ask(self._session)
        await asyncio.wait((flight,))  # cancelling one who waits does not end it for the others
        if flight.cancelled():
            raise KeysAway("the service stops")
        flight.result()

    def _ask(self, session: aiohttp.ClientSession) -> asyncio.Task[None]:
        if self._timer is not None:
            self._timer.cancel()
        self._asked_at = self._clock()
        self._flight = asyncio.create_task(self._fly(session), name="JWKS")
        return self._flight

    async def _fly(self, session: aiohttp.ClientSession) -> None:
        """Ask once and note what came; whatever it was, the next time is set."""
        next_s = self._policy.again_s
        try:
            self._learn(read_jwks(await self._get(session), self._algorithms))
            next_s = self._policy.fresh_s
        except KeysAway as error:
            self._fail(str(error))
        finally:
            self._flight = None
            self._timer = asyncio.get_running_loop().call_later(next_s, self._ask, session)

    async def _get(self, session: aiohttp.ClientSession) -> bytes:
        """Get the document, or what is enough of it to see that it is too long."""
        body = bytearray()
        try:
            async with session.get(self._url, allow_redirects=False) as response:
                if response.status != HTTPStatus.OK:
                    raise KeysAway(f"status {response.status}")
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > KEYS_MAX:
                        break
        except TimeoutError as error:
            raise KeysAway(f"no answer within {self._policy.timeout_s} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise KeysAway("the connection failed") from error
        return bytes(body)

    def _learn(self, keys: KeySet) -> None:
        FETCHES.labels("ok").inc()
        self._keys = keys
        self._read_at = self._clock()
        if self._fault is not None:
            log.info("The JWKS server gives keys again.")
        self._fault = None

    def _fail(self, fault: str) -> None:
        FETCHES.labels("failed").inc()
        if self._fault is None:
            log.warning("The JWKS server gives no keys; those known go on for a day.", fault=fault)
        self._fault = fault


async def _send_once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a GET again by itself, which it does for the errors named here."""
    try:
        return await send(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise KeysAway("the connection failed") from error
