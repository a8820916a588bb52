"""The Faust app and the process around it: the agent that receives, the signals of the group, the start and the end."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, Final, NoReturn

import faust
import mode
import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition
from faust.types import TP

from order_service.admin import AdminServer
from order_service.errors import OrderServiceError, PortTakenError
from order_service.garbage import collect_seldom
from order_service.kafka import ask_admin, connection, tls
from order_service.registry import Ids, adopt_when_it_answers, registry_of
from order_service.settings import Settings
from order_service.stream import lenient
from order_service.stream.consumer import NoTables, RawSchema, RunApp, RunConsumer
from order_service.stream.topics import check_topics, topic_names
from order_service.stream.worker import Context, Worker
from order_service.users.client import Policy, UserClient

log = structlog.get_logger()

REBALANCE_TIMEOUT_S: Final = 30.0


class FaustFetching:
    """`worker.Fetching` on the consumer of a Faust app."""

    def __init__(self, app: RunApp, topic: str) -> None:
        self._app = app
        self._topic = topic
        self._offsets: AIOKafkaConsumer | None = None
        self._starting = asyncio.Lock()

    @property
    def _consumer(self) -> RunConsumer:
        consumer = self._app.consumer
        if not isinstance(consumer, RunConsumer):
            raise TypeError(f"Faust made a {type(consumer).__name__}, not our consumer")
        return consumer

    def _place(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)

    async def open(self, partition: int, offset: int, seek: int) -> None:
        """Fetch a partition from an offset on; its runs carry the number of this seek."""
        consumer = self._consumer
        await consumer.in_fetch_thread(consumer.thread.open(self._place(partition), offset, seek))

    def pause(self, partition: int) -> None:
        """Fetch no more of a partition for now."""
        self._consumer.soon_in_fetch_thread(self._consumer.thread.pause, self._place(partition))

    def resume(self, partition: int) -> None:
        """Fetch a partition again."""
        self._consumer.soon_in_fetch_thread(self._consumer.thread.resume, self._place(partition))

    async def reached(self, partition: int) -> tuple[int, int | None, int]:
        """Tell how far a partition was fetched."""
        consumer = self._consumer
        return await consumer.in_fetch_thread(consumer.thread.reached(self._place(partition)))

    async def end(self, partition: int) -> int:
        """Ask the broker for the end of a partition, uncommitted records included."""
        async with self._starting:  # several lanes may ask at once
            if self._offsets is None:
                offsets = AIOKafkaConsumer(**self._app.connection, enable_auto_commit=False)
                try:
                    await offsets.start()
                except BaseException:
                    await offsets.stop()
                    raise
                self._offsets = offsets
        place = self._place(partition)
        return int((await self._offsets.end_offsets([place]))[place])

    def end_of(self, partition: int) -> int:
        """Tell the end as of the last fetch."""
        return self._consumer.end_of(self._place(partition))

    def partition_count(self) -> int | None:
        """Tell how many partitions there are now, as far as is known."""
        return self._consumer.partition_count(self._topic)

    async def close(self) -> None:
        """Close what `end` has opened."""
        if self._offsets is not None:
            await self._offsets.stop()


def build(settings: Settings, *, step: Callable[[str], None] = lambda _step: None) -> RunApp:
    """Make the app of a worker. `step` is told each step of a claim and a turn: tests stop the process there."""
    names = topic_names(settings.topic_prefix)
    app = RunApp(
        settings.app_id,
        broker=[f"kafka://{server}" for server in connection(settings)["bootstrap_servers"].split(",")],
        broker_credentials=_credentials(settings),
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.session_timeout_s / 5,
        broker_request_timeout=max(30.0, settings.session_timeout_s + 5),
        broker_rebalance_timeout=REBALANCE_TIMEOUT_S,
        broker_commit_interval=1.0,
        consumer_group_instance_id=settings.instance_id or None,
        topic_partitions=settings.partitions,
        topic_allow_declare=False,
        topic_disable_leader=True,
        stream_wait_empty=False,
        agent_supervisor=mode.CrashingSupervisor,
        web_enabled=False,
        TableManager=NoTables,
        loghandlers=[],
    )
    app.connection = connection(settings)
    fetching = FaustFetching(app, names.commands)
    users = UserClient(Policy.from_settings(settings))
    worker = Worker(Context(settings, names, app.connection, fetching, users, end_process, step))
    ids = Ids(registry_of(settings))
    _wire(app, worker, names.commands, ids)
    _serve(app, settings, worker, users, fetching, ids)
    return app


def _wire(app: RunApp, worker: Worker, topic: str, ids: Ids) -> None:
    """Connect the app's signals and its agent with the worker."""
    commands = app.topic(topic, schema=RawSchema(), acks=False)

    @app.agent(commands, name="receive")
    async def receive(runs: Any) -> None:
        """Hand each run of commands on; the next turn decides them."""
        async for event in runs.noack().events():
            await ids.learn_in_a_hurry(record.value for record in event.value.records)
            worker.receive(event.message.partition, event.value)

    @app.on_partitions_assigned.connect  # type: ignore[arg-type]
    async def assigned(_app: Any, assigned: Any = (), *_: Any, **__: Any) -> None:
        await worker.assigned({place.partition for place in assigned if place.topic == topic})

    @app.on_partitions_revoked.connect  # type: ignore[arg-type]
    async def revoked(_app: Any, *_: Any, **__: Any) -> None:
        await worker.revoked()

    app.positions = lambda: {TP(topic, partition): offset for partition, offset in worker.positions().items()}
    app.on_unreadable = worker.unreadable
    app.before_leaving = worker.stop


