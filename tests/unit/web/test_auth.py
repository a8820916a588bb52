from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import hmac
import json
import time
import traceback
from contextlib import AsyncExitStack

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from prometheus_client import REGISTRY
from pydantic import ValidationError
from structlog.testing import capture_logs

from order_service.errors import KeysAway, SetupError, Unauthorized
from order_service.settings import SIGNATURES, Settings
from order_service.web.access.auth import TOKEN_MAX, Everybody, Tokens, authentication
from order_service.web.access.caller import LOCAL, Caller, Scope
from order_service.web.access.jwks import KEYS_MAX, read_jwks, read_pem
from order_service.web.access.key_sources import JwksPolicy, KeyFile, KeyServer
from order_service.web.access.keys_check import check_keys
from order_service.web.access.token_rules import TokenRules
from tests.support.issuer import (
    EC,
    OCT,
    RSA,
    THEIRS,
    body,
    given,
    hang,
    jwk,
    jwks,
    pem,
    private_pem,
    redirect,
    reset,
    running_issuer,
    status,
)

ISSUER = "https://issuer.test"
AUDIENCE = "orders"
HIDDEN = "nobody-may-log-this"  # part of what only tokens say
EC_384 = ec.generate_private_key(ec.SECP384R1())
ED = ed25519.Ed25519PrivateKey.generate()
SHORT = rsa.generate_private_key(65537, 1024)
BITCOIN = ec.generate_private_key(ec.SECP256K1())
RULES = TokenRules(issuer=ISSUER, audiences=frozenset({AUDIENCE}))
LEEWAY_S = RULES.leeway_s


def claims(**changes):
    now = int(time.time())
    usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "dana", "iat": now, "nbf": now, "exp": now + 300}
    return given(usual | changes)


def token(key=RSA, kid="rsa-1", *, alg="RS256", head=None, **changes):
    return jwt.encode(claims(**changes), key, alg, headers=given({"kid": kid} | (head or {})))


def bearer(*arguments, **changes):
    return f"Bearer {token(*arguments, **changes)}"


