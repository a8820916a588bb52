"""TLS, passwords, certificates and access tokens, on a broker with a listener for each."""

import asyncio
import json
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import jwt
import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from order_service.kafka.connection import ask_admin
from order_service.kafka.rights_requests import topic_rights
from order_service.local.broker import HOST, Broker, free_port
from order_service.local.kafka import Embedded, choose_kafka
from order_service.settings import Settings
from tests.support.certificates import CertificateAuthority
from tests.support.command_line import CommandLine
from tests.support.deciding import end
from tests.support.kafka import WITH_ACLS
from tests.support.quick_kafka import quick_broker
from tests.support.samples import create, pay
from tests.support.service import Service, histories, until
from tests.support.token_endpoint import TokenEndpoint

PASSWORD = "only-for-tests"
JAAS = "org.apache.kafka.common.security"
SESSION_MS = 5_000
"""How long the broker keeps a connection with an access token: Confluent Cloud and MSK end them, too."""
KINDS = ("plain", "scram", "mutual", "tokens")


class Issuer:
    """Signs access tokens that the broker accepts."""

    def __init__(self, directory: Path):
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.jwks_file = directory / "jwks.json"
        jwk = RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True) | {"kid": "key-1", "use": "sig", "alg": "RS256"}
        self.jwks_file.write_text(json.dumps({"keys": [jwk]}))

    def token(self, **changes):
        """Return a token of the principal `tokens`."""
        now = int(time.time())
        claims = {"iss": "https://login.test", "aud": "kafka", "sub": "tokens", "iat": now, "exp": now + 600} | changes
        return jwt.encode(claims, self._key, "RS256", headers={"kid": "key-1"})


@dataclass
class SecureKafka:
    """A broker: the servers of its open listener, the environment of who may use each other one, and its issuer."""

    servers: str
    environments: dict[str, dict[str, str]]
    issuer: Issuer
    directory: Path


def properties_of(directory: Path, authority: CertificateAuthority, ports: dict[str, int]) -> dict[str, str]:
    """Return the properties of the three secure listeners."""
    certfile, keyfile = authority.issue("kafka")
    keystore = directory / "keystore.pem"
    keystore.write_bytes(keyfile.read_bytes() + certfile.read_bytes())
    properties: dict[str, str] = {}
    for name in ports:
        properties |= {
            f"listener.name.{name}.ssl.keystore.type": "PEM",
            f"listener.name.{name}.ssl.keystore.location": str(keystore),
            f"listener.name.{name}.ssl.truststore.type": "PEM",
            f"listener.name.{name}.ssl.truststore.location": str(authority.file),
        }
    validator = f"{JAAS}.oauthbearer.OAuthBearerValidatorCallbackHandler"
    return properties | {
        "listener.name.passwords.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "listener.name.passwords.plain.sasl.jaas.config": (
            f'{JAAS}.plain.PlainLoginModule required user_plain="{PASSWORD}";'
        ),
        "listener.name.passwords.scram-sha-512.sasl.jaas.config": f"{JAAS}.scram.ScramLoginModule required;",
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.tokens.sasl.enabled.mechanisms": "OAUTHBEARER",
        "listener.name.tokens.oauthbearer.sasl.jaas.config": f"{JAAS}.oauthbearer.OAuthBearerLoginModule required;",
        "listener.name.tokens.oauthbearer.sasl.server.callback.handler.class": validator,
        "listener.name.tokens.oauthbearer.connections.max.reauth.ms": str(SESSION_MS),
        "listener.name.tokens.sasl.oauthbearer.jwks.endpoint.url": (directory / "jwks.json").as_uri(),
        "listener.name.tokens.sasl.oauthbearer.expected.audience": "kafka",
        "listener.name.tokens.sasl.oauthbearer.expected.issuer": "https://login.test",
        **WITH_ACLS,
    }


