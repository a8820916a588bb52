"""The real Kafka of the tests, found as the service finds its own.

Nothing here skips: without a Kafka the tests fail with the line that says what to install or set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from order_service.errors import EmbeddedError
from order_service.local.broker import HOST, Broker, free_port
from order_service.local.kafka import (
    IMAGE,
    Docker,
    Embedded,
    External,
    choose_kafka,
    container_env,
)
from order_service.settings import Settings
from tests.support.quick_kafka import quick_broker

WITH_ACLS = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}
"""The properties of a broker that knows ACLs, for `running_broker`."""


@contextmanager
def running_kafka(directory: Path, settings: Settings | None = None) -> Iterator[str]:
    """Provide the bootstrap servers of a Kafka for any test; our own one runs in `directory` on a free port."""
    match choose_kafka(settings or Settings()):
        case External(bootstrap_servers=bootstrap_servers):
            yield bootstrap_servers
        case Embedded() as choice:
            with quick_broker(choice, directory) as broker:
                yield broker.bootstrap_servers
        case Docker():
            port = free_port()
            with kafka_container(port):
                yield f"{HOST}:{port}"


@contextmanager
def running_broker(directory: Path, properties: Mapping[str, str] | None = None) -> Iterator[Broker]:
    """Run a broker that a test may stop, kill and start again; `properties` go over its server.properties."""
    choice = choose_kafka(Settings(kafka="embedded"))
    if not isinstance(choice, Embedded):
        raise EmbeddedError(f"the tests that stop Kafka need Java and Maven, not {choice}")
    broker = quick_broker(choice, directory)
    with (broker.directory / "server.properties").open("a") as file:
        file.writelines(f"{name}={value}\n" for name, value in (properties or {}).items())
    with broker:
        yield broker


def kafka_container(port: int) -> DockerContainer:
    """Describe the container, published on loopback and `port`; testcontainers' own KafkaContainer knows Confluent's.

    The port is chosen before the start, because a broker must know the address that it advertises.
    """
    container = DockerContainer(IMAGE, env=container_env(port))
    container.ports["9092/tcp"] = (HOST, port)  # type: ignore[assignment] # docker takes (host, port) as well
    ready = LogMessageWaitStrategy("Kafka Server started").with_startup_timeout(120)
    return container.waiting_for(ready)
