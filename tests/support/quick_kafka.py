"""Lets the brokers of the tests start sooner: some sixty live for seconds each, and most of that is their start.

An archive of Kafka's classes and a formatted data folder are made once for a Java and a version of Kafka, and kept
beside the jars. A start takes a third less processor time with the archive, and needs no second Java for the format.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from order_service.local.broker import Broker
from order_service.local.kafka import Embedded, cache_dir, choose_kafka, embedded_broker, fetch_jars, made_once
from order_service.settings import Settings

ARCHIVE = "classes.jsa"


def quick_broker(choice: Embedded, directory: Path) -> Broker:
    """Make a single node ready, as `embedded_broker` does."""
    ready = _ready(choice)
    if not (directory / "data").exists():
        shutil.copytree(ready / "data", directory / "data")
    return with_archive(choice, embedded_broker(choice, directory))


def with_archive(choice: Embedded, broker: Broker) -> Broker:
    """Return a broker that starts with the archive of Kafka's classes."""
    broker.command = _with_option(broker, archive_option(choice))
    return broker


def archive_option(choice: Embedded) -> str:
    """Return the option by which Java uses the archive of Kafka's classes, for `-cp` with Kafka's jars alone."""
    return f"-XX:SharedArchiveFile={_ready(choice) / ARCHIVE}"


def java_options() -> str:
    """Return JDK_JAVA_OPTIONS for a process that may start the embedded Kafka as it does in production."""
    choice, options = choose_kafka(Settings()), os.environ["JDK_JAVA_OPTIONS"]
    return f"{options} {archive_option(choice)}" if isinstance(choice, Embedded) else options


def _with_option(broker: Broker, option: str) -> list[str]:
    """Return its command with an option for Java before the name of the program and its file."""
    return [*broker.command[:-2], option, *broker.command[-2:]]


def _ready(choice: Embedded) -> Path:
    """Return the folder of both."""
    jars = fetch_jars(choice.mvn, cache_dir())
    java = hashlib.blake2b(os.fsencode(os.path.realpath(choice.java)), digest_size=4).hexdigest()
    return made_once(cache_dir() / f"quick-{jars.name}-{java}", lambda folder: _make(choice, folder))


def _make(choice: Embedded, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as node:
        broker = embedded_broker(choice, Path(node))
        shutil.copytree(Path(node, "data"), folder / "data")
        archiving = _with_option(broker, f"-XX:ArchiveClassesAtExit={folder / ARCHIVE}")
        with Broker(archiving, Path(node), broker.port, stop_within_s=120.0):
            pass
