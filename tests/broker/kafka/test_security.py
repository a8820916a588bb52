"""SASL and TLS: what the settings make of every client, and a broker that lets no client in without a password."""

import signal
import ssl
import subprocess
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from order_service.errors import KafkaAwayError
from order_service.kafka.connection import ask_admin, connection, tls
from order_service.local.broker import HOST, Broker, free_port
from order_service.local.kafka import Embedded, choose_kafka
from order_service.settings import Settings
from tests.support.quick_kafka import quick_broker
from tests.support.samples import create, pay
from tests.support.service import Service

PASSWORD = "only-for-tests"
JAAS = "org.apache.kafka.common.security"


def settings(**changes):
    return Settings(kafka_bootstrap_servers="kafka-1:9093,kafka-2:9093", **changes)


def secured(protocol):
    return settings(
        kafka_security_protocol=protocol,
        kafka_sasl_mechanism="SCRAM-SHA-256",
        kafka_sasl_username="orders",
        kafka_sasl_password=PASSWORD,
    )


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"])
def test_every_protocol_gives_clients_what_they_need(protocol):
    arguments = connection(secured(protocol))
    assert (arguments["bootstrap_servers"], arguments["security_protocol"]) == ("kafka-1:9093,kafka-2:9093", protocol)
    assert isinstance(arguments["ssl_context"], ssl.SSLContext) == protocol.endswith("SSL")
    sasl = {name: value for name, value in arguments.items() if name.startswith("sasl")}
    assert sasl == (
        {"sasl_mechanism": "SCRAM-SHA-256", "sasl_plain_username": "orders", "sasl_plain_password": PASSWORD}
        if protocol.startswith("SASL")
        else {}
    )


def test_tls_checks_the_names_and_certificates_of_brokers():
    context = tls(settings(kafka_security_protocol="SSL"))
    assert context is not None
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_file_of_authorities_replaces_those_of_the_system(tmp_path):
    none = tmp_path / "none.pem"
    none.write_text("no certificate")
    with pytest.raises(KafkaAwayError, match=r"none\.pem of ORDERS_KAFKA_SSL_CAFILE cannot be read"):
        tls(settings(kafka_security_protocol="SASL_SSL", kafka_ssl_cafile=none))
    with pytest.raises(KafkaAwayError, match=r"missing\.pem of ORDERS_KAFKA_SSL_CAFILE cannot be read"):
        tls(settings(kafka_security_protocol="SSL", kafka_ssl_cafile=tmp_path / "missing.pem"))


def test_the_password_is_in_nothing_that_is_shown():
    assert PASSWORD not in repr(secured("SASL_SSL"))
    assert PASSWORD not in str(secured("SASL_SSL").model_dump())


def secure(broker: Broker, directory: Path, java: str) -> int:
    """Add a listener to a broker that does not run yet; it has a certificate, and asks for a name and a password."""
    port = free_port()
    keys = ["-alias", "kafka", "-keystore", str(directory / "keys.p12"), "-storepass", PASSWORD]
    for tool in (
        ["-genkeypair", *keys, "-keyalg", "EC", "-dname", "CN=kafka", "-ext", f"san=ip:{HOST}"],
        ["-exportcert", *keys, "-rfc", "-file", str(directory / "ca.pem")],
    ):
        subprocess.run([str(Path(java).with_name("keytool")), *tool], check=True, capture_output=True, timeout=60)
    file = broker.directory / "server.properties"
    properties = dict(line.split("=", 1) for line in file.read_text().splitlines())
    properties["listeners"] += f",SECURE://{HOST}:{port}"
    properties["advertised.listeners"] += f",SECURE://{HOST}:{port}"
    properties["listener.security.protocol.map"] += ",SECURE:SASL_SSL"
    mine = "listener.name.secure"
    properties |= {
        f"{mine}.ssl.keystore.type": "PKCS12",
        f"{mine}.ssl.keystore.location": str(directory / "keys.p12"),
        f"{mine}.ssl.keystore.password": PASSWORD,
        f"{mine}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        f"{mine}.plain.sasl.jaas.config": f'{JAAS}.plain.PlainLoginModule required user_orders="{PASSWORD}";',
        f"{mine}.scram-sha-512.sasl.jaas.config": f"{JAAS}.scram.ScramLoginModule required;",
    }
    file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    return port


@pytest.fixture(scope="module")
def secure_kafka(tmp_path_factory):
    """Run a broker with a secure listener; give its open servers, and the environment of who may use the other."""
    choice = choose_kafka(Settings(kafka="embedded"))
    assert isinstance(choice, Embedded)
    directory = tmp_path_factory.mktemp("secure")
    broker = quick_broker(choice, directory / "kafka")
    port = secure(broker, directory, choice.java)
    with broker:
        admin = AdminClient({"log_level": 0, "bootstrap.servers": broker.bootstrap_servers})
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        change = UserScramCredentialUpsertion("orders", scram, PASSWORD.encode())
        admin.alter_user_scram_credentials([change])["orders"].result(30)
        yield (
            broker.bootstrap_servers,
            {
                "KAFKA_BOOTSTRAP_SERVERS": f"{HOST}:{port}",
                "ORDERS_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
                "ORDERS_KAFKA_SASL_USERNAME": "orders",
                "ORDERS_KAFKA_SASL_PASSWORD": PASSWORD,
                "ORDERS_KAFKA_SSL_CAFILE": str(directory / "ca.pem"),
            },
        )


def test_workers_decide_over_tls_with_a_password(secure_kafka, tmp_path, users):
    servers, environment = secure_kafka
    with Service(servers, tmp_path, users) as service:
        scram = service.start_worker(**environment).wait_ready()
        service.send([create])
        service.wait_outcomes(1)
        scram.send(signal.SIGTERM)
        assert scram.wait_ended() == 0
        plain = service.start_worker(**environment, ORDERS_KAFKA_SASL_MECHANISM="PLAIN")
        service.send([pay])
        service.wait_outcomes(2)
        service.check([create, pay])
        assert PASSWORD not in scram.log() + plain.log()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kafka_sasl_password": "wrong"}, "invalid credentials with SASL mechanism SCRAM-SHA-512"),
        ({"kafka_ssl_cafile": None}, "certificate verify failed"),
    ],
)
async def test_whom_kafka_does_not_let_in_is_told_why_at_once(secure_kafka, changes, why):
    _, environment = secure_kafka
    fields = {
        "kafka_bootstrap_servers": environment["KAFKA_BOOTSTRAP_SERVERS"],
        "kafka_security_protocol": "SASL_SSL",
        "kafka_sasl_username": "orders",
        "kafka_sasl_password": PASSWORD,
        "kafka_ssl_cafile": environment["ORDERS_KAFKA_SSL_CAFILE"],
    }
    with pytest.raises(KafkaAwayError, match=f"cannot be used with these ORDERS_KAFKA_… settings: .*{why}") as raised:
        await ask_admin(Settings(**fields | changes), AIOKafkaAdminClient.list_topics)
    assert PASSWORD not in str(raised.value)