def part(value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def forged(head, payload, sign=lambda _: b""):
    """Make a token that PyJWT would not make."""
    signed = f"{part(head)}.{part(payload)}"
    return f"Bearer {signed}.{part(sign(signed.encode()))}"


def hs256(secret):
    return lambda signed: hmac.digest(secret, signed, hashlib.sha256)


def rs256(signed):
    return jwt.get_algorithm_by_name("RS256").sign(signed, RSA)


def signed(payload, **head):
    """Sign any bytes as the issuer would."""
    return forged({"alg": "RS256", "kid": "rsa-1"} | head, payload, rs256)


def with_part(authorization, place, change):
    parts = authorization.split(".")
    parts[place] = change(parts[place])
    return ".".join(parts)


async def refused(door, authorization):
    """Check that a request is refused, and that nothing of its token can come into a log."""
    with capture_logs() as logs, pytest.raises(Unauthorized) as caught:
        await door.caller(authorization)
    said = "".join(traceback.format_exception(caught.value)) + repr(logs)
    for piece in (authorization or "").replace(".", " ").split():
        assert len(piece) < 8 or piece not in said
    assert HIDDEN not in said
    return str(caught.value)


async def away(door, authorization):
    with pytest.raises(KeysAway) as caught:
        await door.caller(authorization)
    said = "".join(traceback.format_exception(caught.value))
    assert authorization.removeprefix("Bearer ") not in said
    return str(caught.value)


def huge():
    return jwks(jwk(RSA, "rsa-1"), jwk(EC, "new", x_padding="x" * KEYS_MAX))


@pytest.fixture
async def issuer():
    async with running_issuer() as it:
        yield it


@pytest.fixture
async def open_door(issuer, clock):
    """Make doors that ask the issuer, with `JwksPolicy(**changes)`."""
    async with AsyncExitStack() as stack:

        async def make(algorithms=("RS256", "ES256"), time=clock, **changes):
            keys = KeyServer(issuer.url, algorithms, policy=JwksPolicy(**changes), clock=time)
            door = Tokens(keys, RULES, algorithms)
            return await stack.enter_async_context(door)

        yield make


@pytest.fixture
def settings(tmp_path):
    def make(**changes):
        return Settings(**({"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE} | changes))

    return make


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys"
    path.write_bytes(jwks(jwk(RSA, "rsa-1"), jwk(EC, "ec-1")))
    return path


@pytest.fixture(params=["url", "file"])
async def door(request, issuer, settings, key_file):
    """Make a door as the settings do, with the same keys from both places."""
    where = {"jwt_jwks_url": issuer.url} if request.param == "url" else {"jwt_key_file": key_file}
    async with authentication(settings(**where)) as it:
        yield it


# Who a caller is


@pytest.mark.parametrize(
    ("caller", "actor", "may"),
    [
        pytest.param(Caller("dana", frozenset()), "user:dana", set(), id="without a scope it is a user"),
        pytest.param(
            Caller("billing", frozenset({Scope.PAY})), "service:billing", {Scope.PAY}, id="with one a service"
        ),
        pytest.param(
            Caller("desk", frozenset({Scope.READ, Scope.SHIP})), "service:desk", {Scope.READ, Scope.SHIP}, id="with two"
        ),
        pytest.param(LOCAL, "service:local", set(Scope), id="admin includes all"),
    ],
)
def test_scopes_say_what_a_caller_is_and_may(caller, actor, may):
    assert caller.actor == actor
    assert caller.is_service == actor.startswith("service:")
    assert {scope for scope in Scope if caller.may(scope)} == may


@pytest.mark.parametrize(
    ("caller", "user_id", "sees"),
    [
        (Caller("dana", frozenset()), "dana", True),
        (Caller("dana", frozenset()), "erin", False),
        (Caller("desk", frozenset({Scope.READ})), "dana", True),
        (Caller("dana", frozenset({Scope.PAY})), "dana", False),
        (LOCAL, "dana", True),
    ],
)
def test_users_see_their_own_and_services_all_if_they_may_read(caller, user_id, sees):
    assert caller.sees(user_id) is sees


# Good tokens


@pytest.mark.parametrize(
    "good",
    [
        pytest.param(bearer, id="RS256"),
        pytest.param(lambda: bearer(EC, "ec-1", alg="ES256"), id="ES256"),
        pytest.param(lambda: bearer(iat=None, nbf=None), id="iat and nbf may be missing"),
        pytest.param(lambda: bearer(aud=["others", AUDIENCE]), id="one audience of several is ours"),
        pytest.param(lambda: bearer(exp=int(time.time()) - LEEWAY_S + 15), id="over, but within the leeway"),
        pytest.param(lambda: bearer(nbf=int(time.time()) + LEEWAY_S - 15), id="early, but within the leeway"),
        pytest.param(lambda: f"bEARER  {token()}", id="the scheme in any case"),
        pytest.param(lambda: bearer(kid=None), id="no kid"),
        pytest.param(lambda: bearer(kid=""), id="an empty kid"),
        pytest.param(lambda: bearer(head={"jku": "https://evil.test", "typ": "at+jwt"}), id="a header we do not use"),
    ],
)
async def test_a_good_token_names_its_caller(door, good):
    assert await door.caller(good()) == Caller("dana", frozenset())


@pytest.mark.parametrize(
    ("key", "alg"),
    [(RSA, "RS384"), (RSA, "RS512"), (RSA, "PS256"), (RSA, "PS512"), (EC_384, "ES384"), (ED, "EdDSA")],
)
@pytest.mark.parametrize("form", ["jwks", "pem"])
async def test_every_algorithm_of_a_key_pair_can_be_allowed(settings, tmp_path, key, alg, form):
    path = tmp_path / "key"
    path.write_bytes(pem(key) if form == "pem" else jwks(jwk(key, "k")))
    async with authentication(settings(jwt_key_file=path, jwt_algorithms=alg)) as door:
        assert (await door.caller(bearer(key, "k", alg=alg))).subject == "dana"


@pytest.mark.parametrize(
    ("said", "scopes"),
    [
        pytest.param({}, set(), id="none"),
        pytest.param({"scope": ""}, set(), id="an empty text"),
        pytest.param({"scope": "orders:read"}, {Scope.READ}, id="one"),
        pytest.param({"scope": "openid orders:pay  orders:ship"}, {Scope.PAY, Scope.SHIP}, id="words, some of others"),
        pytest.param({"scope": "openid read:orders orders/read"}, set(), id="only words of others"),
        pytest.param({"scope": None, "scp": None}, set(), id="absent"),
        pytest.param({"roles": ["orders:admin"]}, {Scope.ADMIN}, id="roles"),
        pytest.param({"roles": "orders:admin"}, {Scope.ADMIN}, id="a single role"),
        pytest.param({"roles": [], "permissions": [""]}, set(), id="no roles"),
        pytest.param({"permissions": ["orders:pay", "others"]}, {Scope.PAY}, id="permissions, some of others"),
        pytest.param({"scp": ["orders:read", "email"]}, {Scope.READ}, id="a list"),
        pytest.param({"scp": "orders:read email"}, {Scope.READ}, id="scp as words"),
        pytest.param({"scope": ["orders:admin"]}, {Scope.ADMIN}, id="scope as a list"),
        pytest.param({"scope": "orders:pay", "scp": ["orders:ship"]}, {Scope.PAY, Scope.SHIP}, id="both"),
    ],
)
async def test_rights_are_words_or_a_list(door, said, scopes):
    assert (await door.caller(bearer(**said))).scopes == scopes


async def test_a_claim_that_is_null_is_as_if_it_were_absent(door):
    nothing = dict.fromkeys(("scope", "scp", "roles", "permissions", "nbf"))
    del nothing["nbf"]  # a null there is no time
    assert await door.caller(signed(claims() | nothing)) == Caller("dana", frozenset())


NOT_UNDERSTOOD = {
    "an unknown scope with our prefix": ({"scope": "openid orders:everything"}, "no value in scope gives a scope"),
    "a scope in capitals": ({"scope": "ORDERS:READ"}, "no value in scope gives a scope"),
    "two scopes in an entry of a list": ({"scp": ["orders:read orders:pay"]}, "no value in scp gives a scope"),
    "roles of another system": ({"roles": ["customer"]}, "no value in roles gives a scope"),
    "roles and permissions": ({"roles": ["a"], "permissions": ["b"]}, "no value in roles, permissions gives a scope"),
    "two roles in one text": ({"roles": "orders:read orders:pay"}, "no value in roles gives a scope"),
    "a scope in a claim that is not read": ({"groups": ["orders:admin"]}, "the claim groups has a scope"),
    "a scope deep in a claim": (
        {"realm_access": {"roles": ["x", "orders:admin"]}},
        "the claim realm_access.roles has a scope",
    ),
    "a role that is a number": ({"roles": [5]}, "the claim roles is neither a text nor a list of texts"),
    "roles that are an object": ({"roles": {"orders:admin": {}}}, "the claim roles is neither"),
    "a service without rights": ({"gty": "client-credentials"}, "the token is a service's by its claim gty"),
}


@pytest.mark.parametrize(("said", "why"), NOT_UNDERSTOOD.values(), ids=NOT_UNDERSTOOD.keys())
async def test_a_token_whose_rights_are_not_understood_is_refused_and_the_reason_names_the_claim(door, said, why):
    assert why in await refused(door, bearer(**said))


@pytest.mark.parametrize(
    "subject",
    [
        "auth0|5f7c8ec7c33c6c004bbafe82",
        "google-oauth2|106265432109876543210",
        "xyz123@clients",
        "dana@example.com",
        "system:serviceaccount:shop:web",
        "-7mXb4pQ_x",
        "Zoë Größe, 東京",
        " ",
        "😀" * 255,
    ],
)
async def test_a_subject_may_be_any_printable_text(door, subject):
    caller = await door.caller(bearer(sub=subject))
    assert (caller.subject, caller.actor) == (subject, f"user:{subject}")


# Bad tokens


BAD_SIGNATURES = {
    "none": lambda: forged({"alg": "none", "kid": "rsa-1"}, claims()),
    "NoNe": lambda: forged({"alg": "NoNe", "kid": "rsa-1"}, claims()),
    "no alg": lambda: forged({"kid": "rsa-1"}, claims(), rs256),
    "alg is a list": lambda: forged({"alg": ["RS256"], "kid": "rsa-1"}, claims(), rs256),
    "HS256 with the public key as its secret": lambda: forged(
        {"alg": "HS256", "kid": "rsa-1"}, claims(), hs256(pem(RSA))
    ),
    "HS256 with a key of the set": lambda: forged(
        {"alg": "HS256", "kid": "oct-1"}, claims(), hs256(base64.urlsafe_b64decode(OCT + "="))
    ),
    "RS256 by a symmetric key": lambda: forged({"alg": "RS256", "kid": "oct-1"}, claims(), hs256(OCT.encode())),
    "an algorithm that is not allowed": lambda: bearer(alg="RS512"),
    "an algorithm of another key type": lambda: bearer(EC, "rsa-1", alg="ES256"),
    "another one's key": lambda: bearer(THEIRS),
    "another one's key in the header": lambda: bearer(THEIRS, head={"jwk": jwk(THEIRS, "rsa-1")}),
    "an unknown kid": lambda: bearer(kid=HIDDEN),
    "another one's key without its kid": lambda: bearer(THEIRS, None),
    "a kid that is no text": lambda: forged({"alg": "RS256", "kid": 1}, claims(), rs256),
    "a changed payload": lambda: with_part(bearer(), 1, lambda _: part(claims(sub="erin"))),
    "a changed signature": lambda: with_part(bearer(), 2, lambda it: ("B" if it[0] == "A" else "A") + it[1:]),
    "a signature cut short": lambda: with_part(bearer(), 2, lambda it: it[:-4]),
    "no signature": lambda: with_part(bearer(), 2, lambda _: ""),
    "the signature of another token": lambda: with_part(bearer(), 2, lambda _: token(sub="erin").split(".")[2]),
    "an ES256 signature cut short": lambda: with_part(bearer(EC, "ec-1", alg="ES256"), 2, lambda it: it[:-4]),
    "an ES256 signature of zeros": lambda: with_part(bearer(EC, "ec-1", alg="ES256"), 2, lambda _: part(bytes(64))),
    "an extension that we must understand": lambda: bearer(head={"crit": [HIDDEN], HIDDEN: 1}),
    "a payload that is elsewhere": lambda: forged(
        {"alg": "RS256", "kid": "rsa-1", "b64": False, "crit": ["b64"]}, b"", rs256
    ),
}
BAD_CLAIMS = {
    "expired": lambda: bearer(exp=int(time.time()) - LEEWAY_S - 1),
    "not yet valid": lambda: bearer(nbf=int(time.time()) + LEEWAY_S + 15),
    "issued in the future": lambda: bearer(iat=int(time.time()) + LEEWAY_S + 15),
    "for others": lambda: bearer(aud=HIDDEN),
    "for several others": lambda: bearer(aud=[HIDDEN, AUDIENCE.upper()]),
    "for no audience": lambda: bearer(aud=[]),
    "an audience that is no text": lambda: bearer(aud=5),
    "of another issuer": lambda: bearer(iss=f"https://{HIDDEN}"),
    "of an issuer with our issuer's name in front": lambda: bearer(iss=f"{ISSUER}.{HIDDEN}"),
    "of a list of issuers": lambda: signed(claims() | {"iss": [ISSUER]}),
    "no exp": lambda: bearer(exp=None),
    "no aud": lambda: bearer(aud=None),
    "no iss": lambda: bearer(iss=None),
    "no sub": lambda: bearer(sub=None),
    "exp is null": lambda: signed(claims() | {"exp": None}),
    "exp is a word": lambda: bearer(exp="soon"),
    "exp is no number": lambda: bearer(exp=float("nan")),
    "exp is infinite": lambda: bearer(exp=float("inf")),
    "exp is an object": lambda: bearer(exp={}),
    "a subject with a control character": lambda: bearer(sub=f"{HIDDEN}\x85"),
    "a subject with half a character": lambda: bearer(sub=f"{HIDDEN}\ud800"),
    "a subject with an end of line": lambda: bearer(sub="dana\n"),
    "a subject that is too long": lambda: bearer(sub="d" * 256),
    "an empty subject": lambda: bearer(sub=""),
    "a subject that is a number": lambda: signed(claims() | {"sub": 5}),
    "a scope that is a number": lambda: bearer(scope=5),
    "a list of scopes that are numbers": lambda: bearer(scp=[1, 2]),
    "a payload that is no object": lambda: signed(["dana"]),
    "a payload that is no JSON": lambda: signed(b"dana"),
    "a payload that is no UTF-8": lambda: signed(b'{"sub": "\xff"}'),
    "a payload of 3,000 brackets": lambda: signed(b"[" * 3000),
}
NO_TOKENS = {
    "no header": lambda: None,
    "an empty header": lambda: "",
    "only the scheme": lambda: "Bearer",
    "a scheme and a space": lambda: "Bearer ",
    "no scheme": token,
    "another scheme": lambda: "Basic ZGFuYTpwYXNzd29yZA==",
    "a scheme that ends so": lambda: f"Not{bearer()}",
    "two tokens": lambda: f"{bearer()} {token()}",
    "two headers in one": lambda: f"{bearer()}, {bearer()}",
    "a tab": lambda: f"Bearer\t{token()}",
    "an end of line": lambda: f"{bearer()}\n",
    "garbage": lambda: "Bearer garbage-that-is-no-token",
    "two parts": lambda: "Bearer e30.e30",
    "four parts": lambda: f"{bearer()}.e30",
    "five parts, as if encrypted": lambda: "Bearer e30.e30.e30.e30.e30",
    "dots": lambda: "Bearer ..",
    "a head that is no object": lambda: forged(["RS256"], claims(), rs256),
    "a head that is no JSON": lambda: forged(b"{", claims(), rs256),
    "a head of 3,000 brackets": lambda: forged(b"[" * 3000, claims(), rs256),
    "no base64": lambda: "Bearer a.b.c",
    "letters of no alphabet": lambda: "Bearer \xe9.\xe9.\xe9",
    "bytes that are no text": lambda: "Bearer \udcff.\udcff.\udcff",
    "a byte too long": lambda: f"Bearer {'a' * (TOKEN_MAX + 1)}",
    "a good token, but too long": lambda: bearer(note="x" * TOKEN_MAX),
}


@pytest.mark.parametrize("bad", BAD_SIGNATURES.values(), ids=BAD_SIGNATURES.keys())
async def test_what_the_issuer_did_not_sign_is_refused(door, bad):
    await refused(door, bad())


@pytest.mark.parametrize("bad", BAD_CLAIMS.values(), ids=BAD_CLAIMS.keys())
async def test_what_is_signed_but_not_for_us_now_is_refused(door, bad):
    await refused(door, bad())


@pytest.mark.parametrize("bad", NO_TOKENS.values(), ids=NO_TOKENS.keys())
async def test_what_is_no_token_is_refused(door, bad):
    await refused(door, bad())


async def test_a_refusal_says_to_our_log_what_is_wrong(door):
    said = {
        "the claim sub is missing: see ORDERS_JWT_SUBJECT_CLAIMS": bearer(sub=None),
        "the claim aud is not ORDERS_JWT_AUDIENCE": bearer(aud=HIDDEN),
        "the claim aud is missing: see ORDERS_JWT_AUDIENCE_CLAIM": bearer(aud=None),
        "the claim iss is not ORDERS_JWT_ISSUER": bearer(iss=HIDDEN),
        "the claim exp is missing": bearer(exp=None),
        "the token has expired": bearer(exp=1),
        "the token is not valid yet: its iat or nbf is in the future": bearer(nbf=int(time.time()) + 600),
        "the signature does not fit the key that the token names": bearer(THEIRS),
        "the signature fits none of the keys": bearer(THEIRS, None),
        "no key has the token's key id and fits its algorithm": bearer(kid=HIDDEN),
        "the token is not a signed JWT: it has 1 parts instead of 3": "Bearer opaque",
    }
    assert {why: await refused(door, bad) for why, bad in said.items()} == {why: why for why in said}


async def test_a_token_of_the_greatest_length_is_taken(door):
    room = TOKEN_MAX - len(token(note=""))
    long = token(note="x" * (room * 3 // 4 - 2))
    assert TOKEN_MAX - 8 <= len(long) <= TOKEN_MAX
    assert (await door.caller(f"Bearer {long}")).subject == "dana"


async def test_a_changed_letter_anywhere_is_refused(door):
    good = bearer(EC, "ec-1", alg="ES256")
    for place in range(len("Bearer "), len(good)):
        other = "A" if good[place] != "A" else "B"
        await refused(door, good[:place] + other + good[place + 1 :])


async def test_hopeless_tokens_make_us_ask_nobody(open_door, issuer, clock):
    door = await open_door()
    await door.caller(bearer())
    clock.now += 60
    for bad in ("none", "HS256 with a key of the set", "an algorithm that is not allowed"):
        await refused(door, BAD_SIGNATURES[bad]())
    assert issuer.asked == 1


# Which keys are of use


SKIPPED = {
    "symmetric": {"kty": "oct", "kid": "x", "k": OCT},
    "symmetric by another name": {"kty": "oct", "kid": "x", "k": OCT, "alg": "RS256"},
    "of an unknown type": {"kty": "AKP", "kid": "x", "alg": "ML-DSA-44"},
    "a type that is a list": {"kty": ["RSA"], "kid": "x"},
    "to encrypt with": jwk(THEIRS, "x", use="enc"),
    "not to check with": jwk(THEIRS, "x", key_ops=["encrypt"]),
    "for another algorithm": jwk(THEIRS, "x", alg="RSA-OAEP"),
    "for HS256": jwk(THEIRS, "x", alg="HS256"),
    "an alg that is a list": jwk(THEIRS, "x", alg=["RS256"]),
    "short": jwk(SHORT, "x"),
    "of a curve without an algorithm": jwk(BITCOIN, "x"),
    "private": json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(THEIRS)) | {"kid": "x", "key_ops": ["verify"]},
    "a private curve": json.loads(jwt.get_algorithm_by_name("ES256").to_jwk(EC_384)) | {"kid": "x"},
    "no object": ["RSA"],
    "with a damaged certificate": {"kty": "RSA", "kid": "x", "x5c": ["AAAA"]},
    "with a certificate that is no base64": {"kty": "RSA", "kid": "x", "x5c": ["A"]},
    "with an empty list of certificates": {"kty": "RSA", "kid": "x", "x5c": []},
    "with a number for a name": jwk(THEIRS, 5),
    "without its number": jwk(THEIRS, "x", n=None),
    "with an invalid number": jwk(THEIRS, "x", n=5),
    "with an exponent of 1": jwk(THEIRS, "x", e="AQ"),
    "off its curve": jwk(EC, "x", y="A" * 43),
    "on another curve": jwk(EC, "x", crv="P-384"),
}


@pytest.mark.parametrize("useless", SKIPPED.values(), ids=SKIPPED.keys())
def test_a_key_that_is_of_no_use_spoils_no_other(useless):
    assert [key.kid for key in read_jwks(jwks(useless, jwk(EC, "ec-1"), useless), SIGNATURES).keys] == ["ec-1"]
    with pytest.raises(KeysAway):
        read_jwks(jwks(useless), SIGNATURES)


@pytest.mark.parametrize(
    ("key", "changes", "serves"),
    [
        (RSA, {}, ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
        (RSA, {"alg": "PS256"}, ["PS256"]),
        (RSA, {"use": None, "key_ops": ["verify"]}, ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
        (EC, {}, ["ES256"]),
        (EC_384, {}, ["ES384"]),
        (ec.generate_private_key(ec.SECP521R1()), {}, ["ES512"]),
        (ED, {}, ["EdDSA"]),
    ],
)
def test_a_key_serves_the_algorithms_of_its_type(key, changes, serves):
    assert [key.algorithms for key in read_jwks(jwks(jwk(key, "k", **changes)), SIGNATURES).keys] == [serves]


NO_KEYS = {
    "nothing": b"",
    "a page": b"<!doctype html><title>Welcome</title>",
    "half a document": jwks(jwk(RSA, "rsa-1"))[:-2],
    "a list": json.dumps([jwk(RSA, "rsa-1")]).encode(),
    "a single key": json.dumps(jwk(RSA, "rsa-1")).encode(),
    "keys that are no list": b'{"keys": {}}',
    "a key that is no object": b'{"keys": [null]}',
    "no keys": jwks(),
    "no UTF-8": b'{"keys": [{"kid": "\xff"}]}',
    "100,000 brackets": b'{"keys": [{"x": ' + b"[" * 100_000,
    "a byte too many": jwks(jwk(RSA, "rsa-1")).ljust(KEYS_MAX + 1),
}


@pytest.mark.parametrize("data", NO_KEYS.values(), ids=NO_KEYS.keys())
def test_a_document_that_is_of_no_use_is_no_answer(data):
    with pytest.raises(KeysAway):
        read_jwks(data, SIGNATURES)


def test_a_document_may_have_every_byte_that_is_allowed():
    assert [key.kid for key in read_jwks(jwks(jwk(RSA, "rsa-1")).ljust(KEYS_MAX), SIGNATURES).keys] == ["rsa-1"]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(private_pem(RSA), id="a private key"),
        pytest.param(pem(RSA) + pem(EC), id="two keys, of which the second would never be used"),
        pytest.param(pem(SHORT), id="a short key"),
        pytest.param(pem(BITCOIN), id="a curve without an algorithm"),
        pytest.param(pem(RSA)[:100], id="half a key"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_pem_that_is_of_no_use_is_no_answer(data):
    with pytest.raises(KeysAway):
        read_pem(data, SIGNATURES)


# Keys by URL


async def test_many_first_requests_share_one_fetch(open_door, issuer):
    door = await open_door()
    callers = await asyncio.gather(*(door.caller(bearer(sub=f"user-{number}")) for number in range(20)))
    assert [caller.subject for caller in callers] == [f"user-{number}" for number in range(20)]
    assert issuer.asked == 1


async def test_a_new_key_is_found_and_the_old_one_forgotten(open_door, issuer, clock):
    door = await open_door()
    await door.caller(bearer())
    issuer.keys = [jwk(EC, "new")]
    clock.now += 10
    assert (await door.caller(bearer(EC, "new", alg="ES256"))).subject == "dana"
    await refused(door, bearer())
    assert issuer.asked == 2


async def test_unknown_keys_have_us_ask_once_in_ten_seconds(open_door, issuer, clock):
    door = await open_door()
    for asked in (1, 2, 3):
        for _ in range(2):
            await asyncio.gather(*(refused(door, bearer(kid=f"{HIDDEN}-{number}")) for number in range(10)))
        assert issuer.asked == asked
        clock.now += 9.9
        await refused(door, bearer(kid=HIDDEN))
        assert issuer.asked == asked
        clock.now += 0.1


FAULTS = {
    "hanging": hang,
    "breaking the connection": reset,
    "500": status(500),
    "404": status(404),
    "201": status(201),
    "redirecting": redirect,
    "a page": body(NO_KEYS["a page"]),
    "a document that is too long": body(huge()),
    "no keys": body(jwks()),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
async def test_while_the_url_gives_nothing_the_keys_known_go_on(open_door, issuer, clock, fault):
    door = await open_door(timeout_s=1.0)
    await door.caller(bearer())
    issuer.keys.append(jwk(EC, "new"))
    issuer.answer = fault
    clock.now += 60
    with capture_logs() as logs:
        for asked in (2, 3):
            await asyncio.gather(*(away(door, bearer(EC, "new", alg="ES256")) for _ in range(10)))
            await away(door, bearer(kid="other"))
            assert (await door.caller(bearer())).subject == "dana"
            await refused(door, bearer(THEIRS))
            assert issuer.asked == asked
            clock.now += 10
        issuer.answer = None
        assert (await door.caller(bearer(EC, "new", alg="ES256"))).subject == "dana"
    assert issuer.asked == 4
    assert issuer.redirected == 0
    assert [entry["log_level"] for entry in logs] == ["warning", "info"]


async def test_an_issuer_that_is_away_stops_no_start_and_refuses_nobody(open_door, issuer, clock):
    issuer.answer = status(503)
    door = await open_door()
    assert (await away(door, bearer())).startswith("status 503")
    issuer.answer = None
    await away(door, bearer())
    clock.now += 10
    assert (await door.caller(bearer())).subject == "dana"
    assert issuer.asked == 2


async def test_each_new_reason_why_there_are_no_keys_is_logged_once(open_door, issuer, clock):
    with capture_logs() as logs:
        door = await open_door()
        for answer in (status(503), status(503), body(NO_KEYS["a page"])):
            issuer.answer = answer
            await away(door, bearer())
            clock.now += 10
    reasons = ["status 503 with application/octet-stream", "an HTML page, not a JWKS document"]
    assert [entry["fault"] for entry in logs] == reasons


async def test_nobody_listening_is_no_answer(unused_tcp_port):
    keys = KeyServer(f"http://127.0.0.1:{unused_tcp_port}/jwks", ["RS256"])
    async with Tokens(keys, RULES, ["RS256"]) as door:
        assert (await away(door, bearer())).startswith("the connection failed")


async def test_a_slow_url_holds_up_no_token_whose_key_is_known(open_door, issuer, clock):
    door = await open_door()
    await door.caller(bearer())
    issuer.answer = hang
    clock.now += 60
    waiting = asyncio.create_task(away(door, bearer(kid="new")))
    await issuer.asked_more(1)
    assert (await door.caller(bearer())).subject == "dana"
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait((waiting,))


async def test_one_who_gives_up_waiting_takes_the_answer_from_nobody(open_door, issuer, clock):
    door = await open_door()
    await door.caller(bearer())
    go_on = asyncio.Event()

    async def slow(_):
        await go_on.wait()
        return web.Response(body=jwks(jwk(EC, "new")))

    issuer.answer = slow
    clock.now += 60
    first, second = (asyncio.create_task(door.caller(bearer(EC, "new", alg="ES256"))) for _ in range(2))
    await issuer.asked_more(1)
    first.cancel()
    await asyncio.wait((first,))
    go_on.set()
    assert (await second).subject == "dana"
    assert issuer.asked == 2


async def test_known_keys_serve_for_a_day_without_an_answer_and_no_longer(open_door, issuer, clock):
    door = await open_door()
    await door.caller(bearer())
    issuer.answer = status(500)
    clock.now += 24 * 3600 - 1
    assert (await door.caller(bearer())).subject == "dana"
    clock.now += 1
    await away(door, bearer())
    issuer.answer = None
    clock.now += 10
    assert (await door.caller(bearer())).subject == "dana"


async def test_keys_are_asked_for_again_without_anybody_calling(open_door, issuer):
    door = await open_door(time=time.monotonic, fresh_s=0.001)
    await door.caller(bearer())
    issuer.keys = [jwk(EC, "new")]
    await issuer.asked_more(2)  # the second is asked when the first is answered
    await refused(door, bearer())
    assert (await door.caller(bearer(EC, "new", alg="ES256"))).subject == "dana"


async def test_a_failure_heals_without_anybody_calling(open_door, issuer):
    issuer.answer = status(500)
    door = await open_door(time=time.monotonic, again_s=0.001)
    await issuer.asked_more(2)
    issuer.answer = None
    await issuer.asked_more(1)
    assert (await door.caller(bearer())).subject == "dana"


async def after(delay_s):
    """Wait until every timer of the loop that was set for an earlier time has fired."""
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(delay_s, passed.set)
    await passed.wait()


async def test_one_request_is_out_at_a_time(open_door, issuer, clock):
    door = await open_door(fresh_s=0.02)
    await door.caller(bearer())
    issuer.answer = hang
    before = issuer.asked
    clock.now += 10
    waiting = asyncio.create_task(away(door, bearer(kid="new")))
    await issuer.asked_more(1)
    await after(0.04)
    assert issuer.asked == before + 1
    waiting.cancel()
    await asyncio.wait((waiting,))


async def test_a_closed_door_asks_no_more(issuer, caplog):
    keys = KeyServer(issuer.url, ["RS256"], policy=JwksPolicy(fresh_s=0.02))
    async with Tokens(keys, RULES, ["RS256"]) as door:
        await door.caller(bearer())
    await after(0.04)
    await after(0)  # a turn of the loop for what a timer has started
    gc.collect()
    assert not caplog.records  # asyncio would report the request of a closed session


async def test_fetches_are_counted_by_their_outcome(open_door, issuer, clock):
    def count(outcome):
        return REGISTRY.get_sample_value("orders_jwks_fetches_total", {"outcome": outcome}) or 0

    ok, failed = count("ok"), count("failed")
    door = await open_door()
    await door.caller(bearer())
    issuer.answer = status(500)
    clock.now += 10
    await away(door, bearer(kid="new"))
    assert (count("ok"), count("failed")) == (ok + 1, failed + 1)


async def test_closing_ends_the_waiting_and_the_asking(issuer):
    issuer.answer = hang
    door = Tokens(KeyServer(issuer.url, ["RS256"]), RULES, ["RS256"])
    async with door:
        waiting = asyncio.create_task(away(door, bearer()))
        await issuer.asked_more(1)
    assert await waiting == "the service is stopping"
    assert await away(door, bearer()) == "the service is not running"
    assert issuer.asked == 1
    gc.collect()  # an unclosed task or session would be reported here, and a warning fails a test


async def test_a_door_that_was_never_opened_knows_no_key(issuer):
    door = Tokens(KeyServer(issuer.url, ["RS256"]), RULES, ["RS256"])
    await away(door, bearer())
    async with door:  # and closes at once
        pass
    assert issuer.asked <= 1


# Keys by file


@pytest.fixture
def door_of(key_file):
    algorithms = ["RS256", "ES256"]
    return Tokens(KeyFile(key_file, algorithms), RULES, algorithms)


@pytest.mark.parametrize("kid", ["rsa-1", "any", None])
async def test_the_only_key_of_a_pem_file_needs_no_name(settings, key_file, kid):
    key_file.write_bytes(b"The issuer's key:\n" + pem(RSA))
    async with authentication(settings(jwt_key_file=key_file)) as door:
        assert (await door.caller(bearer(kid=kid))).subject == "dana"
        await refused(door, bearer(THEIRS, kid))
        await refused(door, bearer(EC, kid, alg="ES256"))
        await refused(door, forged({"alg": "HS256"}, claims(), hs256(pem(RSA))))


@pytest.mark.parametrize("form", ["jwks", "pem"])
async def test_a_file_that_changes_is_read_again(door_of, key_file, form):
    await door_of.caller(bearer())
    key_file.write_bytes(pem(EC) if form == "pem" else jwks(jwk(EC, "new")))
    assert (await door_of.caller(bearer(EC, "new", alg="ES256"))).subject == "dana"
    await refused(door_of, bearer())


async def test_a_file_that_is_replaced_by_one_of_the_same_size_is_read_again(door_of, key_file):
    await door_of.caller(bearer())
    other = key_file.with_suffix(".new")
    other.write_bytes(key_file.read_bytes().replace(b"rsa-1", b"rsa-2"))
    other.rename(key_file)
    assert (await door_of.caller(bearer(kid="rsa-2"))).subject == "dana"
    await refused(door_of, bearer())


@pytest.mark.parametrize(
    "spoil", [lambda file: file.write_bytes(b"{"), lambda file: file.unlink()], ids=["bad", "gone"]
)
async def test_while_the_file_is_of_no_use_the_keys_read_before_go_on(door_of, key_file, spoil):
    good = key_file.read_bytes()
    with capture_logs() as logs:
        spoil(key_file)
        for _ in range(3):
            assert (await door_of.caller(bearer())).subject == "dana"
            await away(door_of, bearer(kid="new"))
        key_file.write_bytes(good)
        assert (await door_of.caller(bearer())).subject == "dana"
    await refused(door_of, bearer(kid="new"))
    assert [entry["log_level"] for entry in logs] == ["error", "info"]


# What the settings ask for


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost", "LocalHost"])
async def test_on_loopback_everybody_is_let_in(host):
    door = authentication(Settings(host=host))
    assert isinstance(door, Everybody)
    async with door:
        for authorization in (None, "", bearer(THEIRS)):
            assert await door.caller(authorization) == LOCAL


async def test_whoever_publishes_on_loopback_alone_can_say_so():
    assert isinstance(authentication(Settings(host="0.0.0.0", http_published_on_loopback=True)), Everybody)


URL = {"jwt_jwks_url": "https://issuer.test/jwks"}
NAMES = {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        *[
            ({"host": host}, "ORDERS_JWT_JWKS_URL or ORDERS_JWT_KEY_FILE")
            for host in ("0.0.0.0", "::", "", "10.0.0.1", "orders.test", "localhost.test", "127.0.0.1.test", "[::1]")
        ],
        (URL, "ORDERS_JWT_ISSUER and ORDERS_JWT_AUDIENCE"),
        (URL | {"jwt_issuer": ISSUER}, "ORDERS_JWT_ISSUER and ORDERS_JWT_AUDIENCE"),
        (URL | {"jwt_audience": AUDIENCE}, "ORDERS_JWT_ISSUER and ORDERS_JWT_AUDIENCE"),
        ({"jwt_key_file": "keys"}, "ORDERS_JWT_ISSUER and ORDERS_JWT_AUDIENCE"),
        (URL | NAMES | {"jwt_key_file": "keys"}, "not both"),
        (NAMES, "ORDERS_JWT_JWKS_URL or ORDERS_JWT_KEY_FILE"),
        ({"jwt_audience": AUDIENCE}, "ORDERS_JWT_JWKS_URL or ORDERS_JWT_KEY_FILE"),
        *[
            (URL | NAMES | {"jwt_scope_values": values}, "ORDERS_JWT_SCOPE_VALUES must be ")
            for values in ("admin", "orders:all=x", "orders:admin", "orders:admin=", "orders:pay=a,,orders:pay=b", ",")
        ],
        *[
            (URL | NAMES | {f"jwt_{name}": names}, f"ORDERS_JWT_{name.upper()} must be one or more values")
            for name in ("scope_claims", "subject_claims", "audience")
            for names in (" ", ",", "a,", "a,,b")
        ],
        (URL | NAMES | {"jwt_scope_claims": ""}, "ORDERS_JWT_SCOPE_CLAIMS must be one or more values"),
        *[
            (URL | NAMES | {f"jwt_{kind}_if": condition}, f"ORDERS_JWT_{kind.upper()}_IF must be ")
            for kind in ("user", "service")
            for condition in ("=", "=x", "a=", "a,", ",")
        ],
        (
            URL | NAMES | {"jwt_user_if": "a", "jwt_service_if": "b,a"},
            "_USER_IF and ORDERS_JWT_SERVICE_IF have the same",
        ),
        ({"jwt_leeway_s": 30}, "ORDERS_JWT_LEEWAY_S without ORDERS_JWT_JWKS_URL or ORDERS_JWT_KEY_FILE"),
        (NAMES | {"jwt_user_if": "uid"}, "ORDERS_JWT_ISSUER, ORDERS_JWT_AUDIENCE, ORDERS_JWT_USER_IF without"),
        (NAMES | {"host": "0.0.0.0"}, "ORDERS_JWT_JWKS_URL or ORDERS_JWT_KEY_FILE"),
        (NAMES | {"jwt_key_file": "/nowhere/keys"}, "ORDERS_JWT_KEY_FILE /nowhere/keys: cannot be read"),
        (NAMES | {"jwt_key_file": "."}, "cannot be read"),
        (NAMES | {"jwt_key_file": __file__}, "neither a public key in PEM nor a JWKS document"),
    ],
)
def test_settings_that_do_not_fit_are_one_line_that_says_what_to_set(wrong, says):
    with pytest.raises(SetupError) as caught:
        authentication(Settings(**wrong))
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_key_that_no_allowed_algorithm_can_use_is_said_at_the_start(settings, key_file):
    key_file.write_bytes(pem(EC))
    with pytest.raises(SetupError, match="ORDERS_JWT_ALGORITHMS"):
        authentication(settings(jwt_key_file=key_file, jwt_algorithms="RS256"))


@pytest.mark.parametrize(
    "url", ["ftp://issuer.test/jwks", "issuer.test/jwks", "file:///jwks", "https://", "https://a/#b"]
)
def test_the_url_of_keys_is_one_of_http(url):
    with pytest.raises(ValidationError):
        Settings(jwt_jwks_url=url)


def test_the_url_of_keys_stays_as_it_is(issuer):
    assert Settings(jwt_jwks_url="https://issuer.test/keys/?p=one").jwt_jwks_url == "https://issuer.test/keys/?p=one"


@pytest.mark.parametrize(
    "names", ["", "none", "HS256", "RS256,HS512", "RS256,none", "RS256,", "rs256", "ES256K", "RS256 ES256", "*"]
)
def test_only_algorithms_of_key_pairs_can_be_set(names):
    with pytest.raises(ValidationError):
        Settings(jwt_algorithms=names)


@pytest.mark.parametrize(
    "wrong",
    [{"jwt_leeway_s": -1}, {"jwt_leeway_s": 3601}, {"jwt_leeway_s": float("nan")}, {"jwt_audience_claim": "sub"}],
)
def test_leeway_and_audience_claim_have_bounds(wrong):
    with pytest.raises(ValidationError):
        Settings(**wrong)


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("ORDERS_JWT_ALGORITHMS", "PS256, EdDSA")
    monkeypatch.setenv("ORDERS_JWT_KEY_FILE", "")
    settings = Settings()
    assert settings.jwt_algorithms == "PS256,EdDSA"
    assert settings.jwt_key_file is None


# What `doctor` says about the keys


async def test_the_keys_of_an_issuer_are_counted_and_those_that_expired_are_a_warning(issuer, settings):
    [result] = await check_keys(settings(jwt_jwks_url=issuer.url))
    assert (result.status, result.text) == ("ok", f"{issuer.url.removesuffix('/jwks')} publishes 2 usable keys.")
    issuer.keys = [jwk(RSA, "rsa-1", exp=int(time.time()) - 60), jwk(EC, "ec-1", exp=int(time.time()) + 600)]
    [result] = await check_keys(settings(jwt_jwks_url=issuer.url))
    assert result.status == "warning"
    assert "1 key of" in result.text


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (status(500), "returns no keys: status 500"),
        (redirect, "a redirect to another path of the same host: set ORDERS_JWT_JWKS_URL to its target"),
        (body(b"\n <!doctype html><title>Sign in</title>"), "an HTML page, not a JWKS document"),
        (body(b'{"issuer": "https://issuer.test", "jwks_uri": "https://issuer.test/jwks"}'), "discovery document"),
        (body(b"{}"), "not a JWKS document"),
        (reset, "returns no keys"),
    ],
)
async def test_an_issuer_without_usable_keys_is_an_error(issuer, settings, answer, why):
    issuer.answer = answer
    with pytest.raises(KeysAway, match=why):
        await check_keys(settings(jwt_jwks_url=issuer.url))


async def test_a_key_file_is_read_and_without_keys_nothing_is_checked(settings, key_file, tmp_path):
    assert [result.status for result in await check_keys(settings(jwt_key_file=key_file))] == ["ok"]
    assert [result.status for result in await check_keys(Settings())] == ["not_checked"]
    with pytest.raises(SetupError, match="cannot be read"):
        await check_keys(settings(jwt_key_file=tmp_path / "missing"))
