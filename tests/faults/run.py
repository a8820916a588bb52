"""One run: a load goes in, faults befall whoever carries it, and when all is healed the checker reads every topic."""

import heapq
import logging
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final, Literal, cast

import msgspec
from confluent_kafka import Message, Producer
from msgspec import Struct

from order_service.users.stub import Mode, Stub
from tests.faults.checker import Findings, Terms, Verdict, check_partition, verdict_of
from tests.faults.cluster import Cluster
from tests.faults.fleet import ENDS, Fleet, Measured
from tests.faults.load import Load, is_never_answered
from tests.faults.plan import Fault, Sizes, plan_faults
from tests.faults.proxy import Api
from tests.faults.reading import read_partition
from tests.service import Service, StubThread, enqueue, until, vars_of

PARTITIONS: Final = 4
SESSION_TIMEOUT_S: Final = 3.0
SLEEP_S: Final = SESSION_TIMEOUT_S + 2.5
"""How long a worker is stopped: the group has given its partitions to others when it wakes."""
USER_DEADLINE_S: Final = 12.0
PAYMENT_DUE_S: Final = 45.0
USERS_AWAY_S: Final = 6.0
USERS_ASKED_WITHIN_S: Final = 150.0
AGAIN_S: Final = 0.5
DELAY_S: Final = 1.5
BROKER_AWAY_S: Final = 1.5
AT_REST_WITHIN_S: Final = 10.0
SETTLED_WITHIN_S: Final = 180.0
PROGRESS_EVERY_S: Final = 5.0
SHOWN: Final = 20
RECORD: Final = "run.json"
LOAD_LOG: Final = "load.log"


class Kept(Struct, frozen=True):
    """What is needed to look at the topics of a run again."""

    sizes: Sizes
    topics: dict[str, str]
    user_deadline_s: float = USER_DEADLINE_S
    payment_due_s: float = PAYMENT_DUE_S
    on_its_way_s: float = 0.0