def secure(broker: Broker, directory: Path, authority: CertificateAuthority) -> dict[str, int]:
    """Add the secure listeners to a broker that does not run yet; return their ports."""
    ports = {name: free_port() for name in ("passwords", "mutual", "tokens")}
    protocols = {"passwords": "SASL_SSL", "mutual": "SSL", "tokens": "SASL_SSL"}
    file = broker.directory / "server.properties"
    properties = dict(line.split("=", 1) for line in file.read_text().splitlines())
    for name, port in ports.items():
        properties["listeners"] += f",{name.upper()}://{HOST}:{port}"
        properties["advertised.listeners"] += f",{name.upper()}://{HOST}:{port}"
        properties["listener.security.protocol.map"] += f",{name.upper()}:{protocols[name]}"
    properties |= properties_of(directory, authority, ports)
    file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    jwks = directory / "jwks.json"
    allowed = [
        f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={jwks.as_uri()}",
        f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.files={jwks}",
    ]
    broker.command = [*broker.command[:-2], *allowed, *broker.command[-2:]]
    return ports


def environments_of(directory: Path, authority: CertificateAuthority, ports: dict[str, int]):
    """Return the settings for each kind of security."""
    (directory / "password").write_text(f"{PASSWORD}\n")
    certfile, keyfile = authority.issue("mutual", password=PASSWORD)
    ca = {"ORDERS_KAFKA_SSL_CAFILE": str(authority.file)}
    passwords = {
        "KAFKA_BOOTSTRAP_SERVERS": f"{HOST}:{ports['passwords']}",
        "ORDERS_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "ORDERS_KAFKA_SASL_PASSWORD_FILE": str(directory / "password"),
        **ca,
    }
    return {
        "plain": {**passwords, "ORDERS_KAFKA_SASL_MECHANISM": "PLAIN", "ORDERS_KAFKA_SASL_USERNAME": "plain"},
        "scram": {**passwords, "ORDERS_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512", "ORDERS_KAFKA_SASL_USERNAME": "scram"},
        "mutual": {
            "KAFKA_BOOTSTRAP_SERVERS": f"{HOST}:{ports['mutual']}",
            "ORDERS_KAFKA_SECURITY_PROTOCOL": "SSL",
            "ORDERS_KAFKA_SSL_CERTFILE": str(certfile),
            "ORDERS_KAFKA_SSL_KEYFILE": str(keyfile),
            "ORDERS_KAFKA_SSL_KEY_PASSWORD_FILE": str(directory / "password"),
            **ca,
        },
        "tokens": {
            "KAFKA_BOOTSTRAP_SERVERS": f"{HOST}:{ports['tokens']}",
            "ORDERS_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "ORDERS_KAFKA_SASL_MECHANISM": "OAUTHBEARER",
            "ORDERS_KAFKA_OAUTH_TOKEN_FILE": str(directory / "token"),
            **ca,
        },
    }


@pytest.fixture(scope="module")
def kafka(tmp_path_factory):
    """Run a broker with a listener for passwords, one for certificates and one for access tokens."""
    choice = choose_kafka(Settings(kafka="embedded"))
    assert isinstance(choice, Embedded)
    directory = tmp_path_factory.mktemp("secure")
    authority, issuer = CertificateAuthority(directory), Issuer(directory)
    (directory / "token").write_text(issuer.token())
    broker = quick_broker(choice, directory / "kafka")
    ports = secure(broker, directory, authority)
    with broker:
        admin = AdminClient({"log_level": 0, "bootstrap.servers": broker.bootstrap_servers})
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        change = UserScramCredentialUpsertion("scram", scram, PASSWORD.encode())
        admin.alter_user_scram_credentials([change])["scram"].result(30)
        environments = environments_of(directory, authority, ports)
        yield SecureKafka(broker.bootstrap_servers, environments, issuer, directory)


