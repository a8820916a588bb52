"""What the settings of Kafka's security make of every client, and which of them do not fit together."""

import asyncio
import ssl
import sys
import time
from contextlib import suppress
from types import ModuleType

import pytest
from aiokafka.errors import KafkaConnectionError, SaslAuthenticationFailed
from structlog.testing import capture_logs

from order_service.access_tokens import REFUSED_PAUSE_S, ClientCredentials
from order_service.errors import KafkaAwayError, NoToken, SetupError
from order_service.kafka import security as module
from order_service.kafka.broker_connection import BrokerConnection
from order_service.kafka.connection import connection
from order_service.kafka.security import MSK_TOKEN_S, MskToken, TokenProvider, security
from order_service.kafka.tls import tls
from order_service.settings import Settings
from tests.support.certificates import CertificateAuthority
from tests.support.command_line import CommandLine
from tests.support.token_endpoint import TokenEndpoint

PASSWORD = "only-for-tests"
SCRAM = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "SCRAM-SHA-256",
    "sasl_username": "orders",
    "sasl_password": PASSWORD,
}
OAUTH = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "OAUTHBEARER",
    "oauth_token_url": "https://login.test/token",
    "oauth_client_id": "orders",
    "oauth_client_secret": PASSWORD,
}
FROM_FILE = {"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER", "oauth_token_file": "/run/token"}
MSK = {"security_protocol": "SASL_SSL", "sasl_mechanism": "AWS_MSK_IAM", "aws_region": "eu-central-1"}
MUTUAL = {"security_protocol": "SSL", "ssl_certfile": "/run/tls.crt", "ssl_keyfile": "/run/tls.key"}


def settings(**changes):
    fields = {f"kafka_{name}": value for name, value in changes.items()}
    return Settings(kafka_bootstrap_servers="kafka-1:9093,kafka-2:9093", **fields)


def environment(fields):
    return {f"ORDERS_KAFKA_{name.upper()}": str(value) for name, value in fields.items()}


@pytest.fixture
def authority(tmp_path):
    return CertificateAuthority(tmp_path)


