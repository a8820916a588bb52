"""The service as tests on a real broker see it: topics of its own, workers as processes, foreign clients around it.

Commands come from librdkafka (confluent-kafka), their outcomes are read by a committed consumer of the same; only
the changelogs and events are decoded by our own code, and folded again to be compared.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from aiokafka.admin.config_resource import ConfigResourceType
from aiokafka.protocol.admin import DescribeConfigsRequest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, IsolationLevel, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    OffsetSpec,
    ResourceType,
)

from order_service.domain.entry import Entry, after_event, after_rejection
from order_service.domain.messages import Command, Event, Rejection
from order_service.kafka.connection import Admin, ask_admin
from order_service.kafka.topics import COMMAND_RECORD_BYTES, create_topics, topic_names
from order_service.local.broker import free_port
from order_service.settings import Settings
from order_service.users.stub import Stub, running
from order_service.wire import avro, changelog
from order_service.wire.commands import encode_json_command, partition_of
from tests.support import forking, samples
from tests.support.samples import but

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
LONGEST_PAUSE_S = 0.15
"""Between two looks at a condition. Each look is a request to a worker that has something else to do, too."""
GRACE_S = 30.0
"""Within which a process that is told to end must have ended: docker-compose.yml kills a worker then."""


def until(condition: Callable[[], Any], what: str, *, within_s: float = PATIENCE_S) -> Any:
    """Wait for a condition and give what it gave; fails naming it when the deadline has passed."""
    deadline = time.monotonic() + within_s
    pause_s = 0.02
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:.0f} s: {what}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
    return found


class WorkerProcess:
    """A worker, or another of our processes, that runs by itself; its log is a file, its end is awaited."""

    def __init__(
        self,
        name: str,
        environment: dict[str, str],
        directory: Path,
        failpoint: tuple[str, int, str] | None,
        module: Sequence[str] = ("tests.support.worker",),
        root: Path | str = ROOT,
        admin_port: int | None = None,
    ) -> None:
        self.name = name
        self.admin_port = free_port() if admin_port is None else admin_port
        self.log_path = directory / f"{name}.log"
        environment = environment | {"ORDERS_ADMIN_PORT": str(self.admin_port)}
        arguments = [] if failpoint is None else [str(part) for part in failpoint]
        with self.log_path.open("ab") as output:
            self.process: subprocess.Popen[bytes] | forking.Forked
            if forking.template is not None and root == ROOT:
                self.process = forking.template.start([*module, *arguments], environment, output)
            else:
                command = [sys.executable, "-m", *module, *arguments]
                self.process = subprocess.Popen(command, cwd=root, env=environment, stdout=output, stderr=output)

    def is_ready(self) -> bool:
        """Return whether all partitions of this worker run."""
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended with {self.process.returncode}: {self.log()[-2000:]}")
        return self.admin("/health/ready")[0] == 200

    def admin(self, path: str, *, within_s: float = 5.0) -> tuple[int, str]:
        """Ask the admin port; status 0 if it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=within_s) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metrics(self, accept: str) -> str:
        """Return its metrics in the format that this `Accept` header asks for."""
        url = f"http://127.0.0.1:{self.admin_port}/metrics"
        request = urllib.request.Request(url, headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=5) as response:
            return str(response.read().decode())

    def wait_ready(self) -> Self:
        """Wait until all of its partitions run."""
        until(self.is_ready, f"{self.name} is ready")
        return self

    def lanes(self, state: str = "running") -> int:
        """Return how many partitions it holds in this state; 0 if it does not answer."""
        measured = re.search(rf'^orders_lanes{{state="{state}"}} (\d+)', self.admin("/metrics")[1], re.MULTILINE)
        return int(measured[1]) if measured else 0

    def wait_lanes(self, count: int, *, within_s: float = PATIENCE_S) -> Self:
        """Wait until it is ready with so many partitions."""
        is_so = lambda: self.is_ready() and self.lanes() == count  # noqa: E731
        until(is_so, f"{self.name} is ready with {count} partitions", within_s=within_s)
        return self

    def faults(self) -> str:
        """Return what readiness says while it is not ready, else nothing."""
        status, body = self.admin("/health/ready")
        return body if status == 503 else ""

    def lines(self, sentence: str) -> list[dict[str, Any]]:
        """Return the lines of its log with this sentence. The last one may be under way."""
        whole = self.log().rpartition("\n")[0]
        found = [json.loads(line) for line in whole.splitlines() if sentence in line]
        return [line for line in found if line["event"] == sentence]

    def send(self, signal_number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(signal_number)

    def wait_ended(self, *, within_s: float = PATIENCE_S) -> int:
        """Wait until it has ended, and give its exit code; minus the signal that killed it."""
        until(lambda: self.process.poll() is not None, f"{self.name} ends", within_s=within_s)
        assert self.process.returncode is not None
        return self.process.returncode

    def is_stopped(self) -> bool:
        """Return whether the kernel has stopped it (SIGSTOP)."""
        try:
            return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        except FileNotFoundError:  # it has ended
            return False

    def wait_stopped(self) -> None:
        """Wait until the kernel has stopped it (SIGSTOP)."""
        until(self.is_stopped, f"{self.name} is stopped")

    def resident_bytes(self) -> int:
        """Return what it holds in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))

    def log(self) -> str:
        """Return all that it has logged."""
        return self.log_path.read_text(errors="replace")

    def end(self) -> None:
        """Kill it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def without_kafka(directory: Path, **settings: str) -> dict[str, str]:
    """Return the environment of a process whose Kafka is away."""
    return os.environ | {
        "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}",
        "ORDERS_KAFKA": "",
        "ORDERS_HTTP_PORT": str(free_port()),
        "ORDERS_DATA_DIR": str(directory),
        "ORDERS_LOG": "json",
        **settings,
    }


class StubThread:
    """The User Service stub in a thread of its own, so that tests can be plain functions."""

    def __init__(self) -> None:
        self.stub = Stub()
        self.url = ""
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10), "the stub starts"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self) -> None:
        async with running(self.stub) as url:
            self.url = url
            self._started.set()
            await self._stop.wait()


