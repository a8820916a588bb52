"""Which caller the claims of a verified token identify: the settings `ORDERS_JWT_…` as rules.

A token is never a user's because its rights were not understood: it is refused, with a reason that names the claim. No
reason holds a value from the token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

from msgspec import Struct, field

from order_service.domain.validation import is_foreign_id
from order_service.errors import SetupError, Unauthorized
from order_service.settings import Settings
from order_service.web.access.caller import Caller, Scope

Claims = Mapping[str, Any]

WORDS: Final = frozenset({"scope", "scp"})
"""Claims whose text is a list of words (RFC 8693, 4.2). Most of them concern the client, or other services: only words
with our prefix are rights here. In every other claim, each value is a right of the subject."""
PREFIX: Final = "orders:"
CLIENT_CLAIMS: Final = ("client_id", "cid", "azp", "appid", "oid")
"""Claims with the client's id. It is the subject of a token that a service got for itself (RFC 9068, 2.2)."""
NAME_MAX: Final = 100
SEE_RIGHTS: Final = "see ORDERS_JWT_SCOPE_CLAIMS and ORDERS_JWT_SCOPE_VALUES"

OWN_NAMES: Final = {scope.value: frozenset({scope}) for scope in Scope}
"""The values that grant scopes unless ORDERS_JWT_SCOPE_VALUES is set: their names."""


class ClaimCondition(Struct, frozen=True):
    """A condition on the claims: that one exists, or that it has a value. `roles=staff` also holds for a list."""

    claim: str
    value: str | None = None

    def holds(self, claims: Claims) -> bool:
        """Return whether the claims fulfil this condition."""
        actual = find_claim(claims, self.claim)
        values = actual if isinstance(actual, list) else [actual]
        return actual is not None and (self.value is None or self.value in map(_plain_text, values))


