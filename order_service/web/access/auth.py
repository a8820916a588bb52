"""Authentication by signed tokens (JWT, RFC 7519); without it, only loopback is served.

A token is verified with the public key of its issuer, so the service holds no secret; `jwks` loads the keys.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import StrEnum
from typing import Final, Self

import jwt
import msgspec
from msgspec import Struct

from order_service.domain.validation import is_foreign_id
from order_service.errors import SetupError, Unauthorized
from order_service.settings import Settings
from order_service.web.access.jwks import Key, KeyFile, KeyServer
from order_service.web.access.local_only import is_loopback

TOKEN_MAX: Final = 8 * 1024
LEEWAY_S: Final = 30
"""Tolerated clock difference. Clocks under NTP differ by less than a second; this also covers a badly kept one. It is
not longer, because every token stays valid for this time after it expires."""
REQUIRED: Final = ("exp", "aud", "iss", "sub")
BEARER: Final = re.compile(r"bearer +([A-Za-z0-9._=-]+)", re.ASCII | re.IGNORECASE)


class Scope(StrEnum):
    """The scopes that a token may grant to a service; other scopes are ignored."""

    READ = "orders:read"
    PAY = "orders:pay"
    SHIP = "orders:ship"
    ADMIN = "orders:admin"


class Caller(Struct, frozen=True):
    """The sender of a request: a service if it has one of the scopes above, otherwise a user."""

    subject: str
    scopes: frozenset[Scope]

    @property
    def is_service(self) -> bool:
        """Whether this is a service: the token of a user carries no scope of this service."""
        return bool(self.scopes)

    @property
    def actor(self) -> str:
        """The caller as the `actor` of commands and events."""
        return f"{'service' if self.is_service else 'user'}:{self.subject}"

    def may(self, scope: Scope) -> bool:
        """Return whether the caller has this scope, or the admin scope, which includes all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def sees(self, user_id: str) -> bool:
        """Return whether the caller may see orders of `user_id`: users their own, services with the read scope all."""
        return self.may(Scope.READ) if self.is_service else self.subject == user_id

    def sees_attempts_of(self, actor: str) -> bool:
        """Return whether the caller may see the refused commands of `actor`.

        Services see all. Users see their own and those of services, but not those of other users.
        """
        return self.is_service or actor == self.actor or not actor.startswith("user:")


LOCAL: Final = Caller("local", frozenset({Scope.ADMIN}))


class Everybody:
    """No authentication: every caller is `LOCAL`. For a service that only this machine can reach. `async with` it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Do nothing: there are no resources to close."""

    async def caller(self, authorization: str | None) -> Caller:  # noqa: ARG002, the signature of `Tokens`
        """Return `LOCAL` for every request."""
        return LOCAL


class Tokens:
    """Authentication by bearer tokens. `async with` it: the keys are refreshed as long as the block lasts."""

    def __init__(self, keys: KeyFile | KeyServer, *, issuer: str, audience: str, algorithms: Collection[str]) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._algorithms = tuple(algorithms)  # a tuple, because a token may name an unhashable value

    async def __aenter__(self) -> Self:
        await self._keys.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._keys.close()

    async def caller(self, authorization: str | None) -> Caller:
        """Return the caller that the `Authorization` header identifies.

        Raises Unauthorized without a valid token, and KeysAway if the keys are unavailable and a retry may succeed.
        """
        token = _bearer_token(authorization)
        key = await self._keys.find(self._key_id(token))
        return _caller(self._claims(token, key))

    def _key_id(self, token: str) -> str | None:
        """Return the key id that the unverified token claims; refuse a hopeless token before any key is requested."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise _refused(error) from None
        if header.get("alg") not in self._algorithms:
            raise Unauthorized("the token's algorithm is not in ORDERS_JWT_ALGORITHMS")
        kid: str | None = header.get("kid")  # PyJWT refuses any other type
        return kid

    def _claims(self, token: str, key: Key) -> Claims:
        """Verify the signature, then the claims; PyJWT checks `nbf` and `iat` if present."""
        try:
            claims = jwt.decode(
                token,
                key.public,
                algorithms=key.algorithms,
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": list(REQUIRED)},
            )
        except jwt.PyJWTError as error:
            raise _refused(error) from None
        try:
            return msgspec.convert(claims, Claims)
        except msgspec.ValidationError as error:
            raise Unauthorized("a claim has the wrong type") from error


class Claims(Struct):
    """The claims used from a token. Scopes are a space-separated text (RFC 9068) or a list, in `scope` or `scp`."""

    sub: str
    scope: str | list[str] = ""
    scp: str | list[str] = ""


def _bearer_token(authorization: str | None) -> str:
    if authorization is None:
        raise Unauthorized("the token is missing")
    match = BEARER.fullmatch(authorization)
    if match is None:
        raise Unauthorized("the header is not a single bearer token")
    token = match[1]
    if len(token) > TOKEN_MAX:
        raise Unauthorized(f"the token is longer than {TOKEN_MAX} characters")
    return token


def _caller(claims: Claims) -> Caller:
    if not is_foreign_id(claims.sub):
        raise Unauthorized("the subject is not a valid id, so it cannot be an actor")
    words = _words(claims.scope) | _words(claims.scp)
    return Caller(claims.sub, frozenset(scope for scope in Scope if scope in words))


def _words(scopes: str | list[str]) -> set[str]:
    return set(scopes.split() if isinstance(scopes, str) else scopes)


def _refused(error: jwt.PyJWTError) -> Unauthorized:
    """Return an error with the class name of `error`, which must not be its cause: it quotes the token to the log."""
    claim = f", {error.claim}" if isinstance(error, jwt.MissingRequiredClaimError) else ""
    return Unauthorized(type(error).__name__ + claim)


def authentication(settings: Settings) -> Everybody | Tokens:
    """Return the authentication for `settings`, ready for `async with`. Raises SetupError, which names the setting."""
    url, path = settings.jwt_jwks_url, settings.jwt_key_file
    if url and path is not None:
        raise SetupError("set ORDERS_JWT_JWKS_URL or ORDERS_JWT_KEY_FILE, not both")
    if not url and path is None:
        return _no_authentication(settings)
    if not (settings.jwt_issuer and settings.jwt_audience):
        raise SetupError("set ORDERS_JWT_ISSUER and ORDERS_JWT_AUDIENCE: tokens for other services must be refused")
    algorithms = settings.jwt_algorithms.split(",")
    keys = KeyServer(url, algorithms) if path is None else KeyFile(path, algorithms)
    return Tokens(keys, issuer=settings.jwt_issuer, audience=settings.jwt_audience, algorithms=algorithms)


def _no_authentication(settings: Settings) -> Everybody:
    """Return `Everybody` if no token setting is set and only this machine can reach the service."""
    if settings.jwt_issuer or settings.jwt_audience:
        raise SetupError("ORDERS_JWT_ISSUER and ORDERS_JWT_AUDIENCE need ORDERS_JWT_JWKS_URL or ORDERS_JWT_KEY_FILE")
    if not (is_loopback(settings.host) or settings.http_published_on_loopback):
        raise SetupError(
            f"ORDERS_HOST {settings.host} is not a loopback address: set ORDERS_JWT_JWKS_URL or ORDERS_JWT_KEY_FILE,"
            " with ORDERS_JWT_ISSUER and ORDERS_JWT_AUDIENCE; or ORDERS_HTTP_PUBLISHED_ON_LOOPBACK=true if it is"
            " published on loopback only"
        )
    return Everybody()
