"""Authentication by signed tokens (JWT, RFC 7519); without it, only loopback is served.

A token is verified with the public key of its issuer, so the service holds no secret. `key_sources` has the keys, and
`token_rules` has what the claims mean.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final, Self

import jwt
from msgspec import Struct

from order_service.errors import SetupError, Unauthorized
from order_service.settings import Settings, variable
from order_service.web.access.caller import LOCAL, Caller
from order_service.web.access.jwks import Key
from order_service.web.access.key_sources import KeyFile, KeyServer, KeySource
from order_service.web.access.local_only import is_loopback
from order_service.web.access.token_rules import Claims, TokenRules, caller_of

TOKEN_MAX: Final = 8 * 1024
BEARER: Final = re.compile(r"bearer +([A-Za-z0-9._=-]+)", re.ASCII | re.IGNORECASE)
REASONS: Final[dict[type[jwt.PyJWTError], str]] = {
    jwt.DecodeError: "the token, or one of its claims, is malformed",
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet: its iat or nbf is in the future",
    jwt.InvalidIssuerError: "the claim iss is not ORDERS_JWT_ISSUER",
}
"""What the most frequent errors of PyJWT mean; for others, their class name does."""


class Everybody:
    """No authentication: every caller is `LOCAL`. For a service that only this machine can reach. `async with` it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Do nothing: there are no resources to close."""

    def fault(self) -> None:
        """Return None: no key is needed."""

    async def caller(self, authorization: str | None) -> Caller:  # noqa: ARG002, the signature of `Tokens`
        """Return `LOCAL` for every request."""
        return LOCAL


class Tokens:
    """Authentication by bearer tokens. `async with` it: the keys are refreshed as long as the block lasts."""

    def __init__(self, keys: KeySource, rules: TokenRules, algorithms: Collection[str]) -> None:
        self._keys = keys
        self._rules = rules
        self._algorithms = tuple(algorithms)  # a tuple, because a token may name an unhashable value

    async def __aenter__(self) -> Self:
        await self._keys.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._keys.close()

    def fault(self) -> str | None:
        """Return why no token can be verified, or None."""
        return self._keys.fault()

    async def caller(self, authorization: str | None) -> Caller:
        """Return the caller that the `Authorization` header identifies.

        Raises Unauthorized without a valid token, and KeysAway if the keys are unavailable and a retry may succeed.
        """
        token = bearer_token(authorization)
        header = read_header(token)
        if header.algorithm not in self._algorithms:
            raise Unauthorized("the token's algorithm is not in ORDERS_JWT_ALGORITHMS")
        return caller_of(await self._verified(token, header), self._rules)

    async def _verified(self, token: str, header: Header) -> Claims:
        """Return the claims of a token. Without a key id, the keys are tried; then those that the issuer has added."""
        tried: tuple[Key, ...] = ()
        for _ in range(2):
            keys = await self._keys.find(header.kid, header.algorithm, tried)
            for key in keys:
                try:
                    return decode(token, key, self._rules)
                except jwt.InvalidSignatureError:
                    continue
                except jwt.PyJWTError as error:
                    raise refused(error) from None
            if header.kid is not None and keys[0].kid == header.kid:
                raise Unauthorized("the signature does not fit the key that the token names")
            tried += keys
        raise Unauthorized("the signature fits none of the keys")


class Header(Struct, frozen=True):
    """What the unverified header of a token claims."""

    algorithm: str
    kid: str | None


def read_header(token: str) -> Header:
    """Return the header of a token. Raises Unauthorized if it cannot be a signed JWT."""
    parts = token.count(".") + 1
    if parts != 3:
        raise Unauthorized(f"the token is not a signed JWT: it has {parts} parts instead of 3")
    try:
        header = jwt.get_unverified_header(token)
    except jwt.PyJWTError as error:
        raise refused(error) from None
    algorithm = header.get("alg")
    # PyJWT refuses a key id of another type
    return Header(algorithm if isinstance(algorithm, str) else "", header.get("kid") or None)


def decode(token: str, key: Key, rules: TokenRules) -> dict[str, Any]:
    """Return the claims after verifying signature, issuer and times; `token_rules` checks the others.

    Raises PyJWTError, whose text may quote the token.
    """
    return jwt.decode(
        token,
        key.public,
        algorithms=key.algorithms,
        issuer=rules.issuer,
        leeway=rules.leeway_s,
        options={"require": ["exp", "iss"], "verify_aud": False, "verify_sub": False, "verify_jti": False},
    )


def bearer_token(authorization: str | None) -> str:
    """Return the token of an `Authorization` header. Raises Unauthorized."""
    if authorization is None:
        raise Unauthorized("the token is missing")
    match = BEARER.fullmatch(authorization)
    if match is None:
        raise Unauthorized("the header is not a single bearer token")
    token = match[1]
    if len(token) > TOKEN_MAX:
        raise Unauthorized(f"the token is longer than {TOKEN_MAX} characters")
    return token


def refused(error: jwt.PyJWTError) -> Unauthorized:
    """Return an error that says what is wrong; `error` must not be its cause: it would quote the token to the log."""
    if isinstance(error, jwt.MissingRequiredClaimError):
        return Unauthorized(f"the claim {error.claim} is missing")
    return Unauthorized(REASONS.get(type(error), type(error).__name__))


def authentication(settings: Settings) -> Everybody | Tokens:
    """Return the authentication for `settings`, ready for `async with`. Raises SetupError, which names the setting."""
    if not uses_tokens(settings):
        return _no_authentication(settings)
    rules, algorithms = TokenRules.from_settings(settings), settings.jwt_algorithms.split(",")
    if settings.jwt_key_file is None:
        return Tokens(KeyServer(settings.jwt_jwks_url, algorithms), rules, algorithms)
    return Tokens(KeyFile(settings.jwt_key_file, algorithms), rules, algorithms)


def uses_tokens(settings: Settings) -> bool:
    """Return whether requests need tokens. Raises SetupError for two sources of keys."""
    if settings.jwt_jwks_url and settings.jwt_key_file is not None:
        raise SetupError("set ORDERS_JWT_JWKS_URL or ORDERS_JWT_KEY_FILE, not both")
    return bool(settings.jwt_jwks_url) or settings.jwt_key_file is not None


def _no_authentication(settings: Settings) -> Everybody:
    """Return `Everybody` if no token setting is set and only this machine can reach the service."""
    fields = {name: field for name, field in Settings.model_fields.items() if name.startswith("jwt_")}
    unused = [variable(name) for name, field in fields.items() if getattr(settings, name) != field.default]
    if unused:
        raise SetupError(f"{', '.join(unused)} without ORDERS_JWT_JWKS_URL or ORDERS_JWT_KEY_FILE: set one of them")
    if not (is_loopback(settings.host) or settings.http_published_on_loopback):
        raise SetupError(
            f"ORDERS_HOST {settings.host} is not a loopback address: set ORDERS_JWT_JWKS_URL or ORDERS_JWT_KEY_FILE,"
            " with ORDERS_JWT_ISSUER and ORDERS_JWT_AUDIENCE; or ORDERS_HTTP_PUBLISHED_ON_LOOPBACK=true if it is"
            " published on loopback only"
        )
    return Everybody()
