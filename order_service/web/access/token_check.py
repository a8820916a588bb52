"""Explains a token against the settings, for `order-service token check`. No text has the token or its signature."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final

import jwt
from jwt.types import Options
from msgspec import Struct

from order_service.errors import KeysAway, SetupError, Unauthorized, Unavailable
from order_service.settings import Settings
from order_service.web.access.auth import Header, bearer_token, read_header, refused, uses_tokens
from order_service.web.access.caller import Caller
from order_service.web.access.jwks import Key, KeySet, read_jwks
from order_service.web.access.key_sources import KeyFile, fetch_jwks, jwks_client
from order_service.web.access.token_rules import (
    Claims,
    TokenRules,
    check_audience,
    check_kind,
    find_claim,
    rights_of,
    subject_of,
)

SHOWN_MAX: Final = 200
VERIFIED: Final[dict[str, Options]] = {
    "iss": {"verify_signature": False, "verify_iss": True, "require": ["iss"]},
    "exp": {"verify_signature": False, "verify_exp": True, "require": ["exp"]},
    "nbf": {"verify_signature": False, "verify_nbf": True},
    "iat": {"verify_signature": False, "verify_iat": True},
}
"""The claims that PyJWT verifies, each with the options to verify it alone."""


class Check(Struct, frozen=True):
    """One check of a token. `text` has what the token has, and what is expected."""

    name: str
    passed: bool
    text: str


class Explanation(Struct, frozen=True):
    """All checks of a token, and the caller if it passes them."""

    checks: list[Check]
    caller: Caller | None = None


async def explain(settings: Settings, token: str) -> Explanation:
    """Check a token against the settings, with keys from the file or the URL. Raises SetupError."""
    if not uses_tokens(settings):
        raise SetupError("authentication is off: set ORDERS_JWT_JWKS_URL or ORDERS_JWT_KEY_FILE")
    rules, algorithms = TokenRules.from_settings(settings), settings.jwt_algorithms.split(",")
    try:
        keys = await _keys(settings, algorithms)
    except Unavailable as error:
        return explanation(token, rules, algorithms, KeysAway(str(error)))
    return explanation(token, rules, algorithms, keys)


def explanation(token: str, rules: TokenRules, algorithms: list[str], keys: KeySet | KeysAway) -> Explanation:
    """Check a token with these keys, or say why there are none."""
    try:
        header = read_header(bearer_token(f"Bearer {token}"))
        claims = jwt.decode(token, options={"verify_signature": False})
    except Unauthorized as error:
        return Explanation([Check("form", False, str(error))])
    except jwt.PyJWTError as error:
        return Explanation([Check("form", False, str(refused(error)))])
    checks = [
        Check("form", True, f"a signed JWT of {len(token)} characters"),
        *_signature(token, header, algorithms, keys),
        *(_verified(token, claims, rules, name) for name in VERIFIED),
        _audience(claims, rules),
        *_identity(claims, rules),
    ]
    if not all(check.passed for check in checks):
        return Explanation(checks)
    return Explanation(checks, Caller(subject_of(claims, rules), rights_of(claims, rules).scopes))


async def _keys(settings: Settings, algorithms: list[str]) -> KeySet:
    if settings.jwt_key_file is not None:
        return KeyFile(settings.jwt_key_file, algorithms).keys
    http = jwks_client()
    try:
        return read_jwks(await fetch_jwks(http, settings.jwt_jwks_url), algorithms)
    finally:
        await http.close()


def _signature(token: str, header: Header, algorithms: list[str], keys: KeySet | KeysAway) -> Iterator[Check]:
    is_allowed = header.algorithm in algorithms
    yield Check("algorithm", is_allowed, f"{_shown(header.algorithm)}; ORDERS_JWT_ALGORITHMS: {', '.join(algorithms)}")
    kid = "no key id" if header.kid is None else f"key id {_shown(header.kid)}"
    if isinstance(keys, KeysAway):
        yield Check("key", False, f"{kid}; there are no keys: {keys}")
        return
    candidates = keys.find(header.kid, header.algorithm) if is_allowed else ()
    yield Check("key", bool(candidates), f"{kid}; usable keys: {', '.join(map(_key_name, keys.keys))}")
    if candidates:
        fits = any(_fits(token, key) for key in candidates)
        yield Check("signature", fits, "it fits the key" if fits else "it fits no key: another issuer signed the token")


def _key_name(key: Key) -> str:
    return f"{'one without an id' if key.kid is None else _shown(key.kid)} for {'/'.join(key.algorithms)}"


def _fits(token: str, key: Key) -> bool:
    try:
        jwt.PyJWS().decode(token, key.public, key.algorithms)
    except jwt.PyJWTError:
        return False
    return True


def _verified(token: str, claims: Claims, rules: TokenRules, name: str) -> Check:
    expected = f"ORDERS_JWT_ISSUER: {rules.issuer}" if name == "iss" else f"ORDERS_JWT_LEEWAY_S: {rules.leeway_s:g}"
    actual = _shown_time(claims.get(name)) if name != "iss" else _shown(claims.get(name))
    try:
        jwt.decode(token, options=VERIFIED[name], issuer=rules.issuer, leeway=rules.leeway_s)
    except jwt.PyJWTError as error:
        return Check(name, False, f"{actual}; {expected}: {refused(error)}")
    return Check(name, True, f"{actual}; {expected}")


def _audience(claims: Claims, rules: TokenRules) -> Check:
    names = dict.fromkeys((rules.audience_claim, "aud"))
    actual = ", ".join(f"{name} {_shown(claims.get(name))}" for name in names)
    text = f"{actual}; ORDERS_JWT_AUDIENCE: {', '.join(sorted(rules.audiences))}"
    return _check("audience", text, lambda: check_audience(claims, rules))


def _identity(claims: Claims, rules: TokenRules) -> Iterator[Check]:
    """Yield the checks of subject, rights and kind; without understandable rights, the kind cannot be checked."""
    subject = ", ".join(f"{name} {_shown(find_claim(claims, name))}" for name in rules.subject_claims)
    yield _check("subject", subject, lambda: subject_of(claims, rules))
    values = ", ".join(f"{name} {_shown(find_claim(claims, name))}" for name in rules.scope_claims)
    try:
        rights = rights_of(claims, rules)
    except Unauthorized as error:
        yield Check("rights", False, f"{values}: {error}")
        return
    scopes = ", ".join(sorted(rights.scopes)) or "no scope"
    yield Check("rights", True, f"{values}: {scopes}")
    try:
        check_kind(claims, rules, rights)
    except Unauthorized as error:
        yield Check("kind", False, str(error))
        return
    yield Check("kind", True, "a service's" if rights.scopes else "a user's")


def _check(name: str, text: str, check: Callable[[], object]) -> Check:
    try:
        check()
    except Unauthorized as error:
        return Check(name, False, f"{text}: {error}")
    return Check(name, True, text)


def _shown(value: object) -> str:
    """Return a value of a claim, shortened and as text that any terminal or file can have."""
    if value is None:
        return "(missing)"
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "(nested too deeply)"
    text = text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}…"
    return text.encode(errors="backslashreplace").decode()  # lone surrogates


def _shown_time(value: object) -> str:
    """Return a time with its distance from now; any other value as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _shown(value)
    now = datetime.now(UTC).timestamp()
    try:
        moment = datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        return _shown(value)
    seconds = f"{abs(value - now):.0f} s"
    return f"{moment:%Y-%m-%dT%H:%M:%SZ} ({f'{seconds} ago' if value < now else f'in {seconds}'})"
