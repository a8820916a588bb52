"""The Kafka clients of the service: their servers, and metadata requests that create no topics."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import cached_property
from typing import Any, Final, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.cluster import ClusterMetadata
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    RequestTimedOutError,
    StaleMetadata,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import TopicPartition

from order_service.errors import KafkaAwayError, TopicsError
from order_service.kafka import record_batches
from order_service.kafka.broker_connection import BrokerConnection
from order_service.kafka.security import refusal_of, security
from order_service.settings import Settings

log = structlog.get_logger()
_CLIENT_LOG: Final = logging.getLogger("aiokafka.client")
_T = TypeVar("_T")

NODES_WITHIN_S = 2.0
NODE_PAUSE_S = 0.1
NO_LEADER: Final = -1
"""The node id that Kafka returns for a partition without a leader."""
UNKNOWN_TOPIC: Final[int] = UnknownTopicOrPartitionError.errno
RENEW_WITHIN_S: Final = 5.0
"""How long the successor of a connection may take to open; less than a commit may take (`transactions.DEADLINE_S`)."""
UNKNOWN_RETRY_S: Final = 1.0
"""Time before a client asks again about a topic that Kafka reported as unknown."""


class Consumer(AIOKafkaConsumer):  # type: ignore[misc] # aiokafka has no types
    """A consumer whose metadata requests never create topics."""

    def __init__(self, *topics: str, **arguments: Any) -> None:
        super().__init__(*topics, **arguments)
        self._client.__class__ = _NoCreationClient

    async def stop(self) -> None:
        """Leave the group, if any, and close all connections, also while Kafka is away.

        aiokafka 0.14 cancels its fetches here. If one has just failed, its CancelledError gets out: it would end a task
        that was not cancelled, and leave the connections open.
        """
        stopping = asyncio.ensure_future(super().stop())
        try:
            await asyncio.wait({stopping})
        finally:
            stopping.cancel()
        if stopping.cancelled():
            await self._client.close()
        else:
            stopping.result()


class Producer(AIOKafkaProducer):  # type: ignore[misc]
    """A producer whose metadata requests never create topics."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.client.__class__ = _NoCreationClient

    def start_from(self, metadata: ClusterMetadata, topics: Collection[str]) -> None:
        """Start with the brokers and partitions that another client knows, without a request.

        With hundreds of partitions, reading metadata is most of the cost of a producer that writes a few records.
        """
        self.client.start_from(metadata, topics)


