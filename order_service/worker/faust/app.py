"""The Faust app and its process: the agent that receives, the signals of the group, the start and the end."""

import asyncio
import faulthandler
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import faust
import mode
import structlog
from aiokafka.structs import TopicPartition
from faust.types import TP

from order_service.errors import OrderServiceError
from order_service.kafka.admin_requests import topic_identity
from order_service.kafka.connection import Admin, Consumer, ask_admin, connection
from order_service.kafka.registry_client import Ids, adopt_when_available, registry_of
from order_service.kafka.topics import check_topics, create_topics, topic_names
from order_service.runtime.admin import AdminServer
from order_service.runtime.build_info import report_build
from order_service.runtime.garbage_collector import collect_less_often
from order_service.runtime.readiness import NotReady
from order_service.runtime.signals import run_until_signal
from order_service.runtime.tasks import failure_of
from order_service.runtime.tracing import recording
from order_service.runtime.watchdog import Watchdog, end_after, silence_limit_s
from order_service.settings import Settings
from order_service.users.client import CallPolicy, UserClient
from order_service.worker.assignment import Context
from order_service.worker.clock import Clock, wait_until_near
from order_service.worker.faust.consumer import NoTables, RawSchema, RunApp, RunConsumer
from order_service.worker.membership import LaneAssignor, Member, Membership
from order_service.worker.monitoring.end_offsets import End, LogEnds
from order_service.worker.monitoring.group_watch import GroupWatch
from order_service.worker.store import MEGABYTE, Stores
from order_service.worker.worker import Worker

if TYPE_CHECKING:
    from order_service.runtime.spans import Spans
    from order_service.worker.command_spans import CommandSpans

log = structlog.get_logger()

REBALANCE_TIMEOUT_S: Final = 30.0
HEARTBEAT_S: Final = 0.5
"""Members learn of a rebalance from the response to a heartbeat. The first ones wait for the last one.

So a takeover takes the session timeout, this, and the time of a claim.
"""


class FaustFetching:
    """`assignment.Fetching` on the consumer of a Faust app."""

    def __init__(self, app: RunApp, topic: str) -> None:
        self._app = app
        self._topic = topic
        self._offsets: Consumer | None = None
        self._starting = asyncio.Lock()
        self.ends = LogEnds(topic, self._read_ends)

    @property
    def _consumer(self) -> RunConsumer:
        consumer = self._app.consumer
        if not isinstance(consumer, RunConsumer):
            raise TypeError(f"Faust created a {type(consumer).__name__}, expected a RunConsumer")
        return consumer

    def _topic_partition(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)

    async def open(self, partition: int, offset: int, seek: int) -> None:
        """Fetch a partition from an offset on; its runs carry the number of this seek."""
        await self._app.delivers.wait()
        await self._app.flow_control.acquire()  # a late end of the rebalance before may have set the event
        consumer = self._consumer
        await consumer.run_in_fetch_thread(consumer.thread.open(self._topic_partition(partition), offset, seek))

    def fetch_before(self, at: float) -> None:
        """Fetch shortly before this time of the monotonic clock, when the next turn begins."""
        self._consumer.thread.fetch_before(at)

    def pause(self, partition: int) -> None:
        """Pause the fetching of a partition."""
        self._consumer.call_soon_in_fetch_thread(self._consumer.thread.pause, self._topic_partition(partition))

    def resume(self, partition: int) -> None:
        """Resume the fetching of a partition."""
        self._consumer.call_soon_in_fetch_thread(self._consumer.thread.resume, self._topic_partition(partition))

    async def reached(self, partition: int) -> tuple[int, int | None, int]:
        """Return the next offset to fetch, the seek, and the number of runs delivered since."""
        consumer = self._consumer
        return await consumer.run_in_fetch_thread(consumer.thread.reached(self._topic_partition(partition)))

    async def end(self, partition: int) -> int:
        """Return the end of a partition as the broker reports it now, uncommitted records included."""
        topic_partition = self._topic_partition(partition)
        return (await self._end_offsets([topic_partition]))[topic_partition]

    async def _end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        async with self._starting:  # several lanes may call this at once
            if self._offsets is None:
                offsets = Consumer(**self._app.connection, enable_auto_commit=False)
                try:
                    await offsets.start()
                except BaseException:
                    await offsets.stop()
                    raise
                self._offsets = offsets
        return dict(await self._offsets.end_offsets(partitions))

    async def _read_ends(self) -> dict[int, End | None]:
        stable = await self._consumer.stable_ends()
        led = [topic_partition for topic_partition, offset in stable.items() if offset is not None]
        ends = await self._end_offsets(led) if led else {}
        return {
            topic_partition.partition: End(ends[topic_partition], offset) if offset is not None else None
            for topic_partition, offset in stable.items()
        }

    def end_of(self, partition: int) -> int:
        """Return the end as the broker last reported it, or as of the last fetch if that is newer."""
        return max(self.ends.end_of(partition), self._consumer.end_of(self._topic_partition(partition)))

    def stable_end_of(self, partition: int) -> int:
        """Return the last stable offset as the broker last reported it."""
        return self.ends.stable_end_of(partition)

    async def members(self) -> list[Member]:
        """Return the members of the group, read from the broker."""
        return await self._consumer.members()

    def partition_count(self) -> int | None:
        """Return the current number of partitions, or None if it is not known."""
        return self._consumer.partition_count(self._topic)

    def announce(self, owner: str) -> None:
        """Send this owner id to the other members of the group, with the next rebalance."""
        LaneAssignor.owner = owner

    def releasing_owners(self) -> frozenset[str]:
        """Return the owner ids of the other members of the group, as of the last rebalance."""
        return LaneAssignor.releasing_owners

    def standbys(self) -> frozenset[int]:
        """Return the partitions for which this worker stands by, as of the last rebalance."""
        return LaneAssignor.standbys if LaneAssignor.stands_by else frozenset()

    async def close(self) -> None:
        """Close the consumer that reads end offsets, if it was opened."""
        if self._offsets is not None:
            await self._offsets.stop()


