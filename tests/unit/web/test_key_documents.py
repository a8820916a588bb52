"""Documents with keys as servers really send them, and keys and tokens without a key id."""

import base64
import gzip
import json
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from order_service.errors import KeysAway, Unauthorized
from order_service.settings import SIGNATURES
from order_service.web.access.auth import Tokens
from order_service.web.access.jwks import KEYS_TRIED_MAX, read_jwks, read_keys
from order_service.web.access.key_sources import ACCEPT, JwksPolicy, KeyFile, KeyServer
from order_service.web.access.token_rules import TokenRules
from tests.support.issuer import EC, RSA, THEIRS, body, hang, jwk, jwks, pem, running_issuer, status

RULES = TokenRules(issuer="issuer", audiences=frozenset({"orders"}))
OTHER = rsa.generate_private_key(65537, 2048)


def bearer(key=RSA, kid=None, alg="RS256"):
    claims = {"iss": "issuer", "aud": "orders", "sub": "dana", "exp": datetime.now(UTC) + timedelta(minutes=5)}
    return f"Bearer {jwt.encode(claims, key, alg, headers={} if kid is None else {'kid': kid})}"


def certificate(key):
    """Return the certificate of a key as it stands in `x5c`; it expired long ago, which is of no account there."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
    start = datetime(2020, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + timedelta(days=1))
    return base64.b64encode(builder.sign(key, SHA256()).public_bytes(Encoding.DER)).decode()


def x5c_only(key, kty, **members):
    return {"kty": kty, "use": "sig", "x5c": [certificate(key), "no certificate"], **members}


# Documents


DOCUMENTS = {
    "Auth0: x5c beside the numbers": jwks(jwk(RSA, "k", alg="RS256", x5t="x", x5c=[certificate(RSA)])),
    "Entra ID: no alg, an issuer in the key": jwks(
        jwk(RSA, "k", alg=None, issuer="https://login.test/{tenantid}/v2.0")
    ),
    "Keycloak: a key to encrypt with comes first": jwks(jwk(THEIRS, "e", use="enc", alg="RSA-OAEP"), jwk(RSA, "k")),
    "Okta: status and key_ops": jwks(jwk(RSA, "k", status="ACTIVE", key_ops=["verify", "encrypt"])),
    "no use, no alg": jwks(jwk(RSA, "k", use=None, alg=None)),
    "only x5c": jwks(x5c_only(RSA, "RSA", kid="k")),
    "only x5c of a curve": jwks(x5c_only(EC, "EC", kid="k")),
    "types of the future": jwks({"kty": "AKP", "kid": "q", "pub": "AA"}, jwk(RSA, "k"), {"no": "kty"}, "no key", None),
    "members of the document": json.dumps({"keys": [jwk(RSA, "k")], "version": 1, "next": None}).encode(),
    "a byte order mark": b"\xef\xbb\xbf" + jwks(jwk(RSA, "k")),
    "white space": b"\r\n\t " + jwks(jwk(RSA, "k")) + b"\n\n",
    "compressed without being asked": gzip.compress(jwks(jwk(RSA, "k"))),
}


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_a_document_as_servers_send_it_is_read(document):
    assert [key.kid for key in read_jwks(document, SIGNATURES).keys] == ["k"]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        pytest.param(b"<html>", "an HTML page", id="a page"),
        pytest.param(b"\xef\xbb\xbf\n<?xml?>", "an HTML page", id="a page after a mark"),
        pytest.param(
            b'{"issuer": "i", "jwks_uri": "u"}', "discovery document: its jwks_uri", id="a discovery document"
        ),
        pytest.param(b'{"error": "not found"}', "it has no `keys`", id="an error"),
        pytest.param(json.dumps(jwk(RSA, "k")).encode(), "it has no `keys`", id="a key without a set"),
        pytest.param(b'{"keys": "none"}', "not a JWKS document", id="keys of another type"),
        pytest.param(jwks(), "none of the 0 keys", id="no keys"),
        pytest.param(jwks(jwk(RSA, "a", use="enc"), {"kty": "oct"}), "none of the 2 keys", id="no key to verify with"),
        pytest.param(b"\x1f\x8b damaged", "not a JWKS document", id="damaged compression"),
        pytest.param(gzip.compress(b'{"keys": [' + b" " * 10**7), "longer than", id="a compressed bomb"),
    ],
)
def test_any_other_document_is_named_as_what_it_is(document, why):
    with pytest.raises(KeysAway, match=why):
        read_jwks(document, SIGNATURES)


def test_a_file_may_have_a_byte_order_mark():
    assert len(read_keys(b"\xef\xbb\xbf" + jwks(jwk(RSA, "k")), SIGNATURES).keys) == 1
    assert len(read_keys(pem(RSA), SIGNATURES).keys) == 1


# Key ids


@pytest.fixture(params=["url", "file"])
async def open_door(request, tmp_path, clock):
    """Return a function that makes a door with these keys, from both sources."""
    async with AsyncExitStack() as stack:

        async def make(*keys):
            (tmp_path / "keys").write_bytes(jwks(*keys))
            if request.param == "file":
                return await stack.enter_async_context(
                    Tokens(KeyFile(tmp_path / "keys", SIGNATURES), RULES, SIGNATURES)
                )
            issuer = await stack.enter_async_context(running_issuer())
            issuer.keys = list(keys)
            return await stack.enter_async_context(Tokens(KeyServer(issuer.url, SIGNATURES), RULES, SIGNATURES))

        yield make


@pytest.mark.parametrize("key_id", [None, "", "k"])
@pytest.mark.parametrize("kid", [None, "", "k"])
async def test_a_key_id_is_optional_in_token_and_key(open_door, key_id, kid):
    door = await open_door(jwk(THEIRS, "other"), jwk(EC, key_id), jwk(OTHER, key_id), jwk(RSA, key_id))
    assert (await door.caller(bearer(RSA, kid))).subject == "dana"
    assert (await door.caller(bearer(EC, kid, "ES256"))).subject == "dana"


async def test_a_key_id_that_both_have_decides(open_door):
    door = await open_door(jwk(RSA, "a"), jwk(THEIRS, "b"), jwk(OTHER, None))
    assert (await door.caller(bearer(RSA, "a"))).subject == "dana"
    assert (await door.caller(bearer(OTHER, "unknown"))).subject == "dana"
    for key, kid in ((RSA, "b"), (OTHER, "a"), (RSA, "unknown"), (EC, "a")):
        with pytest.raises(Unauthorized):
            await door.caller(bearer(key, kid, "ES256" if key is EC else "RS256"))


async def test_only_so_many_keys_are_tried(open_door):
    many = [jwk(THEIRS, None)] * KEYS_TRIED_MAX
    door = await open_door(*many[1:], jwk(RSA, None))
    assert (await door.caller(bearer())).subject == "dana"
    door = await open_door(*many, jwk(RSA, None))
    with pytest.raises(Unauthorized):
        await door.caller(bearer())


async def test_a_new_key_without_an_id_is_fetched_when_a_signature_fits_no_known_one(clock):
    async with running_issuer() as issuer:
        issuer.keys = [jwk(THEIRS, None)]
        async with Tokens(KeyServer(issuer.url, ["RS256"], clock=clock), RULES, ["RS256"]) as door:
            await door.caller(bearer(THEIRS))
            issuer.keys = [jwk(THEIRS, None), jwk(RSA, None)]
            clock.now += 10
            assert (await door.caller(bearer())).subject == "dana"
            assert issuer.asked == 2
            for _ in range(3):  # forged ones make us ask no more than once in ten seconds
                with pytest.raises(Unauthorized):
                    await door.caller(bearer(OTHER))
            assert issuer.asked == 2


# Servers


@pytest.mark.parametrize(
    "content_type",
    [
        "application/jwk-set+json",
        "application/json",
        "application/json; charset=UTF-8",
        "application/octet-stream",
        "text/plain",
    ],
)
async def test_keys_come_in_any_content_type_and_are_asked_for_in_two(content_type):
    async def answer(request):
        if request.headers["Accept"] != ACCEPT["Accept"]:
            return web.Response(status=406)
        return web.Response(body=jwks(jwk(RSA, "k")), headers={"Content-Type": content_type})

    async with running_issuer() as issuer:
        issuer.answer = answer
        async with Tokens(KeyServer(issuer.url, ["RS256"]), RULES, ["RS256"]) as door:
            assert (await door.caller(bearer(kid="k"))).subject == "dana"


async def moved(_):
    return web.Response(status=301, headers={"Location": "https://user:secret@login.test:444/secret?code=secret"})


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        pytest.param(
            moved, "status 301, a redirect to login.test:444: set ORDERS_JWT_JWKS_URL to its target", id="a redirect"
        ),
        pytest.param(body(b"<!doctype html>"), "an HTML page, not a JWKS document", id="a page"),
        pytest.param(status(503), "status 503 with application/octet-stream", id="a failure"),
    ],
)
async def test_a_door_without_keys_says_why_no_token_can_be_verified_and_heals(clock, answer, why):
    async with running_issuer() as issuer:
        issuer.answer = answer
        door = Tokens(KeyServer(issuer.url, ["RS256"], clock=clock), RULES, ["RS256"])
        assert door.fault() == "the keys are being fetched"
        async with door:
            with pytest.raises(KeysAway, match=why):
                await door.caller(bearer(kid="k"))
            assert door.fault() == why
            issuer.answer, issuer.keys = None, [jwk(RSA, "k")]
            clock.now += 10
            await door.caller(bearer(kid="k"))
            assert door.fault() is None
            issuer.answer = answer
            clock.now += 24 * 3600 - 1
            assert door.fault() is None  # the keys that are known stay valid for a day
            clock.now += 1
            with pytest.raises(KeysAway, match=why):
                await door.caller(bearer(kid="k"))
            assert door.fault() == why


async def test_a_key_file_has_no_fault_that_stops_tokens(tmp_path):
    (tmp_path / "keys").write_bytes(pem(RSA))
    door = Tokens(KeyFile(tmp_path / "keys", ["RS256"]), RULES, ["RS256"])
    (tmp_path / "keys").unlink()
    assert (await door.caller(bearer())).subject == "dana"
    assert door.fault() is None


async def test_a_source_that_hangs_is_not_ready():
    async with running_issuer() as issuer:
        issuer.answer = hang
        policy = JwksPolicy(timeout_s=0.05)
        async with Tokens(KeyServer(issuer.url, ["RS256"], policy=policy), RULES, ["RS256"]) as door:
            with pytest.raises(KeysAway):
                await door.caller(bearer())
            assert door.fault() == "no response within 0.05 s"
