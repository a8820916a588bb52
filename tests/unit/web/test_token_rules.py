"""Whatever claims a token has: it gives a caller or is refused, and nothing of it comes into the reason."""

import time

import jwt
import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from order_service.errors import Unauthorized
from order_service.web.access.auth import TOKEN_MAX
from order_service.web.access.caller import Scope
from order_service.web.access.jwks import Key, KeySet
from order_service.web.access.token_check import Explanation, explanation
from order_service.web.access.token_rules import ClaimCondition, TokenRules, caller_of
from tests.support.issuer import EC

NAMES = ["sub", "uid", "scope", "scp", "roles", "permissions", "aud", "azp", "client_id", "gty", "realm_access", "a.b"]
WORDS = [
    "orders",
    "dana",
    "orders:read",
    "orders:admin",
    "orders:x",
    "client-credentials",
    "service-account-x",
    "Ops",
    "",
]
TEXTS = st.sampled_from(WORDS) | st.lists(st.sampled_from(WORDS)).map(" ".join) | st.text(max_size=300)
LEAVES = TEXTS | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*NAMES, "roles", "b"]), inner)
)
CLAIMS = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=2), VALUES)
CONDITIONS = st.lists(
    st.builds(ClaimCondition, st.sampled_from([*NAMES, "realm_access.roles"]), st.none() | st.sampled_from(WORDS)),
    max_size=2,
).map(tuple)
RULES = st.builds(
    TokenRules,
    issuer=st.just("issuer"),
    audiences=st.just(frozenset({"orders", "dana"})),
    audience_claim=st.sampled_from(["aud", "client_id", "azp"]),
    subject_claims=st.sampled_from([("sub",), ("uid", "sub"), ("realm_access.sub",)]),
    scope_claims=st.sampled_from([("scope", "scp", "roles", "permissions"), ("realm_access.roles", "a.b"), ("sub",)]),
    scopes_of=st.sampled_from(
        [TokenRules(issuer="", audiences=frozenset()).scopes_of, {"Ops": frozenset({Scope.SHIP})}]
    ),
    user_if=CONDITIONS,
    service_if=CONDITIONS,
)
KEYS = KeySet((Key(EC.public_key(), ["ES256"]),))


def caller_or_reason(claims, rules):
    try:
        return caller_of(claims, rules)
    except Unauthorized as error:
        return str(error)


@given(CLAIMS, RULES)
def test_any_claims_give_a_caller_or_a_reason_of_one_line(claims, rules):
    result = caller_or_reason({"sub": "dana", "aud": "orders"} | claims, rules)
    if isinstance(result, str):
        assert result.isprintable()
        return
    assert 1 <= len(result.subject) <= 255
    assert result.scopes <= {scope for scopes in rules.scopes_of.values() for scope in scopes}


@given(CLAIMS, RULES)
def test_an_explanation_never_fails_and_agrees(claims, rules):
    claims = {"sub": "dana", "aud": "orders"} | claims | {"iss": "issuer", "exp": int(time.time()) + 60}
    token = jwt.encode(claims, EC, "ES256")
    assume(len(token) <= TOKEN_MAX)  # a longer one is refused unread
    explained = explanation(token, rules, ["ES256"], KEYS)
    result = caller_or_reason(claims, rules)
    assert explained.caller == (None if isinstance(result, str) else result)
    assert msgspec.json.decode(msgspec.json.encode(explained.checks)) == msgspec.to_builtins(explained.checks)


@pytest.mark.parametrize("depth", [100, 400, 900])
def test_a_claim_that_nests_deeply_is_read_without_recursion(depth):
    value: object = "orders:admin"
    for _ in range(depth):
        value = [value]
    rules = TokenRules(issuer="issuer", audiences=frozenset({"orders"}))
    claims = {"sub": "dana", "aud": "orders", "deep": value, "iss": "issuer", "exp": int(time.time()) + 60}
    assert caller_or_reason(claims, rules) == (
        "the claim deep has a scope, but ORDERS_JWT_SCOPE_CLAIMS does not name it"
    )
    token = jwt.encode(claims | {"roles": value}, EC, "ES256")
    assert isinstance(explanation(token, rules, ["ES256"], KEYS), Explanation)


def test_a_half_character_in_a_claim_can_be_shown():
    claims = {"sub": "\ud800", "aud": "orders", "iss": "issuer", "exp": int(time.time()) + 60, "\ud801": "orders:pay"}
    rules = TokenRules(issuer="issuer", audiences=frozenset({"orders"}))
    shown = msgspec.json.encode(explanation(jwt.encode(claims, EC, "ES256"), rules, ["ES256"], KEYS).checks).decode()
    assert "sub \\\\ud800" in shown
    assert "the claim of another name has a scope" in shown
