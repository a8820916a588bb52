"""`order-service token check`: with keys from a file or a URL, and without ever printing the token."""

import asyncio
import json
import os
import re
import ssl
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tests.support.command_line import CommandLine
from tests.support.issuer import RSA, THEIRS, body, jwk, jwks, pem, private_pem, redirect, running_issuer

pytestmark = pytest.mark.usefixtures("clean_environment")

GUIDE = Path(__file__).parents[3] / "docs/guide/fit-in.md"
ISSUER = "https://shop.eu.auth0.com/"
CLAIMS = {"iss": ISSUER, "aud": "orders", "sub": "auth0|5f7c", "scope": "openid"}


def token(key=RSA, **changes):
    claims = {**CLAIMS, "iat": int(time.time()), "exp": int(time.time()) + 600, **changes}
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, key, "RS256")


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "key.pem"
    path.write_bytes(pem(RSA))
    return {"ORDERS_JWT_KEY_FILE": str(path), "ORDERS_JWT_ISSUER": ISSUER, "ORDERS_JWT_AUDIENCE": "orders"}


def check(settings, text, code=0, *options):
    """Run the command; no part of the token may be in its output."""
    result = CommandLine(settings)("token", "check", *options, code=code, stdin=text)
    for part in text.replace(".", " ").split():
        assert len(part) < 10 or part not in result.output
    return result.stdout


def failed(settings, text):
    """Return the failed checks with their texts."""
    said = json.loads(check(settings, text, 1, "--json"))
    assert (said["ok"], said["actor"], said["scopes"]) == (False, None, [])
    return {each["name"]: each["text"] for each in said["checks"] if not each["passed"]}


@pytest.mark.parametrize("form", ["{}", "{}\n", "Bearer {}", "  bearer  {}\r\n"])
def test_a_good_token_passes_and_its_actor_is_shown(settings, form):
    said = check(settings, form.format(token()))
    assert "accepted: actor user:auth0|5f7c, scopes: none" in said
    assert "failed" not in said


def test_the_scopes_of_a_service_are_shown(settings):
    said = json.loads(check(settings, token(permissions=["orders:ship", "orders:pay"]), 0, "--json"))
    assert (said["ok"], said["actor"]) == (True, "service:auth0|5f7c")
    assert said["scopes"] == ["orders:pay", "orders:ship"]
    assert {each["passed"] for each in said["checks"]} == {True}


@pytest.mark.parametrize(
    ("changes", "check", "text"),
    [
        ({"iss": "https://shop.eu.auth0.com"}, "iss", f"https://shop.eu.auth0.com; ORDERS_JWT_ISSUER: {ISSUER}"),
        ({"iss": None}, "iss", "the claim iss is missing"),
        ({"aud": ["other", "else"]}, "audience", 'aud ["other", "else"]; ORDERS_JWT_AUDIENCE: orders'),
        ({"aud": None}, "audience", "aud (missing); ORDERS_JWT_AUDIENCE: orders"),
        ({"exp": 1_000_000_000}, "exp", "2001-09-09T01:46:40Z ("),
        ({"exp": "soon"}, "exp", "soon; ORDERS_JWT_LEEWAY_S: 60"),
        ({"nbf": 4_000_000_000}, "nbf", "2096-10-02T07:06:40Z (in "),
        ({"iat": 4_000_000_000}, "iat", "the token is not valid yet"),
        ({"sub": "a\nb"}, "subject", "the claim sub cannot be an actor"),
        ({"sub": None}, "subject", "sub (missing)"),
        ({"roles": ["Orders.Admin"]}, "kind", "no value in roles gives a scope"),
        ({"roles": [1]}, "rights", "the claim roles is neither a text nor a list of texts"),
    ],
)
def test_a_failed_check_has_what_the_token_has_and_what_is_expected(settings, changes, check, text):
    shown = failed(settings, token(**changes))
    assert list(shown) == [check]
    assert text in shown[check]


@pytest.mark.parametrize("changes", [{"exp": 1e300}, {"exp": 10**4000}, {"scope": "x" * 5_000}, {"nbf": True}])
def test_odd_values_of_a_valid_token_are_shown_shortened(settings, changes):
    said = check(settings, token(**changes))
    assert "accepted" in said
    assert max(map(len, said.splitlines())) < 400


def test_all_that_is_wrong_is_shown_at_once(settings):
    shown = failed(settings, token(THEIRS, iss="x", aud="y", sub=None, exp=1, gty="client-credentials"))
    assert list(shown) == ["signature", "iss", "exp", "audience", "subject", "kind"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the header is not a single bearer token"),
        ("opaque-token-of-another-kind", "it has 1 parts instead of 3"),
        ("a.b.c.d.e", "it has 5 parts instead of 3"),
        ("not a token", "the header is not a single bearer token"),
        ("x" * 9_000, "the token is longer than 8192 characters"),
        ("aaaa.bbbb.cccc", "malformed"),
        ("\xff\x00", "the header is not a single bearer token"),
    ],
)
def test_what_is_no_token_is_named(settings, text, why):
    shown = failed(settings, text)
    assert list(shown) == ["form"]
    assert why in shown["form"]