class Sender(threading.Thread):
    """Produces the load at its rate; what Kafka does not take yet, it sends again, in order.

    What its producer sees and does of brokers is written to a log: it says why when records do not arrive.
    """

    def __init__(self, servers: str, topic: str, sizes: Sizes, log_path: Path) -> None:
        super().__init__(name="load", daemon=True)
        self.sent = 0
        self.is_over = threading.Event()
        self.failed: list[str] = []
        self.slowest_s = 0.0
        self._topic = topic
        self._sizes = sizes
        self._sending = threading.Lock()
        self._log = logging.FileHandler(log_path, "w", delay=True)  # "w": what comes after its end is dropped
        self._log.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger = logging.Logger(self.name)  # noqa: LOG001 - no other log shall have its lines
        logger.addHandler(self._log)
        self._producer = Producer(
            {
                "bootstrap.servers": servers,
                "partitioner": "murmur2_random",
                "enable.idempotence": True,
                "linger.ms": 5,
                "message.timeout.ms": 0,
                "debug": "broker,metadata,eos",
            },
            logger=logger,
        )

    def run(self) -> None:
        """Send all of it."""
        with closing(self._log):
            self._send()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Let nothing be on its way while the block stops the only broker in order.

        A broker that stops gives up its partitions, then tells of no brokers for a moment, then closes. A producer
        whose records it refuses asks it where they belong; librdkafka (2.16, issue 5301) that is told of no brokers
        forgets the last one, and can fail to go back to its bootstrap servers: then it never sends again. A producer
        with nothing to send does not ask, and finds the broker gone, as if it had been killed.
        """
        with self._sending:
            self._producer.flush(AT_REST_WITHIN_S)
            yield

    def _send(self) -> None:
        start = time.monotonic()
        for number, record in enumerate(Load(self._sizes).records()):
            if self.is_over.wait(max(0.0, start + number / self._sizes.rate - time.monotonic())):
                return
            with self._sending:
                enqueue(
                    self._producer,
                    self._topic,
                    record.key,
                    record.value,
                    headers=list(record.headers),
                    on_delivery=self._delivered,
                )
            self.sent += 1
        if left := self._producer.flush(120):
            self.failed.append(f"{left} records did not arrive within two minutes")

    def _delivered(self, error: object, message: Message) -> None:
        if error is not None:
            self.failed.append(str(error))
        else:
            self.slowest_s = max(self.slowest_s, message.latency() or 0.0)


class Run:
    """A cluster, a fleet, a load and a plan. `say` is told each line of progress."""

    def __init__(self, sizes: Sizes, directory: Path, say: Callable[[str], None]) -> None:
        self.sizes = sizes
        self.directory = directory
        self.happened: Counter[str] = Counter()
        self.ends: Counter[int] = Counter()
        self.findings: list[Findings] = []
        self.problems: list[str] = []
        self._say = say
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._told_at = 0.0
        self._plan = plan_faults(sizes)
        self._pause = threading.Event()

    def run(self) -> Verdict:
        """Do it all, and give the verdict of the checker; `problems` says why it proves less than was planned."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with running(self.sizes, self.directory) as (cluster, users, service):
            self._cluster, self._users, self._service = cluster, users, service
            kept = Kept(self.sizes, vars_of(service.names))
            keep(kept, self.directory)
            self._fleet = Fleet(service)
            self._under_fire()
            kept = msgspec.structs.replace(kept, on_its_way_s=self._sender.slowest_s + 0.002)
            keep(kept, self.directory)
            self._heal()
            self._fleet.stop()
            self.ends = self._fleet.ends
            self.findings = check(kept, cluster.bootstrap_servers, self._say)
        verdict = verdict_of(self.findings, faults=self.happened.total(), seed=self.sizes.seed)
        self.problems += self.shortfalls(verdict)
        return verdict

    def shortfalls(self, verdict: Verdict) -> Iterator[str]:
        """Say what was not as planned, though it may be that nothing was lost by it."""
        if verdict.commands != self.sizes.commands:
            yield f"{verdict.commands:,} commands were checked, not {self.sizes.commands:,}"
        for kind in sorted({fault.kind for fault in self._plan} - {kind for kind, n in self.happened.items() if n}):
            yield f"no fault of the kind {kind} has happened"
        for code, times in sorted(self.ends.items()):
            if code not in ENDS or (code and not self._plan):
                yield f"{times} workers ended with {code}, which no fault explains"

    def _under_fire(self) -> None:
        """Send the load, and let each fault happen when its time has come."""
        for _ in range(self.sizes.workers):
            self._fleet.join()
        until(lambda: self._fleet.measure().lanes == PARTITIONS, "all partitions run")
        servers, commands = self._cluster.bootstrap_servers, self._service.names.commands
        sender = Sender(servers, commands, self.sizes, self.directory / LOAD_LOG)
        self._sender = sender
        self._start = time.monotonic()
        for fault in self._plan:
            self._do_later(fault.at_s, partial(self._befall, fault))
        sender.start()
        try:
            while sender.is_alive() or self._later:
                self._tend()
                self._pause.wait(0.1)
        finally:
            sender.is_over.set()
        self.problems += sender.failed[:3]

    def _tend(self) -> None:
        self._look_after()  # before a fault, that it hits a worker that lives
        if self._later and self._later[0][0] <= time.monotonic() - self._start:
            heapq.heappop(self._later)[2]()

    def _look_after(self) -> None:
        """Start workers that have ended again, and tell how it stands."""
        self._fleet.tend()
        if time.monotonic() - self._told_at > PROGRESS_EVERY_S:
            self._tell()

    def _tell(self) -> None:
        self._told_at = time.monotonic()
        measured = self._fleet.measure()
        faults = " ".join(f"{kind}={count}" for kind, count in sorted(self._all_that_happened().items()))
        self._say(
            f"{time.monotonic() - self._start:4.0f} s  sent {self._sender.sent:,}  "
            f"committed {self._fleet.committed:,}  lag {measured.lag:,}  waiting {measured.waiting:,}  "
            f"workers {len(self._fleet.workers)}  {faults}"
        )

    def _do_later(self, at_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (at_s, next(self._numbers), action))

    def _do_in(self, seconds: float, action: Callable[[], None]) -> None:
        self._do_later(time.monotonic() - self._start + seconds, action)

    def _befall(self, fault: Fault) -> None:
        match fault.kind:
            case "kill":
                self._fleet.pick(fault.pick).send(signal.SIGKILL)
            case "term":
                self._fleet.pick(fault.pick).send(signal.SIGTERM)
            case "pause":
                self._put_to_sleep(fault)
            case "join":
                self._fleet.join()
            case "leave":
                if not self._fleet.leave(fault.pick):
                    return
            case "broker":
                self._end_brokers(fault)
            case "users":
                self._let_users_fail(Mode(fault.detail))
                return
            case "network":
                self._disturb(fault.detail)
                return  # the proxies count what has really happened
        self.happened[fault.kind] += 1

    def _put_to_sleep(self, fault: Fault) -> None:
        worker = self._fleet.pick(fault.pick)
        worker.send(signal.SIGSTOP)
        self._do_in(SLEEP_S, lambda: worker.send(signal.SIGCONT))

    def _let_users_fail(self, mode: Mode) -> None:
        """Let one mode come after the other, each until somebody has asked: nobody does while Kafka is away."""
        stub = self._users.stub
        if stub.mode is not Mode.OK:
            self._do_in(AGAIN_S, partial(self._let_users_fail, mode))
            return
        asked_before = asked(stub)
        patience_ends = time.monotonic() + USERS_AWAY_S + USERS_ASKED_WITHIN_S

        def heal() -> None:
            was_asked = asked(stub) != asked_before
            if not was_asked and time.monotonic() < patience_ends:
                self._do_in(AGAIN_S, heal)
                return
            stub.mode = Mode.OK
            self.happened["users"] += was_asked

        stub.mode = mode
        self._do_in(USERS_AWAY_S, heal)

    def _disturb(self, detail: str) -> None:
        name, _, api = detail.partition(" ")
        for proxy in self._cluster.proxies.values():
            match name:
                case "cut_all":
                    proxy.cut_all()
                case "freeze":
                    proxy.freeze(DELAY_S)
                case "delay_request":
                    proxy.delay_request(Api[api], DELAY_S)
                case "delay_answer":
                    proxy.delay_answer(Api[api], DELAY_S)
                case "lose_request":
                    proxy.lose_request(Api[api])
                case "lose_answer":
                    proxy.lose_answer(Api[api])

    def _end_brokers(self, fault: Fault) -> None:
        cluster = self._cluster
        nodes = list(cluster.nodes)
        match fault.detail:
            case "kill" | "kill any":
                node = nodes[int(fault.pick * len(nodes))]
            case "stop":
                with self._sender.at_rest():
                    cluster.stop(nodes[0])
                self._do_in(BROKER_AWAY_S, lambda: self._meanwhile(partial(cluster.start, nodes[0])))
                return
            case "kill group coordinator":
                node = cluster.coordinator_of_group(self._service.app_id)
            case "kill transaction coordinator":
                node = cluster.coordinator_of_transaction(self._fleet.transactional_id(fault.pick))
            case "rolling restart":
                for node in nodes:
                    self._meanwhile(partial(cluster.stop, node))
                    self._meanwhile(partial(cluster.start, node))
                    self._meanwhile(cluster.wait_all_in_sync)
                self.happened["broker"] += len(nodes) - 1
                return
        cluster.kill(node)
        if self.sizes.brokers == 1:
            self._do_in(BROKER_AWAY_S, lambda: self._meanwhile(partial(cluster.start, node)))
            return
        self._meanwhile(partial(self._pause.wait, BROKER_AWAY_S))
        self._meanwhile(partial(cluster.start, node))
        self._meanwhile(cluster.wait_all_in_sync)  # the next fault must not find two of three away

    def _meanwhile(self, work: Callable[[], object]) -> None:
        """Wait for what takes long, and look after the workers meanwhile."""
        with ThreadPoolExecutor(1) as pool:
            doing = pool.submit(work)
            while not doing.done():
                self._look_after()
                self._pause.wait(0.1)
        doing.result()

    def _heal(self) -> None:
        """Let all go on, and wait until everything is decided."""
        self._users.stub.mode = Mode.OK
        for worker in self._fleet.workers:
            worker.send(signal.SIGCONT)
        deadline = time.monotonic() + SETTLED_WITHIN_S
        settled = 0
        while settled < 3:
            settled = settled + 1 if self._is_settled() else 0
            self._tend()
            if time.monotonic() > deadline:
                self.problems.append(f"not all was decided within {SETTLED_WITHIN_S:.0f} s")
                break
            self._pause.wait(0.5)
        for proxy in self._cluster.proxies.values():
            proxy.disarm()  # only now: the last fault may have come while the broker was away
        self.happened = self._all_that_happened()
        self._tell()

    def _is_settled(self) -> bool:
        return self._fleet.measure() == Measured(lag=0, waiting=0, lanes=PARTITIONS)

    def _all_that_happened(self) -> Counter[str]:
        network = sum(proxy.happened.total() for proxy in self._cluster.proxies.values())
        return Counter({**self.happened, "network": network}) if network else Counter(self.happened)