@pytest.mark.parametrize(
    ("fields", "sasl"),
    [
        pytest.param({}, {}, id="PLAINTEXT"),
        pytest.param({"security_protocol": "SSL"}, {}, id="SSL"),
        pytest.param(
            SCRAM,
            {"sasl_mechanism": "SCRAM-SHA-256", "sasl_plain_username": "orders", "sasl_plain_password": PASSWORD},
            id="SCRAM",
        ),
        pytest.param(
            SCRAM | {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN"},
            {"sasl_mechanism": "PLAIN", "sasl_plain_username": "orders", "sasl_plain_password": PASSWORD},
            id="PLAIN",
        ),
    ],
)
def test_every_protocol_gives_clients_what_they_need(fields, sasl):
    arguments = connection(settings(**fields))
    protocol = fields.get("security_protocol", "PLAINTEXT")
    assert (arguments["bootstrap_servers"], arguments["security_protocol"]) == ("kafka-1:9093,kafka-2:9093", protocol)
    assert isinstance(arguments["ssl_context"], ssl.SSLContext) == protocol.endswith("SSL")
    assert {name: value for name, value in arguments.items() if name.startswith("sasl")} == sasl


def test_the_passwords_are_in_nothing_that_is_shown():
    for fields in (SCRAM, OAUTH):
        assert PASSWORD not in repr(settings(**fields))
        assert PASSWORD not in str(settings(**fields).model_dump())
        said = CommandLine(environment(fields))("config")
        assert PASSWORD not in said.output


@pytest.mark.parametrize(
    "fields", [SCRAM, OAUTH, FROM_FILE, MSK, MUTUAL], ids=["SCRAM", "OAUTH", "file", "MSK", "mTLS"]
)
def test_settings_that_fit_together_are_accepted(fields):
    CommandLine(environment(fields))("config")


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"sasl_username": "orders"},
            "ORDERS_KAFKA_SASL_USERNAME needs SASL: set ORDERS_KAFKA_SECURITY_PROTOCOL to SASL_SSL, not PLAINTEXT",
        ),
        (
            {"security_protocol": "SSL", "sasl_mechanism": "PLAIN"},
            "ORDERS_KAFKA_SASL_MECHANISM needs SASL: set ORDERS_KAFKA_SECURITY_PROTOCOL to SASL_SSL, not SSL",
        ),
        (
            {"oauth_client_secret": PASSWORD},
            (
                "ORDERS_KAFKA_OAUTH_CLIENT_SECRET needs SASL: set ORDERS_KAFKA_SECURITY_PROTOCOL to SASL_SSL, "
                "not PLAINTEXT"
            ),
        ),
        (
            {"aws_region": "eu-central-1"},
            "ORDERS_KAFKA_AWS_REGION needs SASL: set ORDERS_KAFKA_SECURITY_PROTOCOL to SASL_SSL, not PLAINTEXT",
        ),
        (
            {"ssl_cafile": "/run/ca.crt"},
            "ORDERS_KAFKA_SSL_CAFILE needs TLS: set ORDERS_KAFKA_SECURITY_PROTOCOL to SSL or SASL_SSL, not PLAINTEXT",
        ),
        (
            SCRAM | {"security_protocol": "SASL_PLAINTEXT", "ssl_certfile": "/a", "ssl_keyfile": "/b"},
            (
                "ORDERS_KAFKA_SSL_CERTFILE needs TLS: set ORDERS_KAFKA_SECURITY_PROTOCOL to SSL or SASL_SSL, "
                "not SASL_PLAINTEXT"
            ),
        ),
        (
            {"security_protocol": "SSL", "ssl_certfile": "/run/tls.crt"},
            "set ORDERS_KAFKA_SSL_CERTFILE and ORDERS_KAFKA_SSL_KEYFILE, not one of them",
        ),
        (
            {"security_protocol": "SSL", "ssl_keyfile": "/run/tls.key"},
            "set ORDERS_KAFKA_SSL_CERTFILE and ORDERS_KAFKA_SSL_KEYFILE, not one of them",
        ),
        (
            {"security_protocol": "SSL", "ssl_key_password": PASSWORD},
            "ORDERS_KAFKA_SSL_KEY_PASSWORD needs ORDERS_KAFKA_SSL_KEYFILE",
        ),
        (
            {"security_protocol": "SASL_SSL"},
            "ORDERS_KAFKA_SASL_MECHANISM=SCRAM-SHA-512 needs ORDERS_KAFKA_SASL_USERNAME and ORDERS_KAFKA_SASL_PASSWORD",
        ),
        (
            SCRAM | {"sasl_mechanism": "PLAIN", "sasl_password": ""},
            "ORDERS_KAFKA_SASL_MECHANISM=PLAIN needs ORDERS_KAFKA_SASL_PASSWORD",
        ),
        (
            SCRAM | {"oauth_token_url": "https://login.test/token"},
            "ORDERS_KAFKA_OAUTH_TOKEN_URL is not for ORDERS_KAFKA_SASL_MECHANISM=SCRAM-SHA-256",
        ),
        (
            OAUTH | {"sasl_username": "orders"},
            "ORDERS_KAFKA_SASL_USERNAME is not for ORDERS_KAFKA_SASL_MECHANISM=OAUTHBEARER",
        ),
        (
            OAUTH | {"aws_region": "eu-central-1"},
            "ORDERS_KAFKA_AWS_REGION is not for ORDERS_KAFKA_SASL_MECHANISM=OAUTHBEARER",
        ),
        (
            {"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"},
            (
                "ORDERS_KAFKA_SASL_MECHANISM=OAUTHBEARER needs ORDERS_KAFKA_OAUTH_TOKEN_URL or "
                "ORDERS_KAFKA_OAUTH_TOKEN_FILE"
            ),
        ),
        (
            OAUTH | {"oauth_client_secret": ""},
            "the client credentials for Kafka need ORDERS_KAFKA_OAUTH_CLIENT_SECRET",
        ),
        (
            OAUTH | {"oauth_token_file": "/run/token"},
            "set ORDERS_KAFKA_OAUTH_TOKEN_FILE or ORDERS_KAFKA_OAUTH_TOKEN_URL, not both",
        ),
        (
            FROM_FILE | {"oauth_scope": "kafka"},
            "set ORDERS_KAFKA_OAUTH_TOKEN_FILE or ORDERS_KAFKA_OAUTH_SCOPE, not both",
        ),
        (MSK | {"aws_region": ""}, "ORDERS_KAFKA_SASL_MECHANISM=AWS_MSK_IAM needs ORDERS_KAFKA_AWS_REGION"),
        (
            MSK | {"security_protocol": "SASL_PLAINTEXT"},
            "ORDERS_KAFKA_SASL_MECHANISM=AWS_MSK_IAM needs ORDERS_KAFKA_SECURITY_PROTOCOL=SASL_SSL",
        ),
        (
            MSK | {"sasl_password": PASSWORD},
            "ORDERS_KAFKA_SASL_PASSWORD is not for ORDERS_KAFKA_SASL_MECHANISM=AWS_MSK_IAM",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_one_line(fields, line):
    assert CommandLine(environment(fields))("config", code=2).stderr == f"{line}\n"


@pytest.mark.parametrize("value", ["logicalCluster", "=x", "a b=c", "a=b,,c=d", "a=b\x01c=d"])
def test_extensions_of_another_form_are_refused(value):
    said = CommandLine(environment(OAUTH | {"oauth_extensions": value}))("config", code=2).stderr
    assert said.startswith("ORDERS_KAFKA_OAUTH_EXTENSIONS: String should match pattern")


def test_extensions_reach_the_broker_with_the_token():
    arguments = security(settings(**OAUTH, oauth_extensions="logicalCluster=lkc-1,identityPoolId=pool-2="))
    provider = arguments["sasl_oauth_token_provider"]
    assert provider.extensions() == {"logicalCluster": "lkc-1", "identityPoolId": "pool-2="}


# TLS


def test_tls_checks_the_names_and_certificates_of_brokers(authority):
    certfile, keyfile = authority.issue("orders")
    for fields in ({}, {"ssl_cafile": authority.file, "ssl_certfile": certfile, "ssl_keyfile": keyfile}):
        context = tls(settings(security_protocol="SSL", **fields))
        assert context is not None
        assert context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_file_of_authorities_replaces_those_of_the_system(tmp_path):
    none = tmp_path / "none.pem"
    none.write_text("no certificate")
    with pytest.raises(KafkaAwayError, match=r"none\.pem of ORDERS_KAFKA_SSL_CAFILE cannot be read"):
        tls(settings(security_protocol="SSL", ssl_cafile=none))
    with pytest.raises(KafkaAwayError, match=r"missing\.pem of ORDERS_KAFKA_SSL_CAFILE cannot be read"):
        tls(settings(security_protocol="SSL", ssl_cafile=tmp_path / "missing.pem"))


def mutual(certfile, keyfile, **fields):
    return tls(settings(security_protocol="SSL", ssl_certfile=certfile, ssl_keyfile=keyfile, **fields))


def test_an_encrypted_key_is_read_with_its_password(authority):
    assert mutual(*authority.issue("orders", password=PASSWORD), ssl_key_password=PASSWORD) is not None


def test_a_certificate_and_its_key_may_be_in_one_file(authority, tmp_path):
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(file.read_bytes() for file in authority.issue("orders")))
    assert mutual(both, both) is not None