class TokenRules(Struct, frozen=True, kw_only=True):
    """The rules for tokens. `scopes_of` has the scopes that a value grants; the conditions are joined by "or"."""

    issuer: str
    audiences: frozenset[str]
    audience_claim: str = "aud"
    leeway_s: float = 60.0
    subject_claims: tuple[str, ...] = ("sub",)
    scope_claims: tuple[str, ...] = ("scope", "scp", "roles", "permissions")
    scopes_of: Mapping[str, frozenset[Scope]] = field(default_factory=lambda: OWN_NAMES)
    user_if: tuple[ClaimCondition, ...] = ()
    service_if: tuple[ClaimCondition, ...] = ()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the rules of the settings. Raises SetupError, which names the setting."""
        if not (settings.jwt_issuer and settings.jwt_audience):
            raise SetupError("set ORDERS_JWT_ISSUER and ORDERS_JWT_AUDIENCE: tokens for other services must be refused")
        user_if = _conditions("ORDERS_JWT_USER_IF", settings.jwt_user_if)
        service_if = _conditions("ORDERS_JWT_SERVICE_IF", settings.jwt_service_if)
        if set(user_if) & set(service_if):
            raise SetupError("ORDERS_JWT_USER_IF and ORDERS_JWT_SERVICE_IF have the same condition")
        return cls(
            issuer=settings.jwt_issuer,
            audiences=frozenset(_listed("ORDERS_JWT_AUDIENCE", settings.jwt_audience)),
            audience_claim=settings.jwt_audience_claim,
            leeway_s=settings.jwt_leeway_s,
            subject_claims=_listed("ORDERS_JWT_SUBJECT_CLAIMS", settings.jwt_subject_claims),
            scope_claims=_listed("ORDERS_JWT_SCOPE_CLAIMS", settings.jwt_scope_claims),
            scopes_of=_scopes_of(settings.jwt_scope_values) if settings.jwt_scope_values else OWN_NAMES,
            user_if=user_if,
            service_if=service_if,
        )


class Rights(Struct, frozen=True):
    """The scopes of a token, and the claims with rights of which none is understood."""

    scopes: frozenset[Scope]
    not_understood: tuple[str, ...]


def caller_of(claims: Claims, rules: TokenRules) -> Caller:
    """Return the caller of a token whose signature, issuer and times were verified. Raises Unauthorized."""
    check_audience(claims, rules)
    subject, rights = subject_of(claims, rules), rights_of(claims, rules)
    check_kind(claims, rules, rights)
    return Caller(subject, rights.scopes)


def check_audience(claims: Claims, rules: TokenRules) -> None:
    """Check that the token is for this service.

    If another claim than `aud` has the audience, a token with `aud` must fulfil both: it may be for another service.
    """
    if claims.get(rules.audience_claim) is None:
        raise Unauthorized(f"the claim {rules.audience_claim} is missing: see ORDERS_JWT_AUDIENCE_CLAIM")
    for name in dict.fromkeys((rules.audience_claim, "aud")):
        value = claims.get(name)
        if value is not None and rules.audiences.isdisjoint(_texts(name, value)):
            raise Unauthorized(f"the claim {name} is not ORDERS_JWT_AUDIENCE")


def subject_of(claims: Claims, rules: TokenRules) -> str:
    """Return the subject: the first of its claims that the token has."""
    for name in rules.subject_claims:
        subject = find_claim(claims, name)
        if subject is None:
            continue
        if isinstance(subject, str) and is_foreign_id(subject):
            return subject
        raise Unauthorized(
            f"the claim {name} cannot be an actor: it must be 1 to 255 characters without control characters"
        )
    raise Unauthorized(f"the claim {' or '.join(rules.subject_claims)} is missing: see ORDERS_JWT_SUBJECT_CLAIMS")


def rights_of(claims: Claims, rules: TokenRules) -> Rights:
    """Return the scopes that the claims grant, and the names of the claims with rights that were not understood."""
    scopes: set[Scope] = set()
    not_understood = []
    for name in rules.scope_claims:
        values = right_values(claims, name)
        granted = [rules.scopes_of[value] for value in values if value in rules.scopes_of]
        scopes.update(*granted)
        if not granted and any(_is_right(name, value) for value in values):
            not_understood.append(name)
    return Rights(frozenset(scopes), tuple(not_understood))


def check_kind(claims: Claims, rules: TokenRules, rights: Rights) -> None:
    """Check that a token with a scope is a service's, and one without is a user's; by default, its scope decides.

    Only ORDERS_JWT_USER_IF can make a user's of a token that its provider marks as a service's.
    """
    if not (rules.user_if or rules.service_if):
        if not rights.scopes:
            _check_user(claims, rules, rights)
        return
    is_user = any(condition.holds(claims) for condition in rules.user_if)
    is_service = any(condition.holds(claims) for condition in rules.service_if) if rules.service_if else not is_user
    if rules.user_if and is_user == is_service:
        which = "both" if is_service else "neither"
        raise Unauthorized(f"{which} of ORDERS_JWT_USER_IF and ORDERS_JWT_SERVICE_IF holds")
    if is_service and not rights.scopes:
        raise Unauthorized(f"the token is a service's, but no value in {_names(rules)} gives a scope: {SEE_RIGHTS}")
    if rights.scopes and not is_service:
        raise Unauthorized(
            "the token is a user's, but has a scope, which only a service can have: see ORDERS_JWT_USER_IF,"
            " ORDERS_JWT_SERVICE_IF and ORDERS_JWT_SCOPE_CLAIMS"
        )
    if not (is_service or rules.user_if):
        _check_no_service_sign(claims, rules)


def _check_user(claims: Claims, rules: TokenRules, rights: Rights) -> None:
    """Check that a token without a scope is a user's, and not a service's whose rights were not understood."""
    _check_no_service_sign(claims, rules)
    if rights.not_understood:
        raise Unauthorized(
            f"no value in {', '.join(rights.not_understood)} gives a scope: {SEE_RIGHTS}, or ORDERS_JWT_USER_IF"
        )
    if name := _unread(claims, rules):
        shown = name[:NAME_MAX] if name.isprintable() else "of another name"
        raise Unauthorized(f"the claim {shown} has a scope, but ORDERS_JWT_SCOPE_CLAIMS does not name it")


def _check_no_service_sign(claims: Claims, rules: TokenRules) -> None:
    if sign := service_sign(claims):
        raise Unauthorized(
            f"the token is a service's by its claim {sign}, but no value in {_names(rules)} gives a scope: {SEE_RIGHTS}"
        )


def service_sign(claims: Claims) -> str:
    """Return the claim by which a known provider marks the token of a service, or an empty text."""
    texts = {name: value for name, value in claims.items() if isinstance(value, str)}
    client = texts.get("sub", "").removesuffix("@clients")  # Auth0's suffix
    signs = {
        "gty": texts.get("gty") == "client-credentials",  # Auth0
        "idtyp": texts.get("idtyp") == "app",  # Entra ID
        "kubernetes.io": "kubernetes.io" in claims,
        "preferred_username": texts.get("preferred_username", "").startswith("service-account-"),  # Keycloak
        "email": texts.get("email", "").endswith(".gserviceaccount.com"),  # Google
        **{name: bool(client) and texts.get(name) == client for name in CLIENT_CLAIMS},
    }
    return next((name for name, holds in signs.items() if holds), "")


def find_claim(claims: Claims, name: str) -> Any:
    """Return the value of a claim, or None. A dot leads into an object, unless the claim's own name has it."""
    if name in claims:
        return claims[name]
    for dot in re.finditer(r"\.", name):
        inner = claims.get(name[: dot.start()])
        if isinstance(inner, dict) and (value := find_claim(inner, name[dot.end() :])) is not None:
            return value
    return None