@contextmanager
def running(sizes: Sizes, directory: Path, **settings: str) -> Iterator[tuple[Cluster, StubThread, Service]]:
    """Give a cluster behind proxies, a User Service stub, and a service without orders; its topics are kept."""
    with (
        Cluster(directory / "kafka", cast("Literal[1, 3]", sizes.brokers)) as cluster,
        StubThread() as users,
        Service(
            cluster.bootstrap_servers,
            directory,
            users,
            keep_topics=True,
            **{
                "KAFKA_BOOTSTRAP_SERVERS": cluster.proxied_servers,
                "ORDERS_PARTITIONS": str(PARTITIONS),
                "ORDERS_SESSION_TIMEOUT_S": str(SESSION_TIMEOUT_S),
                "ORDERS_USER_DEADLINE_S": str(USER_DEADLINE_S),
                "ORDERS_PAYMENT_DUE_S": str(PAYMENT_DUE_S),
                **settings,
            },
        ) as service,
    ):
        yield cluster, users, service


def keep(kept: Kept, directory: Path) -> None:
    """Write down what is needed to look at a run again."""
    (directory / RECORD).write_bytes(msgspec.json.encode(kept))


def check(kept: Kept, servers: str, say: Callable[[str], None]) -> list[Findings]:
    """Check one partition after the other, and show the first findings."""
    terms = Terms(
        PARTITIONS,
        kept.topics["commands"],
        user_of,
        user_deadline_s=kept.user_deadline_s,
        payment_due_s=kept.payment_due_s,
        may_time_out=lambda user_id: kept.sizes.faults > 0 or is_never_answered(user_id),
        on_its_way_s=kept.on_its_way_s,
    )
    findings = []
    for partition in range(PARTITIONS):
        found = check_partition(read_partition(servers, kept.topics, partition), terms)
        findings.append(found)
        say(f"partition {partition}: {found.commands:,} commands checked, {len(found.found)} findings")
        for finding in found.found[:SHOWN]:
            say(f"  {finding}")
    return findings


def user_of(user_id: str) -> str:
    """Say what the stub says of a user."""
    return next((kind for kind in ("unknown", "inactive") if user_id.startswith(kind)), "active")


def asked(stub: Stub) -> int:
    """Count what the User Service was asked; it forgets the oldest users at last."""
    return sum(stub.requests.values())


def forget(directory: Path) -> None:
    """Remove what a run has left."""
    shutil.rmtree(directory)