def _serve(
    app: RunApp, settings: Settings, worker: Worker, users: UserClient, fetching: FaustFetching, ids: Ids
) -> None:
    """Start what lives beside the stream with the app, and end it after the stream."""
    admin = AdminServer(settings.host, settings.admin_port, worker.faults)

    async def on_start() -> None:
        try:
            await admin.start()
        except PortTakenError as error:
            end_process(error)
        await users.__aenter__()
        await ids.__aenter__()
        worker.start()

    async def on_shutdown(_app: Any, *_: Any, **__: Any) -> None:
        await users.close()
        await ids.__aexit__()
        await fetching.close()
        await admin.stop()

    app.before_start = on_start
    app.on_before_shutdown.connect(on_shutdown, weak=False)  # type: ignore[arg-type]


def _credentials(settings: Settings) -> Any:
    context = tls(settings)
    if settings.kafka_security_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=settings.kafka_sasl_username,
            password=settings.kafka_sasl_password.get_secret_value(),
            mechanism=settings.kafka_sasl_mechanism,
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context is not None else None


def end_process(error: BaseException) -> None:
    """End at once, without a word to the group: the next claim finds out what happened."""
    code = getattr(error, "exit_code", 1)
    if isinstance(error, OrderServiceError):
        log.error("This worker ends.", exit_code=code, reason=str(error))
    else:  # a bug: say where
        log.error("This worker ends.", exit_code=code, reason=repr(error), exc_info=error)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def run(settings: Settings, *, step: Callable[[str], None] = lambda _step: None) -> NoReturn:
    """Run a worker until SIGTERM or SIGINT; TopicsError or KafkaAwayError if it cannot begin."""
    asyncio.run(ask_admin(settings, lambda admin: check_topics(admin, settings)))
    if settings.schema_registry_url:
        asyncio.run(_adopt_ids(settings))
    collect_seldom()
    lenient.install()
    app = build(settings, step=step)
    worker = faust.Worker(app, quiet=True, override_logging=False, redirect_stdouts=False)
    worker.spinner = None
    worker.execute_from_commandline()
    raise SystemExit(0)


async def _adopt_ids(settings: Settings) -> None:
    """Wait, not ready, for the ids that the schema registry gives our schemas."""
    faults = ["the ids of the schema registry are being asked for"]

    def tell(why: str) -> None:
        log.error("We wait for the schema registry.", why=why)
        faults[:] = [why]

    admin = AdminServer(settings.host, settings.admin_port, lambda: faults)
    await admin.start()
    try:
        await adopt_when_it_answers(settings, topic_names(settings.topic_prefix).of, tell)
    finally:
        await admin.stop()