def right_values(claims: Claims, name: str) -> list[str]:
    """Return the values of a claim that carries rights; `scope` and `scp` may be words in one text (RFC 8693, 4.2)."""
    value = find_claim(claims, name)
    if value is None:
        return []
    if isinstance(value, str) and _has_words(name):
        return value.split()
    return [text for text in _texts(name, value) if text]


def _is_right(name: str, value: str) -> bool:
    return not _has_words(name) or value.lower().startswith(PREFIX)


def _has_words(name: str) -> bool:
    return name.rpartition(".")[2] in WORDS


def _texts(name: str, value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        return texts
    raise Unauthorized(f"the claim {name} is neither a text nor a list of texts")


def _unread(claims: Claims, rules: TokenRules) -> str:
    """Return the name of a claim that has one of our scopes and is not read for rights, or an empty text."""
    todo: list[tuple[str, object]] = list(claims.items())
    while todo:  # not recursive: a token can nest thousands of values
        name, value = todo.pop()
        if name in rules.scope_claims:
            continue
        if isinstance(value, dict):
            todo += [(f"{name[:NAME_MAX]}.{key}", inner) for key, inner in value.items()]
        elif isinstance(value, list):
            todo += [(name, inner) for inner in value]
        elif isinstance(value, str) and any(word in OWN_NAMES for word in value.split()):
            return name
    return ""


def _plain_text(value: object) -> str:
    if isinstance(value, bool | int):
        return str(value).lower()  # as JSON has it
    return value if isinstance(value, str) else ""


def _names(rules: TokenRules) -> str:
    return ", ".join(rules.scope_claims)


def _listed(setting: str, text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise SetupError(f"{setting} must be one or more values, separated by commas")
    return names


def _conditions(setting: str, text: str) -> tuple[ClaimCondition, ...]:
    return tuple(_condition(setting, entry) for entry in _listed(setting, text)) if text else ()


def _condition(setting: str, text: str) -> ClaimCondition:
    claim, equals, value = (part.strip() for part in text.partition("="))
    if not claim or (equals and not value):
        raise SetupError(f"{setting} must be CLAIM or CLAIM=VALUE, or several of them, separated by commas")
    return ClaimCondition(claim, value if equals else None)


def _scopes_of(text: str) -> dict[str, frozenset[Scope]]:
    scopes_of: dict[str, frozenset[Scope]] = {}
    for scope, value in _pairs(text):
        scopes_of[value] = scopes_of.get(value, frozenset()) | {scope}
    return scopes_of


def _pairs(text: str) -> Iterable[tuple[Scope, str]]:
    for entry in _listed("ORDERS_JWT_SCOPE_VALUES", text):
        name, _, value = (part.strip() for part in entry.partition("="))
        if name not in OWN_NAMES or not value:
            raise SetupError(
                f"ORDERS_JWT_SCOPE_VALUES must be SCOPE=VALUE, separated by commas; the scopes are {', '.join(Scope)}"
            )
        yield Scope(name), value