class Admin(AIOKafkaAdminClient):  # type: ignore[misc]
    """An admin client that creates topics only by `create_topics`, and that asks another broker if one is down."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._client.__class__ = _NoCreationClient

    async def _send_request(self, request: Any, node_id: int | None = None) -> Any:
        """Return the response of this broker, or of the first that answers: aiokafka tries one, which may be down."""
        if node_id is None:
            return await _answer_of_any_node(self._client, request)
        return await super()._send_request(request, node_id)


class _NoCreationClient(AIOKafkaClient):  # type: ignore[misc]
    """A client that never creates topics, and that asks again about unknown ones.

    With `auto.create.topics.enable`, Kafka's default, a broker creates the topics of a Metadata request, with one
    partition and a week of retention, unless the request forbids it. aiokafka 0.14 has no argument for that, and its
    bootstrap request has no topic. Only our own clients are changed: the SDK runs in processes that have others.

    A broker that has just started can report topics as unknown. The leader of a group then assigns no partitions, and
    aiokafka asks again after five minutes. This client asks again after `UNKNOWN_RETRY_S`.
    """

    _retry: asyncio.TimerHandle | None = None
    _is_closed = False
    _is_started = False
    _renew_within_s = RENEW_WITHIN_S
    _sync_task: asyncio.Task[None] | None

    @cached_property
    def _closing(self) -> dict[asyncio.Task[None], BrokerConnection]:
        """The tasks that close connections, whose class was given to an object that exists: it has no `__init__`."""
        return {}

    @cached_property
    def _opening(self) -> defaultdict[tuple[int, int], asyncio.Lock]:
        """A lock for each connection. aiokafka 0.14 has one for all: a host that is lost would delay the others."""
        return defaultdict(asyncio.Lock)

    def start_from(self, metadata: ClusterMetadata, topics: Collection[str]) -> None:
        """Use this metadata instead of a request at the start, if it has any broker."""
        own, self._topics = self.cluster, set(topics)
        # A client replaces these as a whole, and changes none in place.
        own._brokers, own._partitions = metadata._brokers, metadata._partitions  # noqa: SLF001
        own._broker_partitions = metadata._broker_partitions  # noqa: SLF001
        self._is_started = bool(own.brokers())

    async def bootstrap(self) -> None:
        """Connect to a bootstrap server and read the metadata, unless `start_from` has done that.

        The cause of a KafkaConnectionError is a KafkaAwayError, if a server refuses us: see `refusal_of`.
        """
        if self._is_started:
            self._sync_task = self._sync_task or asyncio.create_task(self._md_synchronizer(), name="metadata")
            return
        try:
            await super().bootstrap()
        except KafkaConnectionError:
            await self._check_refusal()
            raise
        if not self.cluster.brokers():  # aiokafka 0.14 reads this from a server that has refused an access token
            await self._check_refusal()

    async def _check_refusal(self) -> None:
        for host, port, _ in self.hosts if self._security_protocol != "PLAINTEXT" else ():
            if refusal := await refusal_of(host, port, self._security):
                raise KafkaConnectionError(refusal) from _refused(self._bootstrap_servers, refusal)

    @property
    def _security(self) -> dict[str, Any]:
        """The arguments of a connection that `security` has made."""
        return {
            "security_protocol": self._security_protocol,
            "ssl_context": self._ssl_context,
            "sasl_mechanism": self._sasl_mechanism,
            "sasl_plain_username": self._sasl_plain_username,
            "sasl_plain_password": self._sasl_plain_password,
            "sasl_oauth_token_provider": self._sasl_oauth_token_provider,
        }

    async def close(self) -> None:
        """Close all connections, also one that a task of the client is opening: aiokafka 0.14 would leave it open."""
        self._is_closed = True
        if self._retry is not None:
            self._retry.cancel()
        for closing, replaced in list(self._closing.items()):
            closing.cancel()
            replaced.close()
        await super().close()

    async def _metadata_update(self, cluster: ClusterMetadata, topics: Collection[str] | None) -> bool:
        is_updated = bool(await super()._metadata_update(cluster, topics))
        if cluster is self.cluster and any(cluster.partitions_for_topic(topic) is None for topic in topics or ()):
            self._retry_later()
        return is_updated

    def _retry_later(self) -> None:
        """Ask again after `UNKNOWN_RETRY_S`, unless that is planned already: other causes ask much more often."""
        loop = asyncio.get_running_loop()
        if self._retry is None or self._retry.when() <= loop.time():
            self._retry = loop.call_later(UNKNOWN_RETRY_S, self.force_metadata_update)

    async def _get_conn(
        self,
        node_id: int,
        *,
        group: int = ConnectionGroup.DEFAULT,
        no_hint: bool = False,  # noqa: ARG002, aiokafka's signature
    ) -> AIOKafkaConnection | None:
        """Return an open connection to a broker, a new one if the session of the last one is about to end, or None."""
        key = node_id, group
        last: Any = self._conns.get(key)
        if last is not None and not last.connected():
            last.close(reason=CloseReason.CONNECTION_BROKEN)  # its own task may not have noticed the end yet
            del self._conns[key]
            last = None
        if type(last) is AIOKafkaConnection:  # of `bootstrap`
            last.__class__ = BrokerConnection
        if last is not None and not last.is_expiring:
            return last
        try:
            async with asyncio.timeout(None if last is None else self._renew_within_s), self._opening[key]:
                if self._conns.get(key) in {last, None}:  # else another task has opened one meanwhile
                    self._conns[key] = await self._open(node_id)
                    if last is not None:
                        self._close_later(last)
        except (OSError, TimeoutError, KafkaError) as error:
            _CLIENT_LOG.error("Unable connect to node with id %s: %s", node_id, error)
            self.force_metadata_update()
            if last is not None:  # its session has not ended yet
                last.try_again_later()
            return last
        opened: AIOKafkaConnection = self._conns[key]
        if self._is_closed:
            await opened.close()
            return None
        return opened

    async def send(self, node_id: int, request: Any, *, group: int = ConnectionGroup.DEFAULT) -> Any:
        """Return the response of a broker. After the time limit, close the connection that the request has used.

        aiokafka 0.14 closes the newest connection to the broker, which may have replaced that one.
        """
        used = await self._get_conn(node_id, group=group)
        if used is None:
            raise NodeNotReadyError(f"no connection to the broker with the id {node_id}")
        try:
            return await used.send(request)
        except TimeoutError as error:
            used.close(reason=CloseReason.CONNECTION_TIMEOUT)
            raise RequestTimedOutError from error

    async def _open(self, node_id: int) -> BrokerConnection:
        broker = self.cluster.broker_metadata(node_id)
        if broker is None:
            raise StaleMetadata(f"Broker id {node_id} not in current metadata")
        opened = BrokerConnection(
            broker.host,
            broker.port,
            client_id=self._client_id,
            request_timeout_ms=self._request_timeout_ms,
            on_close=self._on_connection_closed,
            max_idle_ms=self._connections_max_idle_ms,
            **self._security,
        )
        await opened.connect()
        return opened

    def _close_later(self, connection: BrokerConnection) -> None:
        """Close a connection that another one has replaced, when all responses are there."""
        closing = asyncio.create_task(connection.close_when_idle(), name="close a connection")
        self._closing[closing] = connection
        closing.add_done_callback(lambda task: self._closing.pop(task, None))


def connection(settings: Settings) -> dict[str, Any]:
    """Return the arguments that every aiokafka client needs to reach and trust the brokers."""
    record_batches.install()
    servers = settings.kafka_bootstrap_servers or f"127.0.0.1:{settings.kafka_port}"
    return {"bootstrap_servers": servers, **security(settings)}


REPORT_EVERY_S: Final = 10.0
"""How often `ask_admin` logs that it waits for Kafka."""


async def ask_admin(settings: Settings, ask: Callable[[Admin], Awaitable[_T]], *, patience_s: float = 60.0) -> _T:
    """Return the result of `ask` with an admin client. Wait until Kafka is up, and retry if it goes away meanwhile.

    Raises KafkaAwayError after `patience_s`, or at once if a server refuses the connection or the request.
    """
    arguments = connection(settings)
    servers = arguments["bootstrap_servers"]
    if not (settings.kafka_bootstrap_servers or settings.kafka):
        servers += " (KAFKA_BOOTSTRAP_SERVERS is not set)"
    give_up_at = time.monotonic() + patience_s
    reported_at = -REPORT_EVERY_S
    while True:
        admin = Admin(**arguments, request_timeout_ms=10_000)
        try:
            await admin.start()
            return await ask(admin)
        except (KafkaError, TimeoutError) as error:
            if isinstance(error.__cause__, KafkaAwayError):
                raise KafkaAwayError(str(error.__cause__)) from error
            if isinstance(error, KafkaError) and not error.retriable:
                raise KafkaAwayError(f"Kafka at {servers} refuses the request: {error!r}") from error
            if time.monotonic() > give_up_at:
                within = f" within {patience_s:.0f} s" if patience_s else ""
                why = "" if isinstance(error, KafkaConnectionError) else f": {error!r}"  # its text has addresses only
                raise KafkaAwayError(f"no Kafka answers at {servers}{within}{why}") from error
            if time.monotonic() - reported_at >= REPORT_EVERY_S:
                log.warning("Kafka does not answer yet; trying again.", servers=servers)
                reported_at = time.monotonic()
        finally:
            await admin.close()
        await asyncio.sleep(1.0)


async def partition_counts(client: Consumer | Producer, topics: Iterable[str]) -> dict[str, int]:
    """Return the partition count of each topic. Raises TopicsError if a topic is missing or cannot be used.

    Raises KafkaError if no node answers.
    """
    return {topic["topic"]: len(topic["partitions"]) for topic in await _described(client, topics)}


def knows_leader(consumer: Consumer, topic_partition: TopicPartition) -> bool:
    """Return whether a consumer knows the leader of a partition. Kafka is not asked."""
    return consumer._client.cluster.leader_for_partition(topic_partition) not in {None, NO_LEADER}  # noqa: SLF001


async def leaderless(client: Consumer | Producer, topic_partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
    """Return the partitions that have no leader now. Raises the errors of `partition_counts`."""
    led = {
        TopicPartition(topic["topic"], partition["partition"])
        for topic in await _described(client, {topic_partition.topic for topic_partition in topic_partitions})
        for partition in topic["partitions"]
        if partition["leader"] != NO_LEADER
    }
    return [topic_partition for topic_partition in topic_partitions if topic_partition not in led]


async def _described(client: Consumer | Producer, topics: Iterable[str]) -> list[dict[str, Any]]:
    kafka = client.client if isinstance(client, Producer) else client._client  # noqa: SLF001
    answer = await _answer_of_any_node(kafka, MetadataRequest(list(topics)))
    described: list[dict[str, Any]] = answer.to_object()["topics"]
    for topic in described:
        if code := topic["error_code"]:
            servers = kafka._bootstrap_servers  # noqa: SLF001
            raise TopicsError(f"Kafka at {servers}: {_cure(code)}: {topic['topic']}")
    return described


async def _answer_of_any_node(kafka: Any, request: Any) -> Any:
    """Return the response of a random node, with retries: one of three may be away. No try starts after 2 s."""
    give_up_at = time.monotonic() + NODES_WITHIN_S
    while True:
        try:
            return await kafka.send(kafka.get_random_node(), request)
        except KafkaError as error:
            if not error.retriable or time.monotonic() > give_up_at:
                raise
        await asyncio.sleep(NODE_PAUSE_S)


def raise_for(code: int) -> None:
    """Raise the KafkaError of an error code, which aiokafka's admin client returns as a number."""
    if code:
        raise for_code(code)


def missing_right(error: TopicAuthorizationFailedError) -> str:
    """Return the permission that a consumer lacks. `error` has a topic or one of its partitions."""
    topic = getattr(error.args[0], "topic", error.args[0])
    return f"Kafka does not allow this worker to read the topic {topic}: grant it Read on that topic"


def _cure(code: int) -> str:
    if code == UNKNOWN_TOPIC:
        return "a topic is missing (run `order-service topics create`, or see ORDERS_TOPIC_PREFIX)"
    return f"a topic cannot be used ({for_code(code).__name__})"


def _refused(servers: object, refusal: str) -> KafkaAwayError:
    return KafkaAwayError(f"Kafka at {servers} cannot be used with these ORDERS_KAFKA_… settings: {refusal}")
