"""The peers: how each is started on the commands of a service, and which processes belong to it."""

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, Protocol
from uuid import uuid4

from confluent_kafka.admin import AdminClient
from msgspec import Struct

from bench.others import tree, tree_s
from bench.peers import contract
from tests.support.service import ROOT, Service

STREAMS_CLASSES: Final = ROOT / "bench/peers/streams/target"
QUIX_PYTHON: Final = ROOT / ".venv/quix/bin/python"
END_WITHIN_S: Final = 15.0


class NoSuchPeer(Exception):
    """A peer has an unknown name, or is not installed."""


class Running(Struct, frozen=True):
    """A peer at work."""

    pids: frozenset[int]
    log_paths: tuple[Path, ...]

    def processor_s(self) -> float:
        """Return the processor time of its processes so far."""
        return tree_s(self.pids)

    def peak_bytes(self) -> int:
        """Return the sum of the peaks of memory of its processes."""
        return sum(_peak_bytes(pid) for pid in tree(self.pids))

    def log(self) -> str:
        """Return the end of its logs."""
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in self.log_paths)


class Peer(Protocol):
    """Decides the commands of a service, and writes to its topics for events, rejections and dead letters."""

    def check_installed(self) -> None:
        """Raise NoSuchPeer if it is not installed."""

    def running(self, service: Service) -> AbstractContextManager[Running]:
        """Start it, and end it after the block."""


class Ours(Struct, frozen=True):
    """Our workers, with their default settings."""

    workers: int = 1

    def check_installed(self) -> None:
        """Do nothing: it is what runs this."""

    @contextmanager
    def running(self, service: Service) -> Iterator[Running]:
        """Run the workers."""
        workers = [service.start_worker() for _ in range(self.workers)]
        try:
            yield Running(frozenset(w.process.pid for w in workers), tuple(w.log_path for w in workers))
        finally:
            for worker in workers:
                worker.end()


class Streams(Struct, frozen=True):
    """Kafka Streams, exactly_once_v2, one stream thread, its store in memory or in RocksDB."""

    commit_ms: int
    store: str = "memory"

    def check_installed(self) -> None:
        """Raise NoSuchPeer if it is not built."""
        if not (STREAMS_CLASSES / "lib").is_dir():
            raise NoSuchPeer("Kafka Streams is not built: run `make peers-setup`")

    @contextmanager
    def running(self, service: Service) -> Iterator[Running]:
        """Run it."""
        with _place(service) as (app_id, place):
            contract.write(place / "contract.json")
            settings = {
                "app_id": app_id,
                "bootstrap_servers": service.bootstrap_servers,
                "commands": service.names.commands,
                "events": service.names.events,
                "rejections": service.names.rejections,
                "dead_letters": service.names.dead_letters,
                "partitions": service.partitions,
                "commit_interval_ms": self.commit_ms,
                "store": self.store,
                "state_dir": place / "state",
                "contract": place / "contract.json",
                "org.slf4j.simpleLogger.defaultLogLevel": "warn",
            }
            options = ["-Xmx1g", *(f"-D{name}={value}" for name, value in settings.items())]
            command = ["java", *options, "-cp", f"{STREAMS_CLASSES}/classes:{STREAMS_CLASSES}/lib/*", "orders.Main"]
            with _process(command, place / "log") as running:
                yield running


class Quix(Struct, frozen=True):
    """Quix Streams, exactly-once, its store in RocksDB, with the service's own rules and encoding."""

    commit_ms: int

    def check_installed(self) -> None:
        """Raise NoSuchPeer if its virtual environment does not exist."""
        if not QUIX_PYTHON.exists():
            raise NoSuchPeer("Quix Streams is not installed: run `make peers-setup`")

    @contextmanager
    def running(self, service: Service) -> Iterator[Running]:
        """Run it."""
        with _place(service) as (app_id, place):
            settings = {
                "app-id": app_id,
                "bootstrap-servers": service.bootstrap_servers,
                "commands": service.names.commands,
                "events": service.names.events,
                "rejections": service.names.rejections,
                "dead-letters": service.names.dead_letters,
                "partitions": service.partitions,
                "commit-ms": self.commit_ms,
                "state-dir": place / "state",
            }
            options = [f"--{name}={value}" for name, value in settings.items()]
            with _process([str(QUIX_PYTHON), "-m", "bench.peers.quix", *options], place / "log") as running:
                yield running


def named(name: str) -> Peer:
    """Return the peer of a name. Raises NoSuchPeer."""
    if match := re.fullmatch(r"ours(?:-(\d))?", name):
        return Ours(int(match[1] or 1))
    if match := re.fullmatch(r"streams(-rocksdb)?-(\d+)ms", name):
        return Streams(int(match[2]), "rocksdb" if match[1] else "memory")
    if match := re.fullmatch(r"quix-(\d+)ms", name):
        return Quix(int(match[1]))
    raise NoSuchPeer(f"no such peer: {name}; there are: ours, ours-2, streams-20ms, streams-rocksdb-100ms, quix-1000ms")


@contextmanager
def _place(service: Service) -> Iterator[tuple[str, Path]]:
    """Provide a new application id and a folder; afterwards remove the folder, and the topics made under the id."""
    app_id = f"peer-{uuid4().hex[:10]}"
    place = service.directory / app_id
    place.mkdir()
    try:
        yield app_id, place
    finally:
        admin = AdminClient({"bootstrap.servers": service.bootstrap_servers})
        own = [topic for topic in admin.list_topics(timeout=30).topics if app_id in topic]
        for removed in (admin.delete_topics(own) if own else {}).values():
            removed.exception(30)
        shutil.rmtree(place)


@contextmanager
def _process(command: list[str], log_path: Path) -> Iterator[Running]:
    with log_path.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    try:
        yield Running(frozenset({process.pid}), (log_path,))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _peak_bytes(pid: int) -> int:
    """Return the largest size that a process had in memory. Source: proc(5), `VmHWM`."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