@pytest.fixture(scope="module")
def topics(kafka):
    """Make a topic for each kind, which only its principal may read."""
    admin = AdminClient({"log_level": 0, "bootstrap.servers": kafka.servers})
    principals = {kind: f"User:{kind}" for kind in KINDS} | {"mutual": "User:CN=mutual"}
    bindings = [
        AclBinding(
            ResourceType.TOPIC,
            f"of-{kind}",
            ResourcePatternType.LITERAL,
            principal,
            "*",
            AclOperation.READ,
            AclPermissionType.ALLOW,
        )
        for kind, principal in principals.items()
    ]
    for future in admin.create_topics([NewTopic(f"of-{kind}", 1, 1) for kind in KINDS]).values():
        future.result(30)
    for future in admin.create_acls(bindings).values():
        future.result(30)
    return [f"of-{kind}" for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_brokers_acls_see_who_we_are(kafka, topics, kind, monkeypatch):
    for name, value in kafka.environments[kind].items():
        monkeypatch.setenv(name, value)
    rights = await ask_admin(Settings(), lambda admin: topic_rights(admin, topics))
    assert [topic for topic in topics if not rights[topic].lacks("Read")] == [f"of-{kind}"]


def test_workers_decide_with_a_password_or_a_certificate(kafka, tmp_path, users):
    with Service(kafka.servers, tmp_path, users) as service:
        scram = service.start_worker(**kafka.environments["scram"]).wait_ready()
        service.send([create])
        service.wait_outcomes(1)
        scram.send(signal.SIGTERM)
        assert scram.wait_ended() == 0
        mutual = service.start_worker(**kafka.environments["mutual"])
        service.send([pay])
        service.wait_outcomes(2)
        service.check([create, pay])
        assert PASSWORD not in scram.log() + mutual.log()


def test_a_second_user_takes_over_from_the_first_while_commands_are_decided(kafka, tmp_path, users):
    """As docs/operations/credentials.md says: one worker after the other is started again with the second user."""
    admin = AdminClient({"log_level": 0, "bootstrap.servers": kafka.servers})
    names, commands = ("scram-1", "scram-2"), histories(60)
    scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    for name in names:
        change = UserScramCredentialUpsertion(name, scram, PASSWORD.encode())
        admin.alter_user_scram_credentials([change])[name].result(30)
    first, second = (kafka.environments["scram"] | {"ORDERS_KAFKA_SASL_USERNAME": name} for name in names)
    with Service(kafka.servers, tmp_path, users) as service:
        workers = [service.start_worker(**first) for _ in range(2)]

        def are_all_running():
            return sum(worker.is_ready() and worker.lanes() for worker in workers) == service.partitions

        until(are_all_running, "both workers share the partitions")
        with service.sending(commands, per_s=40):
            for index, worker in enumerate(workers):
                end(worker)
                workers[index] = service.start_worker(**second, ORDERS_ADMIN_PORT=str(worker.admin_port))
                until(are_all_running, "the worker is back with the second user")
        gone = UserScramCredentialDeletion(names[0], ScramMechanism.SCRAM_SHA_512)
        admin.alter_user_scram_credentials([gone])[names[0]].result(30)
        service.wait_outcomes(len(commands))
        service.check(commands)


async def test_a_worker_decides_with_access_tokens_over_several_sessions(kafka, tmp_path, users):
    """The broker ends a connection at its first request after `SESSION_MS`; the worker opens another one before."""
    endpoint = TokenEndpoint()
    token = kafka.issuer.token()
    endpoint.answers(200, {"access_token": token, "token_type": "Bearer", "expires_in": 600})
    async with endpoint.serving() as url:
        environment = kafka.environments["tokens"] | {
            "ORDERS_KAFKA_OAUTH_TOKEN_FILE": "",
            "ORDERS_KAFKA_OAUTH_TOKEN_URL": url,
            "ORDERS_KAFKA_OAUTH_CLIENT_ID": "orders",
            "ORDERS_KAFKA_OAUTH_CLIENT_SECRET_FILE": str(kafka.directory / "password"),
        }
        await asyncio.to_thread(decide_for_a_while, Service(kafka.servers, tmp_path, users), environment, token)
    assert set(endpoint.credentials) == {("orders", PASSWORD)}
    assert len(endpoint.forms) < 10


def decide_for_a_while(service, environment, token):
    with service:
        worker = service.start_worker(**environment).wait_ready()
        commands, end_at = histories(300), time.monotonic() + 2.5 * SESSION_MS / 1000
        sent = 0
        while sent < len(commands):
            count = 1 if time.monotonic() < end_at else len(commands) - sent
            service.send(commands[sent : sent + count])
            sent += count
            service.wait_outcomes(sent)
        service.check(commands)
        assert PASSWORD not in worker.log()
        assert token not in worker.log()


REFUSED = [
    pytest.param(
        "scram", {"sasl_password": "wrong"}, "invalid credentials with SASL mechanism SCRAM-SHA-512", id="scram"
    ),
    pytest.param("plain", {"sasl_password": "wrong"}, "Authentication failed", id="plain"),
    pytest.param("plain", {"ssl_cafile": ""}, "certificate verify failed", id="an unknown authority"),
    pytest.param(
        "mutual", {"ssl_certfile": "", "ssl_keyfile": "", "ssl_key_password": ""}, "TLS failed: ", id="no one"
    ),
    pytest.param("mutual", {"ssl_certfile": "foreign.pem", "ssl_keyfile": "foreign.key"}, "TLS failed: ", id="foreign"),
    pytest.param(
        "tokens", {"oauth_token_file": "expired"}, "the access token is refused: .*invalid_token", id="expired"
    ),
    pytest.param("tokens", {"oauth_token_file": "for-others"}, "the access token is refused", id="another audience"),
    pytest.param("tokens", {"oauth_token_file": "missing"}, "no access token for Kafka: the token file", id="no token"),
    pytest.param("tokens", {"oauth_token_file": "forged"}, "the access token is refused", id="another issuer's key"),
]


@pytest.fixture(scope="module")
def of_others(kafka, tmp_path_factory):
    """Write a certificate and tokens that the broker does not accept; return their folder."""
    directory = tmp_path_factory.mktemp("of-others")
    CertificateAuthority(directory, "another-ca").issue("foreign")
    (directory / "expired").write_text(kafka.issuer.token(exp=int(time.time()) - 600))
    (directory / "for-others").write_text(kafka.issuer.token(aud="another"))
    (directory / "forged").write_text(Issuer(directory).token())
    return directory


@pytest.mark.parametrize(("kind", "changes", "why"), REFUSED)
def test_whom_kafka_does_not_let_in_is_told_why_at_once(kafka, of_others, kind, changes, why):
    environment = dict(kafka.environments[kind])
    for name, text in changes.items():
        environment.pop(f"ORDERS_KAFKA_{name.upper()}_FILE", None)
        in_folder = name.endswith("file") and text
        environment[f"ORDERS_KAFKA_{name.upper()}"] = str(of_others / text) if in_folder else text
    said = CommandLine(environment)("topics", "check", code=1).stderr
    [line] = said.splitlines()
    servers = environment["KAFKA_BOOTSTRAP_SERVERS"]
    assert line.startswith(f"order-service: Kafka at {servers} cannot be used with these ORDERS_KAFKA_… settings: ")
    assert re.search(why, line)
    assert PASSWORD not in line


@pytest.mark.parametrize("arguments", [("timeline", "order-1"), ("deliver", "order-1", "--wait", "0")])
def test_other_commands_and_the_sdk_are_told_why_too(kafka, of_others, arguments):
    environment = kafka.environments["tokens"] | {"ORDERS_KAFKA_OAUTH_TOKEN_FILE": str(of_others / "expired")}
    [line] = CommandLine(environment)(*arguments, code=1).stderr.splitlines()
    assert "cannot be used with these ORDERS_KAFKA_… settings: " in line
    assert "the access token is refused" in line


def test_a_worker_that_kafka_does_not_let_in_ends_with_one_line(kafka, tmp_path, users, of_others):
    environment = kafka.environments["tokens"] | {"ORDERS_KAFKA_OAUTH_TOKEN_FILE": str(of_others / "expired")}
    with Service(kafka.servers, tmp_path, users) as service:
        worker = service.start_worker(**environment)
        assert worker.wait_ended() == 1
        assert "the access token is refused" in worker.log()
