"""Who calls: a signed token (JWT, RFC 7519) says it; on loopback nobody is asked.

A token is checked with the public key of its issuer, so we hold no secret; `keys` brings the keys.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import StrEnum
from typing import Final, Self

import jwt
import msgspec
from msgspec import Struct

from order_service.domain.validation import is_id
from order_service.errors import SetupError, Unauthorized
from order_service.settings import Settings
from order_service.web.access.jwks import Key, KeyFile, KeyServer
from order_service.web.access.local_only import is_loopback

TOKEN_MAX: Final = 8 * 1024
LEEWAY_S: Final = 30
"""Clocks under NTP differ by less than a second; this also covers one that is badly kept, and no more, because it is
how long every token lives past its end."""
REQUIRED: Final = ("exp", "aud", "iss", "sub")
BEARER: Final = re.compile(r"bearer +([A-Za-z0-9._=-]+)", re.ASCII | re.IGNORECASE)


class Scope(StrEnum):
    """What a token may allow a service; scopes of others are none of ours."""

    READ = "orders:read"
    PAY = "orders:pay"
    SHIP = "orders:ship"
    ADMIN = "orders:admin"


class Caller(Struct, frozen=True):
    """Who sent a request: a service if it has a scope of ours, and otherwise a user."""

    subject: str
    scopes: frozenset[Scope]

    @property
    def is_service(self) -> bool:
        """Whether this is a service: a user's token has no scope of ours."""
        return bool(self.scopes)

    @property
    def actor(self) -> str:
        """The caller as commands and events name it."""
        return f"{'service' if self.is_service else 'user'}:{self.subject}"

    def may(self, scope: Scope) -> bool:
        """Tell whether the caller has this scope, or the one that includes all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def sees(self, user_id: str) -> bool:
        """Tell whether the orders of `user_id` exist for this caller: a user's own, and all for who may read."""
        return self.may(Scope.READ) if self.is_service else self.subject == user_id

    def hears_of(self, actor: str) -> bool:
        """Tell whether the caller may hear of what an actor was refused: a user not of other users, who tried."""
        return self.is_service or actor == self.actor or not actor.startswith("user:")


LOCAL: Final = Caller("local", frozenset({Scope.ADMIN}))


class Everybody:
    """Takes every request as `LOCAL`: only for a service that nobody else can reach. `async with` it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """There is nothing to close."""

    async def caller(self, authorization: str | None) -> Caller:  # noqa: ARG002, as `Tokens` has it
        """Give the one caller there is, whatever the request says."""
        return LOCAL


class Tokens:
    """Takes a request as whoever its bearer token names. `async with` it: that is how long keys are asked for."""

    def __init__(self, keys: KeyFile | KeyServer, *, issuer: str, audience: str, algorithms: Collection[str]) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._algorithms = tuple(algorithms)  # a token can name anything, even what no set can look up

    async def __aenter__(self) -> Self:
        await self._keys.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._keys.close()

    async def caller(self, authorization: str | None) -> Caller:
        """Name the caller by the value of the request's `Authorization` header.

        Raises Unauthorized for all but a good token, and KeysAway where nobody can tell: then a later try may succeed.
        """
        token = _bearer_token(authorization)
        key = await self._keys.find(self._key_id(token))
        return _caller(self._claims(token, key))

    def _key_id(self, token: str) -> str | None:
        """Read which key signed the token, by its own account; a hopeless token makes us ask nobody for keys."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise _refused(error) from None
        if header.get("alg") not in self._algorithms:
            raise Unauthorized("the token is signed in a way that ORDERS_JWT_ALGORITHMS does not name")
        kid: str | None = header.get("kid")  # PyJWT has refused any other type
        return kid

    def _claims(self, token: str, key: Key) -> Claims:
        """Check the signature, then what is signed; PyJWT honours `nbf` and `iat` where they are there."""
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
            raise Unauthorized("a claim has another type than it must") from error


class Claims(Struct):
    """What we take from a token. Scopes are words in a text (RFC 9068) or a list, in `scope` or in `scp`."""

    sub: str
    scope: str | list[str] = ""
    scp: str | list[str] = ""


def _bearer_token(authorization: str | None) -> str:
    if authorization is None:
        raise Unauthorized("no token")
    match = BEARER.fullmatch(authorization)
    if match is None:
        raise Unauthorized("the header is not one bearer token")
    token = match[1]
    if len(token) > TOKEN_MAX:
        raise Unauthorized(f"the token is longer than {TOKEN_MAX} characters")
    return token


def _caller(claims: Claims) -> Caller:
    if not is_id(claims.sub):
        raise Unauthorized("the subject is no id, so it cannot be an actor")
    words = _words(claims.scope) | _words(claims.scp)
    return Caller(claims.sub, frozenset(scope for scope in Scope if scope in words))


def _words(scopes: str | list[str]) -> set[str]:
    return set(scopes.split() if isinstance(scopes, str) else scopes)


def _refused(error: jwt.PyJWTError) -> Unauthorized:
    """Say what is wrong by the class of `error`, which must not be the cause: it quotes the token, and logs show it."""
    claim = f", {error.claim}" if isinstance(error, jwt.MissingRequiredClaimError) else ""
    return Unauthorized(type(error).__name__ + claim)


def authentication(settings: Settings) -> Everybody | Tokens:
    """Make what the settings ask for, ready for `async with`; SetupError names the setting that is wrong."""
    url, path = settings.jwt_jwks_url, settings.jwt_key_file
    if url and path is not None:
        raise SetupError("set ORDERS_JWT_JWKS_URL or ORDERS_JWT_KEY_FILE, not both")
    if not url and path is None:
        return _everybody(settings)
    if not (settings.jwt_issuer and settings.jwt_audience):
        raise SetupError("set ORDERS_JWT_ISSUER and ORDERS_JWT_AUDIENCE: tokens for others must not open this door")
    algorithms = settings.jwt_algorithms.split(",")
    keys = KeyServer(url, algorithms) if path is None else KeyFile(path, algorithms)
    return Tokens(keys, issuer=settings.jwt_issuer, audience=settings.jwt_audience, algorithms=algorithms)


def _everybody(settings: Settings) -> Everybody:
    """Let everybody in if that is meant, and if it is only ourselves."""
    if settings.jwt_issuer or settings.jwt_audience:
        raise SetupError("ORDERS_JWT_ISSUER and ORDERS_JWT_AUDIENCE need ORDERS_JWT_JWKS_URL or ORDERS_JWT_KEY_FILE")
    if not (is_loopback(settings.host) or settings.web_is_on_loopback):
        raise SetupError(
            f"ORDERS_HOST {settings.host} can be reached by others: set ORDERS_JWT_JWKS_URL or ORDERS_JWT_KEY_FILE,"
            " with ORDERS_JWT_ISSUER and ORDERS_JWT_AUDIENCE; or ORDERS_WEB_IS_ON_LOOPBACK=true, if that is so"
        )
    return Everybody()