@pytest.mark.parametrize(
    ("certfile", "keyfile", "fields", "why"),
    [
        ("none.pem", "orders.key", {}, r"none\.pem of ORDERS_KAFKA_SSL_CERTFILE cannot be read"),
        ("orders.pem", "none.key", {}, r"none\.key of ORDERS_KAFKA_SSL_KEYFILE cannot be read"),
        ("orders.pem", "other.key", {}, r"other\.key of ORDERS_KAFKA_SSL_KEYFILE are not .*: key values mismatch"),
        ("orders.pem", "orders.pem", {}, "are not a certificate and its key, both in PEM: "),
        ("orders.pem", "orders.key", {}, "the key is encrypted: set ORDERS_KAFKA_SSL_KEY_PASSWORD"),
        ("orders.pem", "orders.key", {"ssl_key_password": "wrong"}, "are not a certificate and its key, both in PEM: "),
    ],
    ids=["no certificate", "no key", "another key", "a certificate for a key", "no password", "a wrong password"],
)
def test_a_certificate_that_cannot_be_used_is_named(certfile, keyfile, fields, why, authority, tmp_path):
    authority.issue("orders", password=PASSWORD)
    authority.issue("other")
    with pytest.raises(KafkaAwayError, match=why) as raised:
        mutual(tmp_path / certfile, tmp_path / keyfile, **fields)
    assert PASSWORD not in str(raised.value)


