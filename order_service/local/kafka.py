"""The choice of a Kafka on this machine, and the preparation of a local one (`broker.py` runs it).

All three are the real Apache Kafka: an external one from a setting, one that Maven fetches and Java runs, or one in a
container.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import structlog
from msgspec import Struct

from order_service.errors import EmbeddedError
from order_service.local.broker import HOST, LOG, Broker, free_port
from order_service.runtime.supervisor import open_log
from order_service.settings import Settings

log = structlog.get_logger(__name__)

VERSION = "4.2.1"
IMAGE = f"apache/kafka:{VERSION}"
JAVA_MIN = 17
POM = Path(__file__).with_name("pom.xml")
CLUSTER_ID = "OrderServiceEmbedded0w"
"""Any 16 bytes in URL-safe base64; a data directory keeps the one it was formatted with."""

PROPERTIES: Mapping[str, str] = {
    # Topics are created with the settings of `kafka/topics.py`, never by a typo in a name.
    "auto.create.topics.enable": "false",
    # A single node holds Kafka's internal topics, and fewer partitions of them start faster.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    # A single worker need not wait for others to join; tests notice a dead one within 2 s.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # A killed node can register again when its last session has expired: 9 s by default.
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "4000",
    # The changelogs are compacted. The cleaner's default buffer of 128 MiB is a quarter of our heap.
    "log.cleaner.enable": "true",
    "log.cleaner.dedupe.buffer.size": str(32 * 1024 * 1024),
}
"""The settings of our nodes, embedded or in a container, without the listeners."""

HEAP = ("-Xms256m", "-Xmx512m", "-XX:+ExitOnOutOfMemoryError")
LOGGING = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.BrokerServer=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSZ",
    "-Dorg.slf4j.simpleLogger.showThreadName=false",
)


class External(Struct, frozen=True, tag=True):
    """A Kafka at the addresses in KAFKA_BOOTSTRAP_SERVERS."""

    bootstrap_servers: str


class Embedded(Struct, frozen=True, tag=True):
    """A Kafka that Java runs, from the jars that Maven fetches."""

    java: str
    mvn: str


class Docker(Struct, frozen=True, tag=True):
    """A Kafka in a container of a Docker engine."""

    docker: str


class Missing(Struct, frozen=True, tag=True):
    """A choice that this machine cannot run; `remedy` is a clause that says what to install or start."""

    remedy: str


Local = Embedded | Docker
Choice = External | Local
Which = Callable[[str], str | None]


def java_version(java: str) -> int | None:
    """Return the major version of `java`, or None if it cannot run (macOS has a stub that only says so)."""
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_java_version(done.stderr)


def parse_java_version(text: str) -> int | None:
    """Return 17 for `openjdk version "17.0.15"`, and 8 for the older form `"1.8.0_402"`."""
    match = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(match[1]) if match else None


def engine_answers(docker: str) -> bool:
    """Return whether the engine behind the `docker` command answers; the command alone proves nothing."""
    try:
        done = subprocess.run([docker, "version"], capture_output=True, timeout=15, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def find_program(name: str) -> str | None:
    """Return the path of a program from the PATH; for Java, JAVA_HOME goes first, as in Maven."""
    home = os.environ.get("JAVA_HOME")
    own = shutil.which(Path(home, "bin", "java")) if home and name == "java" else None
    return str(own) if own else shutil.which(name)


def choose_kafka(
    settings: Settings,
    which: Which = find_program,
    java_version: Callable[[str], int | None] = java_version,
    engine_answers: Callable[[str], bool] = engine_answers,
) -> Choice:
    """Return the Kafka to use: an external one if set, else Maven's, else Docker's.

    `ORDERS_KAFKA` forces a local one even if an external one is set, and so protects a shared cluster. Raises
    EmbeddedError with one line that says what to install or set.
    """
    if settings.kafka_bootstrap_servers and not settings.kafka:
        return External(settings.kafka_bootstrap_servers)
    if settings.kafka == "embedded":
        return _or_raise(_embedded(which, java_version), "ORDERS_KAFKA=embedded: ")
    if settings.kafka == "docker":
        return _or_raise(_docker(which, engine_answers), "ORDERS_KAFKA=docker: ")
    embedded = _embedded(which, java_version)
    if isinstance(embedded, Embedded):
        return embedded
    docker = _docker(which, engine_answers)
    return _or_raise(docker, f"no Kafka: {embedded.remedy}; or ", "; or set KAFKA_BOOTSTRAP_SERVERS")


def _or_raise(choice: Local | Missing, before: str, after: str = "") -> Local:
    if isinstance(choice, Missing):
        raise EmbeddedError(f"{before}{choice.remedy}{after}")
    return choice


def _embedded(which: Which, java_version: Callable[[str], int | None]) -> Embedded | Missing:
    java, mvn = which("java"), which("mvn")
    version = java_version(java) if java else None
    if java is None or version is None or version < JAVA_MIN:
        actual = f" (found Java {version})" if version else ""
        return Missing(f"install Java {JAVA_MIN} or newer{actual}" + ("" if mvn else " and Maven"))
    return Embedded(java, mvn) if mvn else Missing("install Maven (no mvn on the PATH)")


def _docker(which: Which, engine_answers: Callable[[str], bool]) -> Docker | Missing:
    docker = which("docker")
    if docker is None:
        return Missing("install Docker")
    return Docker(docker) if engine_answers(docker) else Missing("start the Docker engine (it does not answer)")


def local_broker(choice: Local, settings: Settings) -> Broker:
    """Prepare the chosen local Kafka with the data directory and port of the settings; it does not run yet."""
    directory = settings.data_dir / "kafka"
    match choice:
        case Embedded():
            return embedded_broker(choice, directory, settings.kafka_port)
        case Docker():
            return docker_broker(choice, directory, settings.kafka_port)


def embedded_broker(choice: Embedded, directory: Path, port: int = 0) -> Broker:
    """Prepare a node with its settings, data and log in `directory`; fetch the jars if necessary.

    A directory that was used before keeps its topics and records. Port 0 takes a free port.
    """
    port = port or free_port()
    return prepare_node(choice, directory, port, _node_properties(port, free_port()))


def prepare_node(
    choice: Embedded, directory: Path, port: int, properties: Mapping[str, str], pom: Path = POM
) -> Broker:
    """Prepare a node that has these properties and answers at `port`, for a cluster of several nodes.

    Paths among the properties are relative to `directory`, and `log.dirs` is `data`.
    """
    jars = fetch_jars(choice.mvn, cache_dir(), pom)
    directory.mkdir(parents=True, exist_ok=True)
    open_log(directory / LOG).close()  # fails before the settings of a running node are overwritten
    Path(directory, "server.properties").write_text(_lines(properties), encoding="ascii")
    java = [choice.java, "-cp", f"{jars}/*"]
    if not Path(directory, "data", "meta.properties").exists():
        _format(java, directory)
    return Broker([*java, *HEAP, *LOGGING, "kafka.Kafka", "server.properties"], directory, port)


def _node_properties(port: int, controller_port: int) -> dict[str, str]:
    """Return the node's settings, without absolute paths, which might need escaping: Kafka runs in its directory.

    The quorum is static, because the controller may get another free port at the next start.
    """
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": "data",
        **PROPERTIES,
    }


def _lines(properties: Mapping[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in properties.items())


def _format(java: list[str], directory: Path) -> None:
    quick = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    tool = ["kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", CLUSTER_ID, "-c", "server.properties"]
    command = [java[0], *quick, *java[1:], *tool]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise EmbeddedError(f"Kafka cannot use {directory} (set ORDERS_DATA_DIR to another one): {' '.join(last)}")


def cache_dir() -> Path:
    """Return the directory that keeps the jars between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "order-service"


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, which `make` fills if it does not exist. It appears only when it is complete.

    Of two runs at the same time, one makes it and the other waits for it.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name("fetch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file closes, or its holder dies
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as unfinished:
                made = Path(unfinished, "made")
                made.mkdir()
                make(made)
                made.rename(folder)
    return folder


def fetch_jars(mvn: str, cache: Path, pom: Path = POM) -> Path:
    """Copy Kafka's jars into a folder of `cache` with Maven, once; return the folder.

    Its name has a digest of the pom, so other jars are in another folder.
    """
    digest = hashlib.blake2b(pom.read_bytes(), digest_size=4).hexdigest()
    folder = cache / f"kafka-{VERSION}-{digest}"

    def fetch(jars: Path) -> None:
        log.info("Maven fetches Kafka once; this takes a moment.", version=VERSION, folder=str(folder))
        # Maven writes beside its pom, whose directory may be read-only.
        own_pom = shutil.copy(pom, jars.parent)
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={jars}"]
        command = [mvn, "--batch-mode", "--quiet", "--file", own_pom, *goal]
        done = subprocess.run(  # noqa: S603
            command, cwd=jars.parent, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode != 0 or not any(jars.glob("*.jar")):
            raise EmbeddedError(f"Maven could not fetch Kafka {VERSION}: {_first_error(done.stdout + done.stderr)}")

    return made_once(folder, fetch)


def _first_error(output: str) -> str:
    output = re.sub(r"\x1b\[[0-9;]*m", "", output)  # Maven resets colours before its first line, also without any
    lines = [line for line in output.splitlines() if line.removeprefix("[ERROR]").strip()]
    errors = [line.removeprefix("[ERROR] ") for line in lines if line.startswith("[ERROR]")]
    return (errors or lines or ["it wrote no output"])[0][:300]


def docker_broker(choice: Docker, directory: Path, port: int = 0) -> Broker:
    """Prepare a container that runs in the foreground; its data is a volume named after the port.

    `directory` gets the log only: the user inside the image could not write to it.
    """
    port = port or free_port()
    directory.mkdir(parents=True, exist_ok=True)
    name = _container(port)
    options = ["--rm", "--name", name, "--publish", f"{HOST}:{port}:9092", "--volume", f"{name}:/var/lib/kafka/data"]
    options += ["--label", _label(directory)]
    variables = [part for key, value in container_env(port).items() for part in ("--env", f"{key}={value}")]
    command = [choice.docker, "run", *options, *variables, IMAGE]
    # The image may have to be pulled first.
    clean = partial(remove_left_container, choice, directory, port)
    return Broker(command, directory, port, start_within_s=600.0, clean=clean)


def remove_left_container(choice: Docker, directory: Path, port: int) -> None:
    """Remove the container that a run in `directory` left behind, for example because its docker client was killed.

    It would keep the port and the name. Its data is in the volume. Raises EmbeddedError if that run is still alive, or
    if the engine hangs. A container of another directory is not touched.
    """
    log_path = directory / LOG
    if log_path.exists():
        open_log(log_path).close()
    filters = ["--filter", f"name=^/?{_container(port)}$", "--filter", f"label={_label(directory)}"]
    for container in _output([choice.docker, "ps", "--all", "--quiet", *filters]).split():
        _output([choice.docker, "rm", "--force", "--volumes", container])


def _container(port: int) -> str:
    return f"order-service-kafka-{port}"


def _label(directory: Path) -> str:
    return f"order-service.directory={directory.resolve()}"


def _output(command: list[str]) -> str:
    """Return the output of a docker command. One that fails has no output: `docker run` then reports why."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedError(f"the Docker engine does not answer: {error}") from error
    return done.stdout if done.returncode == 0 else ""


def container_env(port: int) -> dict[str, str]:
    """Return the image's environment for a node that the host reaches at 127.0.0.1 and `port`.

    Two listeners, because a node also calls itself, and the host's port does not exist inside the container.
    Source: the image's README: a property a.b is KAFKA_A_B; setting one discards all its defaults.
    """
    properties = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": "1@localhost:29093",
        "listeners": "HOST://:9092,INTERNAL://:29092,CONTROLLER://:29093",
        "advertised.listeners": f"HOST://{HOST}:{port},INTERNAL://localhost:29092",
        "listener.security.protocol.map": "HOST:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "INTERNAL",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": "/var/lib/kafka/data",
        **PROPERTIES,
    }
    return {
        "CLUSTER_ID": CLUSTER_ID,
        **{"KAFKA_" + key.upper().replace(".", "_"): value for key, value in properties.items()},
    }
