"""One or three Kafka nodes of our own, to be killed and started again, each with a proxy before it.

A node has two listeners for clients. A client that finds the cluster by the direct ones stays with them, and so do the
nodes among themselves. A client that finds it by a proxy is told the proxies' addresses only, and stays behind them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from chaos.faults.broker_data import CLEANER_BACKOFF
from chaos.faults.proxy import Proxy
from order_service.errors import EmbeddedError
from order_service.local.broker import HOST, Broker, free_port
from order_service.local.kafka import PROPERTIES, Embedded, choose_kafka, prepare_node
from order_service.settings import Settings
from tests.support.quick_kafka import with_archive
from tests.support.service import until

PATIENCE_S = 60.0
ASK_WITHIN_S = 5.0

THREE: Mapping[str, str] = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
}
"""What three nodes have set otherwise than one: every topic survives the loss of one of them."""

GROUP, TRANSACTION = 0, 1
"""Kinds of coordinators. Source: Kafka protocol guide, FindCoordinator."""


class Ports(NamedTuple):
    """Where a node listens; its proxy stands before the second."""

    direct: int
    proxied: int
    controller: int


class Cluster:
    """Kafka nodes by their ids, from 1 on; they run while the block does, and its end kills what is left of them.

    Ports and data of a node stay the same however often it ends. All calls block, for tests and scripts. With three
    nodes Kafka's own topics have three replicas, and two must have a record; so has a topic that leaves it to Kafka.
    """

    def __init__(self, directory: Path, brokers: Literal[1, 3] = 1, *, proxied: bool = True) -> None:
        self.directory = directory
        self.nodes = range(1, brokers + 1)
        self.brokers: dict[int, Broker] = {}
        self.proxies: dict[int, Proxy] = {}
        self.running: set[int] = set()
        self._proxied = proxied
        self._ports = dict(zip(self.nodes, _ports(brokers), strict=True))
        self._undo = ExitStack()

    @property
    def bootstrap_servers(self) -> str:
        """Where clients find it that no fault shall befall but the end of a node."""
        return ",".join(f"{HOST}:{self._ports[node].direct}" for node in self.nodes)

    @property
    def proxied_servers(self) -> str:
        """Where clients find it that stay behind the proxies."""
        return ",".join(f"{HOST}:{self.proxies[node].port}" for node in self.nodes)

    def kill(self, node: int) -> None:
        """End a node as a crash would; its listeners are gone at once, the others notice within 4 s."""
        self.running.discard(node)
        self.brokers[node].kill()

    def stop(self, node: int) -> None:
        """Stop a node in order; it hands over what it leads, unless the others are too few. Killed after 10 s."""
        self.running.discard(node)
        self.brokers[node].stop()

    def start(self, *nodes: int) -> None:
        """Start nodes again, side by side, and return when they answer: two of three have to run for that."""
        self._side_by_side(lambda node: self.brokers[node].start(), nodes)
        self.running.update(nodes)

    def coordinator_of_group(self, group_id: str) -> int:
        """Find the running node that coordinates a group."""
        return self._coordinator(group_id, GROUP)

    def coordinator_of_transaction(self, transactional_id: str) -> int:
        """Find the running node that coordinates the transactions of an id."""
        return self._coordinator(transactional_id, TRANSACTION)

    def wait_all_in_sync(self, topics: Iterable[str] = (), *, replicas: int = 1, within_s: float = PATIENCE_S) -> None:
        """Wait until all nodes run, and know these topics with so many replicas or more, and all replicas in sync.

        Those of Kafka's own topics count, too.
        """
        wanted = set(topics)
        until(lambda: self._all_in_sync(wanted, replicas), "all replicas are in sync", within_s=within_s)

    def wait_brokers(self, count: int) -> None:
        """Wait until each running node knows that so many run."""
        until(lambda: self._know_of(count), f"all nodes know of {count}", within_s=PATIENCE_S)

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self._end)
            for node in self.nodes if self._proxied else ():
                self.proxies[node] = undo.enter_context(Proxy(self._ports[node].proxied))
            self._side_by_side(self._prepare, self.nodes)
            self.start(*self.nodes)
            self.wait_brokers(len(self.nodes))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _end(self) -> None:
        # Killed: the last one alone could not hand over anything, and the data is not needed any more.
        self.running.clear()
        self._side_by_side(lambda node: self.brokers[node].kill(), self.brokers)

    def _side_by_side(self, act: Callable[[int], object], nodes: Iterable[int]) -> None:
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(act, nodes))

    def _prepare(self, node: int) -> None:
        choice = choose_kafka(Settings(kafka="embedded"))
        if not isinstance(choice, Embedded):
            raise EmbeddedError(f"a cluster to be killed needs Java and Maven, not {choice}")
        directory = self.directory / f"node-{node}"
        broker = prepare_node(choice, directory, self._ports[node].direct, self._properties(node))
        self.brokers[node] = with_archive(choice, broker)

    def _properties(self, node: int) -> dict[str, str]:
        ports = self._ports[node]
        listeners = {"DIRECT": ports.direct, "PROXIED": ports.proxied} if self._proxied else {"DIRECT": ports.direct}
        advertised = listeners | ({"PROXIED": self.proxies[node].port} if self._proxied else {})
        return {
            **PROPERTIES,
            **CLEANER_BACKOFF,
            **(THREE if len(self.nodes) == 3 else {}),
            "process.roles": "broker,controller",
            "node.id": str(node),
            "controller.quorum.voters": ",".join(
                f"{node}@{HOST}:{self._ports[node].controller}" for node in self.nodes
            ),
            "listeners": _addresses({**listeners, "CONTROLLER": ports.controller}),
            "advertised.listeners": _addresses(advertised),
            "listener.security.protocol.map": "DIRECT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "DIRECT",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": "data",
        }

    def _coordinator(self, key: str, kind: int) -> int:
        def find() -> int | None:
            found = (find_coordinator(self._ports[node].direct, key, kind) for node in sorted(self.running))
            return next((node for node in found if node in self.running), None)

        coordinator: int = until(find, f"{key} has a coordinator that runs", within_s=PATIENCE_S)
        return coordinator

    def _know_of(self, count: int) -> bool:
        return all(_nodes_known_at(self._ports[node].direct) == count for node in self.running)

    def _all_in_sync(self, topics: set[str], replicas: int) -> bool:
        # One that was killed is thought to be in sync until its session expires; one may know less than another.
        return self.running == set(self.nodes) and all(
            self._knows_in_sync(node, topics, replicas) for node in self.nodes
        )

    def _knows_in_sync(self, node: int, topics: set[str], replicas: int) -> bool:
        admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{self._ports[node].direct}", "log_level": 0})
        try:
            found = admin.list_topics(timeout=ASK_WITHIN_S).topics
        except KafkaException:
            return False
        partitions = [partition for topic in found.values() for partition in topic.partitions.values()]
        if not topics <= found.keys() or any(set(one.isrs) != set(one.replicas) for one in partitions):
            return False
        return all(len(one.replicas) >= replicas for topic in topics for one in found[topic].partitions.values())


def find_coordinator(port: int, key: str, kind: int) -> int | None:
    """Ask the node at `port` who coordinates a group (kind 0) or a transactional id (1); None if it cannot tell.

    Shape:  request: head with no client id, key, kind; answer: correlation id, ms of throttling, error, message or
            null, node, host, port.
    Source: Kafka protocol guide, FindCoordinator, version 2.
    """
    name = key.encode()
    answer = _ask(port, struct.pack(f">hhihh{len(name)}sb", 10, 2, 1, -1, len(name), name, kind))
    if len(answer) < 12:
        return None
    error, message_size = struct.unpack_from(">hh", answer, 8)
    return struct.unpack_from(">i", answer, 12 + max(0, message_size))[0] if error == 0 else None


def _nodes_known_at(port: int) -> int:
    """Count the brokers in a node's metadata: version 1, no topics; the count is the first number of the answer."""
    answer = _ask(port, struct.pack(">hhihi", 3, 1, 1, -1, 0))
    return struct.unpack_from(">i", answer, 4)[0] if len(answer) >= 8 else 0


def _ask(port: int, request: bytes) -> bytes:
    """Return the answer from its correlation id on; nothing if the node is away."""
    try:
        with socket.create_connection((HOST, port), timeout=ASK_WITHIN_S) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            with connection.makefile("rb") as stream:
                return stream.read(int.from_bytes(stream.read(4)))
    except OSError:
        return b""


def _addresses(listeners: Mapping[str, int]) -> str:
    return ",".join(f"{name}://{HOST}:{port}" for name, port in listeners.items())


def _ports(nodes: int) -> list[Ports]:
    found: set[int] = set()
    while len(found) < 3 * nodes:
        found.add(free_port())
    ports = iter(found)
    return [Ports(next(ports), next(ports), next(ports)) for _ in range(nodes)]
