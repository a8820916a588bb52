"""Run a command beside another version of Kafka: `python -m tests.support.kafka_version 3.9.2 pytest tests/broker`.

The command finds that Kafka as an external one. Tests that start brokers of their own still start the usual version.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from order_service.errors import EmbeddedError
from order_service.local import kafka
from order_service.local.broker import free_port
from order_service.local.kafka import POM, Embedded, cache_dir, choose_kafka
from order_service.settings import Settings


def pom_of(version: str, folder: Path) -> Path:
    """Write a pom for this version of Kafka into a folder, and return its path."""
    pom = folder / f"kafka-{version}.xml"
    text = POM.read_text(encoding="utf-8")
    pom.write_text(text.replace(f"<version>{kafka.VERSION}</version>", f"<version>{version}</version>"), "utf-8")
    return pom


def run_beside(version: str, command: list[str]) -> int:
    """Return the exit status of a command that has this version of Kafka as its external one."""
    choice = choose_kafka(Settings(kafka="embedded"))
    if not isinstance(choice, Embedded):
        raise EmbeddedError(f"another version of Kafka needs Java and Maven, not {choice}")
    with tempfile.TemporaryDirectory() as directory:
        node, port = Path(directory, "node"), free_port()
        properties = kafka._node_properties(port, free_port())
        pom = pom_of(version, cache_dir())
        with kafka.prepare_node(choice, node, port, properties, pom) as broker:
            sys.stderr.write(f"Kafka {version} answers at {broker.bootstrap_servers}\n")
            environment = os.environ | {"KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers, "ORDERS_KAFKA": ""}
            return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(run_beside(sys.argv[1], sys.argv[2:]))