def test_an_algorithm_that_is_not_allowed_and_a_key_that_is_unknown_are_named(settings, tmp_path):
    (tmp_path / "key.pem").write_bytes(jwks(jwk(RSA, "key-1"), jwk(THEIRS, None)))
    other = jwt.encode({**CLAIMS, "exp": int(time.time()) + 60}, RSA, "RS512", headers={"kid": "key-2"})
    shown = failed(settings, other)
    assert shown["algorithm"] == "RS512; ORDERS_JWT_ALGORITHMS: RS256, ES256"
    assert shown["key"] == "key id key-2; usable keys: key-1 for RS256, one without an id for RS256"


async def test_keys_come_from_the_url(settings):
    del settings["ORDERS_JWT_KEY_FILE"]
    async with running_issuer() as issuer:
        issuer.keys = [jwk(RSA, None)]
        online = settings | {"ORDERS_JWT_JWKS_URL": issuer.url}
        assert "accepted" in await asyncio.to_thread(check, online, token())
        for answer, why in (
            (redirect, "there are no keys: status 302, a redirect to another path of the same host"),
            (body(b"<html>"), "there are no keys: an HTML page, not a JWKS document"),
        ):
            issuer.answer = answer
            shown = await asyncio.to_thread(failed, online, token())
            assert list(shown) == ["key"]
            assert why in shown["key"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ORDERS_JWT_KEY_FILE": ""}, "ORDERS_JWT_JWKS_URL or ORDERS_JWT_KEY_FILE"),
        ({"ORDERS_JWT_KEY_FILE": "/nowhere"}, "ORDERS_JWT_KEY_FILE /nowhere: cannot be read"),
        ({"ORDERS_JWT_ISSUER": ""}, "ORDERS_JWT_ISSUER"),
        ({"ORDERS_JWT_SCOPE_VALUES": "orders:all=x"}, "ORDERS_JWT_SCOPE_VALUES"),
    ],
)
def test_settings_that_do_not_fit_end_with_one_line(settings, changes, says):
    result = CommandLine(settings | changes)("token", "check", code=1, stdin=token())
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_terminal_gets_no_control_character_of_a_token(settings):
    said = CommandLine(settings)("token", "check", code=1, stdin=token(iss="\x1b[2Jevil")).stdout
    assert "\x1b" not in said
    assert "\\x1b[2Jevil" in said


def test_the_example_of_the_guide_is_what_is_printed(tmp_path):
    """Only times and lengths differ."""
    (tmp_path / "keys").write_bytes(jwks(jwk(RSA, "key-1", alg="RS256")))
    [example] = re.findall(r"\$ order-service token check < token.txt\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    claims = {"iss": ISSUER, "sub": "xyz123@clients", "azp": "xyz123", "aud": "https://orders.example.com"}
    claims |= {
        "gty": "client-credentials",
        "scope": "orders:pay",
    }
    times = {"iat": int(time.time()), "exp": int(time.time()) + 60}
    settings = {
        "ORDERS_JWT_KEY_FILE": str(tmp_path / "keys"),
        "ORDERS_JWT_ISSUER": ISSUER,
        "ORDERS_JWT_AUDIENCE": "https://orders.example.com",
        "ORDERS_JWT_SERVICE_IF": "gty=client-credentials",
    }
    said = check(settings, jwt.encode({**claims, **times}, RSA, "RS256", headers={"kid": "key-1"}))
    varying = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \((in )?\d+ s( ago)?\)|of \d+ characters"
    assert re.sub(varying, "…", said) == re.sub(varying, "…", example)


# An issuer with a private CA


@pytest.fixture
def certificate(tmp_path):
    """Write a self-signed certificate for 127.0.0.1, and its key into the same file."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, RSA.public_key(), 1, now - timedelta(1), now + timedelta(1))
    for extension in (
        x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]),
        x509.BasicConstraints(ca=True, path_length=None),
    ):
        builder = builder.add_extension(extension, critical=True)
    path = tmp_path / "certificate.pem"
    path.write_bytes(builder.sign(RSA, SHA256()).public_bytes(Encoding.PEM) + private_pem(RSA))
    return path


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_a_private_ca_is_trusted_by_the_variable_of_openssl(settings, certificate, is_trusted):
    del settings["ORDERS_JWT_KEY_FILE"]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with running_issuer(context) as issuer:
        issuer.keys = [jwk(RSA, None)]
        settings |= {"ORDERS_JWT_JWKS_URL": issuer.url, "PATH": os.environ["PATH"]}
        settings |= {"SSL_CERT_FILE": str(certificate)} if is_trusted else {}
        program = ("-m", "order_service.cli", "token", "check")
        process = await asyncio.create_subprocess_exec(
            sys.executable, *program, env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        output, _ = await process.communicate(token().encode())
    assert process.returncode == (0 if is_trusted else 1)
    assert (b"there are no keys: the connection failed" in output) is not is_trusted