class Service:
    """Topics, workers and clients of one test."""

    def __init__(
        self,
        bootstrap_servers: str,
        directory: Path,
        users: StubThread,
        *,
        keep_topics: bool = False,
        app_id: str = "",
        **settings: str,
    ) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.directory = directory
        self.users = users
        self._keep_topics = keep_topics
        name = f"t{uuid4().hex[:10]}"
        self.app_id = app_id or name
        self.group_id = f"{name}.{self.app_id}"
        self.environment = os.environ | {
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
            "ORDERS_KAFKA": "",  # it would go first
            "USER_SERVICE_URL": users.url,
            "ORDERS_TOPIC_PREFIX": f"{name}.",
            "ORDERS_APP_ID": self.app_id,
            "ORDERS_PARTITIONS": "4",
            "ORDERS_SESSION_TIMEOUT_S": "2",
            **settings,
        }
        self.names = topic_names(f"{name}.")
        self.partitions = int(self.environment["ORDERS_PARTITIONS"])
        self.workers: list[WorkerProcess] = []
        quiet: dict[str, Any] = {"bootstrap.servers": bootstrap_servers, "log_level": 0}
        self.kafka = AdminClient(quiet)
        self.producer = Producer(
            {**quiet, "partitioner": "murmur2_random", "linger.ms": 5, "message.max.bytes": COMMAND_RECORD_BYTES}
        )

    def __enter__(self) -> Self:
        asyncio.run(self._create_topics())
        until(self._is_led, "the new partitions have leaders that answer")
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.end()
        if self._keep_topics:
            return
        for future in self.kafka.delete_topics(list(vars_of(self.names).values())).values():
            future.exception(30)

    def settings(self) -> Settings:
        """Return the settings that its workers have."""
        return Settings(
            kafka_bootstrap_servers=self.bootstrap_servers,
            topic_prefix=self.environment["ORDERS_TOPIC_PREFIX"],
            partitions=self.partitions,
            app_id=self.app_id,
        )

    def start_worker(
        self,
        failpoint: tuple[str, int, str] | None = None,
        *,
        module: Sequence[str] = ("tests.support.worker",),
        root: Path | str = ROOT,
        **settings: str,
    ) -> WorkerProcess:
        """Start a worker; with a failpoint (step, count, signal) it gets a signal there. `root` has its code.

        Host name and admin port make it a member of the group: with those of one that ended it is the same member.
        """
        name = f"worker-{len(self.workers) + 1}"
        port = int(settings.get("ORDERS_ADMIN_PORT", free_port()))
        own = {"ORDERS_TABLE_DIR": str(self.directory / f"tables of {name}")}
        worker = WorkerProcess(name, self.environment | own | settings, self.directory, failpoint, module, root, port)
        self.workers.append(worker)
        return worker

    def send(self, commands: Iterable[Command | tuple[str | bytes | None, bytes | None]], **extra: Any) -> int:
        """Produce commands (as JSON), or keys and values as they are; returns how many, when all have arrived."""
        count = 0
        failed: list[object] = []
        for command in commands:
            key, value = command if isinstance(command, tuple) else (command.order_id, encode_json_command(command))
            self.producer.produce(
                self.names.commands,
                key=key,
                value=value,
                on_delivery=lambda error, _: failed.append(error) if error else None,
                **extra,
            )
            count += 1
            self.producer.poll(0)
        assert self.producer.flush(30) == 0, "all commands arrive in Kafka"
        assert not failed, failed
        return count

    @contextmanager
    def sending(self, commands: Sequence[Command], *, per_s: int) -> "Iterator[Sender]":
        """Produce commands in a thread while the block runs; all have arrived when it ends."""
        sender = Sender(self, commands, per_s)
        sender.start()
        try:
            yield sender
        finally:
            sender.join()
        assert sender.sent == len(commands), "all commands were sent"

    def read(self, topic: str, *, committed: bool = True, partitions: Sequence[int] | None = None) -> list[Any]:
        """Read a topic from its start to its end, in the order of each partition."""
        consumer = Consumer(
            {
                "log_level": 0,
                "bootstrap.servers": self.bootstrap_servers,
                "group.id": "none",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,  # what it takes to see that there is no more, half a second by default
                "isolation.level": "read_committed" if committed else "read_uncommitted",
            }
        )
        try:
            places = [TopicPartition(topic, partition, 0) for partition in partitions or range(self.partitions)]
            consumer.assign(places)
            return list(_until_eof(consumer, len(places)))
        finally:
            consumer.close()

    def configure(self, topic: str, **settings: object) -> None:
        """Change settings of a topic, underscores for dots, and wait until all brokers have them."""
        entries = [
            ConfigEntry(name.replace("_", "."), str(value), incremental_operation=AlterConfigOpType.SET)
            for name, value in settings.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        for future in self.kafka.incremental_alter_configs([resource]).values():
            future.result(30)
        wanted = {entry.name: entry.value for entry in entries}
        until(
            lambda: all(wanted.items() <= config.items() for config in self.configs_of(topic)),
            "all brokers have the settings from the controller",
        )

    def config_of(self, topic: str) -> dict[str, ConfigEntry]:
        """Return the settings of a topic, by name."""
        [described] = self.kafka.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
        settings: dict[str, ConfigEntry] = described.result(30)
        return settings

    def configs_of(self, topic: str) -> list[dict[str, str | None]]:
        """Return the settings of a topic as each broker has them: one hears of a change later than another."""
        return asyncio.run(ask_admin(self.settings(), lambda admin: _configs_of(admin, topic)))

    def end_of(self, topic: str, partition: int) -> int:
        """Ask where a partition ends, control records included."""
        consumer = Consumer({"log_level": 0, "bootstrap.servers": self.bootstrap_servers, "group.id": "none"})
        try:
            return consumer.get_watermark_offsets(TopicPartition(topic, partition), 30)[1]
        finally:
            consumer.close()

    def group_positions(self) -> dict[int, int]:
        """Ask what the group has committed."""
        asked = self.kafka.list_consumer_group_offsets([ConsumerGroupTopicPartitions(self.group_id)])
        committed = asked[self.group_id].result(30).topic_partitions or []
        return {place.partition: place.offset for place in committed}

    def partition_of(self, order_id: str) -> int:
        """Return the partition of an order."""
        return partition_of(order_id.encode(), self.partitions)

    def events(self) -> list[Event]:
        """Read all events."""
        return [avro.decode_event(message.value()) for message in self.read(self.names.events)]

    def rejections(self) -> list[Rejection]:
        """Read all rejections."""
        return [avro.decode_rejection(message.value()) for message in self.read(self.names.rejections)]

    def dead_letters(self) -> list[Any]:
        """Read all dead letters."""
        return self.read(self.names.dead_letters)

    def outcome_count(self) -> int:
        """Count events, rejections and dead letters."""
        return sum(
            len(self.read(topic)) for topic in (self.names.events, self.names.rejections, self.names.dead_letters)
        )

    def wait_outcomes(self, count: int, *, within_s: float = PATIENCE_S) -> None:
        """Wait until there are so many outcomes."""
        until(lambda: self.outcome_count() >= count, f"{count} outcomes", within_s=within_s)

    def wait_visible(self) -> None:
        """Wait until no transaction is open: Kafka ends it in one partition after the other."""
        places = [TopicPartition(topic, number) for topic in self.names.written for number in range(self.partitions)]

        def ends(isolation_level: IsolationLevel) -> list[int]:
            answers = self.kafka.list_offsets(
                dict.fromkeys(places, OffsetSpec.latest()), isolation_level=isolation_level
            )
            return [answers[place].result(PATIENCE_S).offset for place in places]

        until(
            lambda: ends(IsolationLevel.READ_COMMITTED) == ends(IsolationLevel.READ_UNCOMMITTED), "all ends are visible"
        )

    def table(self) -> dict[str, Entry]:
        """Read the table's changelog: the newest entry of each order."""
        newest = {message.key(): message.value() for message in self.read(self.names.table)}
        return {
            key.decode(): changelog.decode_entry(value)
            for key, value in newest.items()
            if value is not None and not key.startswith(b"\0")
        }

    def positions(self) -> dict[int, changelog.Position]:
        """Read the newest position of each partition."""
        records = [message for message in self.read(self.names.table) if message.key() == changelog.POSITION_KEY]
        return {message.partition(): changelog.decode_position(message.value()) for message in records}

    def waiting(self) -> dict[bytes, bytes]:
        """Read what waits, according to its changelog."""
        newest = {message.key(): message.value() for message in self.read(self.names.waiting)}
        return {key: value for key, value in newest.items() if value is not None and not key.startswith(b"\0")}

    def check(self, commands: list[Command], *, dead: int = 0) -> None:
        """Check the promise: each command (sent once) has one outcome, versions are 1..n, the table is the fold."""
        events, rejections = self.events(), self.rejections()
        outcomes = Counter(event.command_id for event in events) + Counter(
            rejection.command_id for rejection in rejections
        )
        assert outcomes == Counter(command.command_id for command in commands)
        assert len(self.dead_letters()) == dead
        versions: defaultdict[str, list[int]] = defaultdict(list)
        for event in events:
            versions[event.order_id].append(event.version)
        assert all(found == list(range(1, len(found) + 1)) for found in versions.values())
        assert self.table() == self.fold()
        assert self.waiting() == {}

    def fold(self) -> dict[str, Entry]:
        """Fold all events and rejections again, in the order of the commands that they answer."""
        outcomes = [(message, True) for message in self.read(self.names.events)]
        outcomes += [(message, False) for message in self.read(self.names.rejections)]
        entries: dict[str, Entry] = {}
        for message, is_event in sorted(
            outcomes, key=lambda outcome: (outcome[0].partition(), _command_offset(outcome[0]))
        ):
            if is_event:
                event = avro.decode_event(message.value())
                entries[event.order_id] = after_event(entries.get(event.order_id), event, avro.digest(message.value()))
            else:
                rejection = avro.decode_rejection(message.value())
                remembered = after_rejection(entries.get(rejection.order_id), rejection)
                if remembered is not None:
                    entries[rejection.order_id] = remembered
        return entries

    def _is_led(self) -> bool:
        """Return whether every partition answers: a broker may not know yet that it leads one, though it says so."""
        topics, numbers = vars_of(self.names).values(), range(self.partitions)
        places = [TopicPartition(topic, number) for topic in topics for number in numbers]
        answers = self.kafka.list_offsets(dict.fromkeys(places, OffsetSpec.latest()), request_timeout=PATIENCE_S)
        errors = [error for answer in answers.values() if (error := answer.exception(PATIENCE_S)) is not None]
        for error in errors:
            if error.args[0].code() < 0:  # the client's own, and no answer of a broker
                raise error
        return not errors

    async def _create_topics(self) -> None:
        settings = self.settings()
        await ask_admin(settings, lambda admin: create_topics(admin, settings))


async def _configs_of(admin: Admin, topic: str) -> list[dict[str, str | None]]:
    request = DescribeConfigsRequest([(ConfigResourceType.TOPIC, topic, None)], False)
    nodes = [broker["node_id"] for broker in (await admin.describe_cluster())["brokers"]]
    answers = [await admin._send_request(request, node) for node in nodes]  # `describe_configs` asks any node
    return [{entry[0]: entry[1] for entry in described[4]} for answer in answers for described in answer.resources]


def enqueue(producer: Producer, topic: str, key: str | bytes | None, value: bytes | None, **extra: Any) -> None:
    """Hand a record to a producer, waiting while its queue is full."""
    while True:
        try:
            producer.produce(topic, key=key, value=value, **extra)
        except BufferError:
            producer.poll(0.1)
        else:
            producer.poll(0)
            return


class Sender(threading.Thread):
    """Produces commands at a rate.

    `at_rest` is held while the only broker stops in order: see `chaos.run.Sender.at_rest`.
    """

    def __init__(self, service: Service, commands: Sequence[Command], per_s: int) -> None:
        super().__init__(daemon=True)
        self.sent = 0
        self._service = service
        self._commands = commands
        self._per_s = per_s
        self.at_rest = threading.Lock()

    def run(self) -> None:
        """Send a tenth of a second's commands ten times a second."""
        size = max(1, self._per_s // 10)
        pause = threading.Event()
        for first in range(0, len(self._commands), size):
            with self.at_rest:
                self.sent += self._service.send(self._commands[first : first + size])
            pause.wait(size / self._per_s)


def histories(count: int, *, first: int = 1) -> list[Command]:
    """Make five commands for each of `count` orders, from created to delivered, the orders side by side."""
    order_ids = [f"order-{number}" for number in range(first, first + count)]
    return [
        but(command, order_id=order_id, command_id=f"{command.command_id}-{order_id}", **changes)
        for command, changes in _LIFE
        for order_id in order_ids
    ]


_LIFE: list[tuple[Command, dict[str, Any]]] = [
    (samples.create, {"actor": samples.SHOP}),
    (samples.amend, {"actor": samples.SHOP}),
    (samples.pay, {}),
    (samples.ship, {}),
    (samples.deliver, {}),
]


def vars_of(names: Any) -> dict[str, str]:
    """Return the fields of the topic names."""
    return {field: getattr(names, field) for field in names.__struct_fields__}


def header(message: Any, name: str) -> bytes | None:
    """Return a header of a message."""
    return next((value for key, value in message.headers() or [] if key == name), None)


def _command_offset(message: Any) -> int:
    return int(header(message, "command_offset") or 0)


def _until_eof(consumer: Consumer, partitions: int) -> Iterable[Any]:
    ended: set[int] = set()
    deadline = time.monotonic() + PATIENCE_S
    while len(ended) < partitions:
        assert time.monotonic() < deadline, "a topic can be read to its end"
        message: Any = consumer.poll(0.2)
        if message is None:
            continue
        if message.error() is None:
            yield message
        elif message.error().code() == -191:  # _PARTITION_EOF
            ended.add(message.partition())
        else:
            raise AssertionError(message.error())