def subject_seen_by(server, context):
    """Return the subject of the client certificate that a server sees in a handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server, server_hostname="localhost")
    accepted = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, accepted, client, accepted):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return dict(pair for [pair] in accepted.getpeercert()["subject"])["commonName"]


@pytest.fixture
def server(authority):
    """Return the context of a server that wants a certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.file)
    context.load_cert_chain(*authority.issue("server"))
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_a_replaced_certificate_is_used_for_the_next_connection(authority, server, tmp_path):
    files = (tmp_path / "tls.crt", tmp_path / "tls.key")
    for name in ("first", "second"):
        for file, issued in zip(files, authority.issue(name), strict=True):
            issued.replace(file)
        if name == "first":
            context = mutual(*files, ssl_cafile=authority.file)
        assert subject_seen_by(server, context) == name


def test_a_certificate_that_is_replaced_by_an_unusable_one_is_kept(authority, server, tmp_path):
    files = authority.issue("first")
    context = mutual(*files, ssl_cafile=authority.file)
    files[1].write_text("no key")
    with capture_logs() as lines:
        assert [subject_seen_by(server, context) for _ in range(2)] == ["first", "first"]
    [line] = lines
    assert "first.key of ORDERS_KAFKA_SSL_KEYFILE" in line["why"]
    authority.issue("first")[1].replace(files[1])
    assert subject_seen_by(server, context) == "first"


# Access tokens


def provider_of(fields):
    return security(settings(**fields))["sasl_oauth_token_provider"]


async def test_client_credentials_become_the_token_of_every_client():
    endpoint = TokenEndpoint()
    async with endpoint.serving() as url:
        fields = OAUTH | {"oauth_token_url": url, "oauth_scope": "kafka", "oauth_audience": "cluster"}
        first, second = provider_of(fields), provider_of(fields)
        assert [await first.token(), await second.token()] == ["token-1", "token-1"]
    [form] = endpoint.forms
    assert form == {"grant_type": "client_credentials", "scope": "kafka", "audience": "cluster"}
    assert endpoint.credentials == [("orders", PASSWORD)]


async def test_each_event_loop_has_tokens_of_its_own():
    endpoint = TokenEndpoint()
    async with endpoint.serving() as url:
        provider = provider_of(OAUTH | {"oauth_token_url": url})
        assert await provider.token() == "token-1"
        assert await asyncio.to_thread(lambda: asyncio.run(provider.token())) == "token-2"
        assert await provider.token() == "token-1"


async def test_without_a_token_a_client_takes_the_broker_for_away():
    endpoint = TokenEndpoint()
    endpoint.answers(401, {"error": "invalid_client", "error_description": PASSWORD})
    async with endpoint.serving() as url:
        with pytest.raises(KafkaConnectionError, match=r"no access token for Kafka: .*invalid_client") as raised:
            await provider_of(OAUTH | {"oauth_token_url": url}).token()
    assert PASSWORD not in str(raised.value)