def build(
    settings: Settings,
    serving: AdminServer,
    clock: Clock,
    in_sync: dict[str, int],
    *,
    process: int = 0,
    failpoint: Callable[[str], None] = lambda _step: None,
    stores: Stores | None = None,
    spans: "Spans | None" = None,
) -> RunApp:
    """Return the app of a worker. `in_sync` is the `min.insync.replicas` of each topic.

    `spans` is None if tracing is off. `process` is the number of this process, 0 if the worker has one only.
    `failpoint` is called after each step of a claim and of a turn: tests stop the process there.
    """
    names = topic_names(settings.topic_prefix)
    app = RunApp(
        settings.group_id,
        broker=[f"kafka://{server}" for server in connection(settings)["bootstrap_servers"].split(",")],
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=min(settings.session_timeout_s / 5, HEARTBEAT_S),
        broker_request_timeout=max(30.0, settings.session_timeout_s + 5),
        broker_rebalance_timeout=REBALANCE_TIMEOUT_S,
        broker_commit_interval=1.0,
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
    app.delivers = asyncio.Event()
    app.membership = Membership.from_settings(settings, process=process)
    app.end = lambda error: end_process(error, leave_group=app.leave_group)
    LaneAssignor.stands_by = settings.standbys > 0
    fetching = FaustFetching(app, names.commands)
    users = UserClient(CallPolicy.from_settings(settings))
    ids = Ids(registry_of(settings))
    of_commands = None if spans is None else _of_commands(spans, settings)
    worker = Worker(
        Context(
            settings,
            names,
            in_sync,
            app.connection,
            fetching,
            users,
            ids,
            app.end,
            clock,
            failpoint,
            stores,
            of_commands,
        )
    )
    _wire(app, worker, names.commands)
    _serve(app, settings, worker, users, fetching, ids, serving)
    return app


def _of_commands(spans: "Spans", settings: Settings) -> "CommandSpans":
    from order_service.worker.command_spans import CommandSpans  # noqa: PLC0415 - it loads OpenTelemetry

    commands = topic_names(settings.topic_prefix).commands
    return CommandSpans(spans, commands, settings.group_id, settings.user_service_path)


def _wire(app: RunApp, worker: Worker, topic: str) -> None:
    """Connect the app's signals and its agent with the worker."""
    commands = app.topic(topic, schema=RawSchema(), acks=False)

    @app.agent(commands, name="receive")
    async def receive(runs: Any) -> None:
        """Pass each run of commands to the worker; the next turn decides them."""
        async for event in runs.noack().events():
            for partition, run in event.value.items():
                worker.receive(partition, run)

    @app.on_partitions_assigned.connect  # type: ignore[arg-type]
    async def assigned(_app: Any, assigned: Any = (), *_: Any, **__: Any) -> None:
        await worker.assigned({tp.partition for tp in assigned if tp.topic == topic})

    @app.on_partitions_revoked.connect  # type: ignore[arg-type]
    async def revoked(_app: Any, *_: Any, **__: Any) -> None:
        await worker.revoked()

    app.positions = lambda: {TP(topic, partition): offset for partition, offset in worker.positions().items()}
    app.on_unreadable = worker.unreadable
    app.on_damaged = worker.damaged
    app.before_leaving = worker.stop


def _serve(
    app: RunApp,
    settings: Settings,
    worker: Worker,
    users: UserClient,
    fetching: FaustFetching,
    ids: Ids,
    serving: AdminServer,
) -> None:
    """Start the worker, the watchdog, the clients and the monitors with the app; stop them after the stream."""
    watchdog = Watchdog(silence_limit_s(settings.session_timeout_s), app.leave_group)
    group = GroupWatch(app.membership.group_id, fetching.members)
    tasks: list[asyncio.Task[Any]] = []
    stopping = False

    def ended(task: "asyncio.Task[Any]") -> None:
        error = failure_of(task, is_stopping=stopping)
        if error is not None or not stopping:
            app.end(error or RuntimeError(f"the task {task.get_name()} has ended"))

    async def on_start() -> None:
        watchdog.start()
        await users.__aenter__()
        await ids.__aenter__()
        worker.start()
        tasks.append(asyncio.create_task(fetching.ends.run(), name="ends"))
        tasks.append(asyncio.create_task(group.run(), name="group"))
        for task in tasks:
            task.add_done_callback(ended)
        serving.is_starting = worker.is_starting
        serving.lanes = worker.lanes
        serving.faults = lambda: worker.faults() + fetching.ends.faults() + group.faults

    async def on_shutdown(_app: Any, *_: Any, **__: Any) -> None:
        nonlocal stopping
        stopping = True
        for task in tasks:
            task.cancel()
        await users.close()
        await ids.__aexit__()
        await fetching.close()

    app.before_start = on_start
    app.on_before_shutdown.connect(on_shutdown, weak=False)  # type: ignore[arg-type]


def end_process(
    error: BaseException, leave_group: Callable[[], None] = lambda: None, end: Callable[[int], object] = os._exit
) -> None:
    """End the process at once; the next claim finds the outcome. A dynamic member leaves its group first."""
    code = getattr(error, "exit_code", 1)
    end_after((lambda: _log_reason(error, code), leave_group, logging.shutdown, sys.stdout.flush), code, end)


def _log_reason(error: BaseException, code: int) -> None:
    if isinstance(error, OrderServiceError):
        log.error("This worker ends.", exit_code=code, reason=str(error))
    else:  # a bug: log its traceback
        log.error("This worker ends.", exit_code=code, reason=repr(error), exc_info=error)


class QuietWorker(faust.Worker):
    """Faust's worker, whose stacks on SIGUSR1 omit local variables, since these hold records."""

    def _on_sigusr1(self) -> None:
        faulthandler.dump_traceback(all_threads=True)


def run(
    settings: Settings,
    *,
    make_topics: bool = False,
    process: int = 0,
    admin_socket: Path | None = None,
    clock: Clock | None = None,
    failpoint: Callable[[str], None] = lambda _step: None,
) -> NoReturn:
    """Run a worker until SIGTERM or SIGINT. Raises SetupError, TopicsError or KafkaAwayError if it cannot start.

    With several processes, `process` is the number of this one, and its admin server listens on `admin_socket`.
    """
    report_build("worker")
    CallPolicy.from_settings(settings)  # raises for settings that do not fit together, before Kafka is asked
    waiting = NotReady.WAITS_FOR_KAFKA.fault(servers=connection(settings)["bootstrap_servers"])
    address, port = settings.admin_address, settings.admin_port
    with (
        AdminServer(address, port, lambda: [waiting], socket_path=admin_socket) as serving,
        recording(settings, "worker") as spans,
    ):
        preparing = ask_admin(settings, lambda admin: _prepare_topics(admin, settings, make_topics=make_topics))
        in_sync = run_until_signal(preparing)
        if settings.schema_registry_url:
            run_until_signal(_adopt_ids(settings, serving))
        clock = clock or Clock(settings.clock_skew_max_s)
        run_until_signal(_wait_for_clock(settings, clock, serving))
        collect_less_often()
        stores = _stores(settings, process, failpoint)
        app = build(settings, serving, clock, in_sync, process=process, failpoint=failpoint, stores=stores, spans=spans)
        worker = QuietWorker(app, quiet=True, override_logging=False, redirect_stdouts=False)
        worker.spinner = None
        worker.execute_from_commandline()
    raise SystemExit(0)


def _stores(settings: Settings, process: int, failpoint: Callable[[str], None]) -> Stores | None:
    """Open the directory in which this process has its tables. Return None if tables are in memory."""
    if settings.table == "memory":
        return None
    table = topic_names(settings.topic_prefix).table
    identity = run_until_signal(ask_admin(settings, lambda admin: topic_identity(admin, table)))
    return Stores(settings.table_dir / str(process), settings.table_cache_mb * MEGABYTE, identity, failpoint)


async def _prepare_topics(admin: Admin, settings: Settings, *, make_topics: bool) -> dict[str, int]:
    if make_topics:
        await create_topics(admin, settings)
    return await check_topics(admin, settings)


async def _wait_for_clock(settings: Settings, clock: Clock, serving: AdminServer) -> None:
    """Wait until the clock is near Kafka's. The worker is not ready meanwhile."""
    serving.faults = lambda: [NotReady.CLOCK_COMPARED.fault()]

    def report(why: str) -> None:
        log.error("This worker does not join its group: its clock is wrong.", why=why)
        serving.faults = lambda: [NotReady.CLOCK_WRONG.fault(why=why)]

    await wait_until_near(clock, settings, topic_names(settings.topic_prefix).table, report)


async def _adopt_ids(settings: Settings, serving: AdminServer) -> None:
    """Wait for the ids that the schema registry gives our schemas. The worker is not ready meanwhile."""
    serving.faults = lambda: [NotReady.SCHEMA_IDS_READ.fault()]

    def report(why: str) -> None:
        log.error("Waiting for the schema registry.", why=why)
        serving.faults = lambda: [NotReady.REGISTRY_AWAY.fault(why=why)]

    await adopt_when_available(settings, topic_names(settings.topic_prefix).of, report)