async def test_a_token_that_a_broker_refuses_is_replaced(clock):
    endpoint = TokenEndpoint()
    async with endpoint.serving() as url:
        provider = TokenProvider(lambda: ClientCredentials(url, "orders", PASSWORD, clock=clock), {})
        for age_s, expected in ((REFUSED_PAUSE_S, "token-2"), (REFUSED_PAUSE_S - 1, "token-2")):
            steps = BrokerConnection("kafka", 9093, sasl_oauth_token_provider=provider).authenticator_oauth()
            await steps.step(None)
            clock.now += age_s
            with pytest.raises(SaslAuthenticationFailed, match="invalid_token"):
                await steps.step(b'{"status": "invalid_token"}')
            assert await provider.token() == expected


async def test_a_token_file_is_read_again(tmp_path):
    file = tmp_path / "token"
    provider = provider_of(FROM_FILE | {"oauth_token_file": file})
    with pytest.raises(KafkaConnectionError, match=r"the token file .* cannot be read: No such file"):
        await provider.token()
    file.write_text("one.two.three\n")
    assert await provider.token() == "one.two.three"


def test_a_token_endpoint_is_verified_by_a_file_of_authorities(authority, tmp_path):
    assert provider_of(OAUTH | {"oauth_ssl_cafile": authority.file})
    with pytest.raises(SetupError, match="ORDERS_KAFKA_OAUTH_SSL_CAFILE"):
        provider_of(OAUTH | {"oauth_ssl_cafile": tmp_path / "missing.pem"})


# Amazon MSK: a fake of AWS's library


class Signer:
    """Signs as AWS's library does: `token-1`, `token-2`, … with a time of expiry."""

    def __init__(self):
        self.regions = []
        self.error = None

    def generate_auth_token(self, region):
        """Return the next token."""
        if self.error is not None:
            raise self.error
        self.regions.append(region)
        return f"token-{len(self.regions)}", int(time.time() * 1000) + 900_000


@pytest.fixture
def signer(monkeypatch):
    """Put a fake of the library in its place."""
    signer = Signer()
    package, library = ModuleType("aws_msk_iam_sasl_signer"), ModuleType(module.MSK_LIBRARY)
    library.generate_auth_token = signer.generate_auth_token  # type: ignore[attr-defined] # a fake
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, library.__name__, library)
    module._msk_provider.cache_clear()
    yield signer
    module._msk_provider.cache_clear()


async def test_msk_gets_tokens_that_the_library_signs_for_its_region(signer):
    arguments = security(settings(**MSK))
    assert arguments["sasl_mechanism"] == "OAUTHBEARER"
    assert await arguments["sasl_oauth_token_provider"].token() == "token-1"
    assert await provider_of(MSK).token() == "token-1"
    assert signer.regions == ["eu-central-1"]


async def test_a_token_for_msk_is_signed_again_long_before_its_end(signer, clock):
    source = MskToken(signer.generate_auth_token, "eu-central-1", clock)
    assert await source.token() == "token-1"
    clock.now += MSK_TOKEN_S - 1
    assert await source.token() == "token-1"
    clock.now += 1
    assert await source.token() == "token-2"


async def test_clients_that_start_at_the_same_time_share_a_token(signer):
    source = MskToken(signer.generate_auth_token, "eu-central-1")
    assert set(await asyncio.gather(*(source.token() for _ in range(5)))) == {"token-1"}


async def test_credentials_that_do_not_sign_are_named_by_their_error(signer):
    signer.error = AttributeError("'NoneType' object has no attribute 'access_key'")
    source = MskToken(signer.generate_auth_token, "eu-central-1")
    with pytest.raises(NoToken, match="AWS's library cannot sign one: AttributeError"):
        await source.token()
    signer.error = None
    assert await source.token() == "token-1"


def test_without_the_library_msk_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "aws_msk_iam_sasl_signer", None)
    module._msk_provider.cache_clear()
    said = CommandLine(environment(MSK) | {"KAFKA_BOOTSTRAP_SERVERS": "kafka:9098"})("topics", "check", code=1).stderr
    assert said == (
        "order-service: ORDERS_KAFKA_SASL_MECHANISM=AWS_MSK_IAM needs aws_msk_iam_sasl_signer: "
        "pip install 'order-service[aws]'\n"
    )
