"""One run: a load goes in, faults hit the processes that carry it, and after healing the checker reads every topic."""

import heapq
import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Final, Literal, cast

import msgspec
from aiokafka.errors import KafkaError
from confluent_kafka import KafkaException, Message, Producer

from chaos.callers import Outside
from chaos.cluster import Cluster
from chaos.faults.broker_data import (
    ALL_THREE,
    ALONE,
    SHORT_SEGMENTS,
    Altered,
    compact,
    cut_tail,
    place_on,
    removed_by_compaction,
    wait_leaderless,
)
from chaos.faults.damaged_tables import damage
from chaos.faults.proxy import Api
from chaos.faults.registry import Registry, foreign
from chaos.faults.strangers import FOREIGN, hold_transaction, visit_group
from chaos.fleet import ENDS, ENDS_OF, Fleet, Measured, partitions_of
from chaos.load import Load, old_orders
from chaos.plan import (
    CHANGELOGS,
    SESSION_TIMEOUT_S,
    STANDING,
    STRANGERS,
    Fault,
    Sizes,
    plan_faults,
    planned_again,
)
from chaos.verdict.checker import Findings, Verdict, verdict_of
from chaos.verdict.judging import PARTITIONS, PAYMENT_DUE_S, SHOWN, USER_DEADLINE_S, Kept, check, keep
from chaos.verdict.liveness import Served, Watched
from chaos.verdict.verifying import problems_of_verify
from chaos.verdict.watching import Watch
from chaos.worker import HANG
from order_service.users.stub import Mode, Stub
from order_service.worker.membership import LaneAssignor
from tests.support.service import Service, StubThread, WorkerProcess, enqueue, until, vars_of

SLEEP_S: Final = SESSION_TIMEOUT_S + 2.5
"""How long a worker is stopped: the group has given its partitions to others when it wakes."""
LONG_SLEEP_S: Final = 18.0
"""Longer than the 15 s after which the broker itself aborts a worker's transaction."""
STRANGER_STAYS_S: Final = 5.0
TOPICS_EVERY_S: Final = 2.0
"""So often a worker compares its topics; outside of tests it does it every five minutes."""
CLOCK_WRONG_S: Final = 6.0
COMPACTED_WITHIN_S: Final = 8.0
RETRY_S: Final = 3.0
"""How long after it failed to happen a fault is planned again."""
HUNG_S: Final = 20.0
"""A worker whose event loop hangs must have ended within this time."""
PARKED_WITHIN_S: Final = 120.0
TAIL: Final = 65_536
"""How many bytes a changelog loses with its tail: far more than the claims write that come last."""
STUCK_S: Final = 60.0
"""For how long a lane may neither run nor be parked: longer than a sleeper and a broker that is away together."""
REGISTRY_AWAY_S: Final = 4.0
PARTITION_AWAY_S: Final = 5.0
NOTICED_S: Final = 5.0
"""Within which the other nodes have noticed that one is gone, and lead what it led."""
USERS_AWAY_S: Final = 6.0
USERS_ASKED_WITHIN_S: Final = 150.0
AGAIN_S: Final = 0.5
DELAY_S: Final = 1.5
BROKER_AWAY_S: Final = 1.5
AT_REST_WITHIN_S: Final = 10.0
SETTLED_WITHIN_S: Final = 180.0
PROGRESS_EVERY_S: Final = 5.0
KEPT: Final = 0.05
"""The part of the load that is sent slowly while faults are still to come: many happen only while commands come."""
SLOWER: Final = 10
"""How many times slower."""
LOAD_LOG: Final = "load.log"
THROWN_AWAY: Final = "Table store thrown away; the table is restored from its changelog."


class Sender(threading.Thread):
    """Produces the load at its rate; what Kafka does not take yet, it sends again, in order.

    The end of the load is sent slowly as long as `is_needed` says so. What its producer sees and does of brokers is
    written to a log: it says why when records do not arrive.
    """

    def __init__(
        self, servers: str, topic: str, sizes: Sizes, log_path: Path, *, is_needed: Callable[[], bool]
    ) -> None:
        super().__init__(name="load", daemon=True)
        self.sent = 0
        self.foreign = 0
        """Commands in Avro are sent under the foreign ids of this number."""
        self.is_over = threading.Event()
        self.failed: list[str] = []
        self.slowest_s = 0.0
        self._topic = topic
        self._sizes = sizes
        self._is_needed = is_needed
        self._sending = threading.Lock()
        self._log = logging.FileHandler(log_path, "w", delay=True)  # "w": what comes after its end is dropped
        self._log.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger = logging.Logger(self.name)  # noqa: LOG001 - no other log shall have its lines
        logger.addHandler(self._log)
        self._producer = Producer(
            {
                "log_level": 0,
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
        """Send the whole load."""
        with closing(self._log):
            self._send()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Keep records from being on their way while the block stops the only broker in order.

        A broker that stops gives up its partitions, then tells of no brokers for a moment, then closes. A producer
        whose records it refuses asks it where they belong; librdkafka (2.16, issue 5301) that is told of no brokers
        forgets the last one, and can fail to go back to its bootstrap servers: then it never sends again. A producer
        with nothing to send does not ask, and finds the broker gone, as if it had been killed.
        """
        with self._sending:
            self._producer.flush(AT_REST_WITHIN_S)
            yield

    def _send(self) -> None:
        due = time.monotonic()
        for number, record in enumerate(Load(self._sizes).records()):
            is_kept = number >= (1 - KEPT) * self._sizes.commands
            due += (SLOWER if is_kept and self._is_needed() else 1) / self._sizes.rate
            if self.is_over.wait(max(0.0, due - time.monotonic())):
                return
            with self._sending:
                enqueue(
                    self._producer,
                    self._topic,
                    record.key,
                    foreign(record.value, self.foreign),
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
        self.outside_ends: Counter[tuple[str, int]] = Counter()
        self.findings: list[Findings] = []
        self.problems: list[str] = []
        self._say = say
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()
        self._told_at = 0.0
        self._aside: list[tuple[Fault, Future[int]]] = []
        self._helpers = ThreadPoolExecutor(thread_name_prefix="fault")
        self._disturbed = 0
        self._watched = Watched(sizes.silence_max_s, STUCK_S)
        self._plan = plan_faults(sizes)
        self._pause = threading.Event()
        self._compacting = threading.Lock()
        self._outside: Outside | None = None
        self._removed: dict[str, int] = {}
        """How many records compaction has removed, by changelog."""

    def run(self) -> Verdict:
        """Do it all, and give the verdict of the checker; `problems` says why it proves less than was planned."""
        self.directory.mkdir(parents=True, exist_ok=True)
        has_registry = "registry-away" in self.sizes.kinds
        with (
            Registry() as registry,
            running(self.sizes, self.directory, **({"SCHEMA_REGISTRY_URL": registry.url} if has_registry else {})) as (
                cluster,
                users,
                service,
            ),
        ):
            self._registry, self._cluster, self._users, self._service = registry, cluster, users, service
            kept = Kept(self.sizes, vars_of(service.names))
            keep(kept, self.directory)
            self._outside = Outside(service, self.directory, self.sizes.seed) if self._has_outside else None
            self._fleet = Fleet(service, self._has_ended, is_static=partial(is_static, self.sizes))
            if self._has_short_segments:
                shorten_segments(service)
            if "large-table" in self.sizes.kinds:
                fill_tables(cluster.bootstrap_servers, service.names.table, self.sizes.old)
            with Watch(
                cluster.bootstrap_servers, kept.topics, range(PARTITIONS), self._fleet.served, self._watched
            ) as self._watch:
                self._under_fire()
                kept = msgspec.structs.replace(kept, on_its_way_s=self._sender.slowest_s + 0.002)
                keep(kept, self.directory)
                self._heal()
            self._helpers.shutdown()
            self._fleet.stop()
            if self._has_short_segments:
                self._count_removed()
            if self._is_cut:
                kept = msgspec.structs.replace(kept, cut=self._cut_tail())
                keep(kept, self.directory)
            self.ends = self._fleet.ends
            if self.sizes.standbys:
                self._count_takeovers()
            if self.happened["damaged-table"]:
                self._count_thrown_away()
            self.problems += self._watch.problems[:3]
            self.findings = check(kept, cluster.bootstrap_servers, self._say, self._watched, self._outside)
            self.problems += islice(problems_of_verify(service.environment, kept), SHOWN)
            if "forgetting" in self.sizes.kinds:
                forgotten = sum(found.forgotten for found in self.findings)
                self._say(f"{forgotten:,} of {self.sizes.old:,} older orders have forgotten their commands")
            faults = self.happened.total()
            self.happened.update(self._standing())
        verdict = verdict_of(self.findings, faults=faults, seed=self.sizes.seed)
        self.problems += self.shortfalls(verdict)
        return verdict

    def _count_removed(self) -> None:
        """Report what the cleaner has removed from the changelogs while workers wrote and read them."""
        nodes = [self._cluster.directory / f"node-{node}" for node in self._cluster.nodes]
        for name in CHANGELOGS:
            removed, written = removed_by_compaction(nodes, getattr(self._service.names, name))
            self._removed[name] = removed
            self._say(f"compaction has removed {removed:,} of the {written:,} records of the changelog {name}")

    def _count_takeovers(self) -> None:
        """Report how many claims of a filled lane have continued from a standby, or from an interrupted claim."""
        claims = [line for worker in self._service.workers for line in worker.lines("Lane started.") if line["orders"]]
        continued = sum(line["read_records"] < line["orders"] for line in claims)
        self._say(f"{continued} of {len(claims)} claims had their table from a standby or an interrupted claim")
        if not continued:
            self.problems.append("no claim had its table from a standby")

    def _count_thrown_away(self) -> None:
        """Report how many damaged tables were thrown away. A torn one need not be: it ends before what is torn."""
        thrown_away = sum(len(worker.lines(THROWN_AWAY)) for worker in self._service.workers)
        self._say(f"{thrown_away} tables on disk were thrown away and restored")
        if not thrown_away:
            self.problems.append("no damaged table was thrown away")

    def shortfalls(self, verdict: Verdict) -> Iterator[str]:
        """Yield what was not as planned, though nothing may have been lost by it."""
        commands = verdict.commands - sum(found.http_commands for found in self.findings)
        if commands < self.sizes.commands:  # a producer that lost its broker may have sent one twice
            yield f"{commands:,} commands were checked, not {self.sizes.commands:,}"
        planned = {fault.kind for fault in self._plan} | {kind for kind in self.sizes.kinds if kind in STANDING}
        planned |= {"tail"} if self._is_cut else set()
        for kind in sorted(planned - {kind for kind, n in self.happened.items() if n}):
            yield f"no fault of the kind {kind} has happened"
        expected = {code for kind in planned for code in ENDS_OF.get(kind, ())} | ENDS.keys()
        for code, times in sorted(self.ends.items()):
            if code not in expected or (code and not self._plan):
                yield f"{times} workers ended with {code}, which no fault explains"

    @property
    def _has_outside(self) -> bool:
        """Whether a projector, HTTP servers and readers run."""
        return "outside" in self.sizes.kinds

    @property
    def _has_short_segments(self) -> bool:
        """Whether the changelogs are compacted for the whole run."""
        return "short-segments" in self.sizes.kinds

    @property
    def _is_cut(self) -> bool:
        """Whether a table loses its tail; of three replicas one would not matter."""
        return "tail" in self.sizes.kinds and self.sizes.brokers == 1 and self.sizes.faults > 0

    def _cut_tail(self) -> int:
        """Cut off a table's tail while no worker runs, see that its lane is parked, and return its partition."""
        partition = self.sizes.seed % PARTITIONS
        [node] = self._cluster.nodes
        self._cluster.kill(node)
        lost = cut_tail(
            self._cluster.directory / f"node-{node}",
            self._service.names.table,
            partition,
            lose=TAIL,
            is_transactional=True,
        )
        self._cluster.start(node)
        for _ in range(self.sizes.workers):
            self._fleet.join()
        everything = frozenset(range(PARTITIONS))
        served = Served(0.0, frozenset())

        def is_settled() -> bool:
            nonlocal served
            self._fleet.tend()
            served = self._fleet.served()
            return served.running | served.parked == everything and self._fleet.measure().lag == 0

        until(is_settled, "all lanes run, or are parked, after a changelog lost its tail", within_s=PARKED_WITHIN_S)
        self._say(f"partition {partition}: its table has lost {lost:,} bytes; parked: {sorted(served.parked)}")
        if served.parked == {partition}:
            self.happened["tail"] += 1
        else:
            self.problems.append(f"partition {partition} lost the tail of its table; parked: {sorted(served.parked)}")
        self._fleet.stop()
        return partition

    def _standing(self) -> dict[str, int]:
        """Count what was done of the faults that hold for the whole run."""
        least = self.sizes.old // PARTITIONS // 2
        lanes = [lane for worker in self._service.workers for lane in worker.lines("Lane started.")]
        counts = {
            "static": self._fleet.static_starts,
            "large-table": sum(lane["orders"] >= least for lane in lanes),
            "short-segments": min(self._removed.values(), default=0),
            "forgetting": sum(found.forgotten for found in self.findings),
        }
        return {kind: n for kind, n in counts.items() if kind in self.sizes.kinds}

    def _has_ended(self, partitions: frozenset[int]) -> None:
        self._watch.touch("a worker ended", partitions)

    def _under_fire(self) -> None:
        """Send the load, and let each fault happen when its time has come."""
        for _ in range(self.sizes.workers):
            self._fleet.join()
        if self._outside is not None:
            self._outside.start()
        until(lambda: self._fleet.measure().lanes == PARTITIONS, "all partitions run")
        servers, commands = self._cluster.bootstrap_servers, self._service.names.commands
        is_needed = lambda: bool(self._later or self._aside)  # noqa: E731
        sender = Sender(servers, commands, self.sizes, self.directory / LOAD_LOG, is_needed=is_needed)
        self._sender = sender
        self._start = time.monotonic()
        for fault in self._plan:
            self._do_later(fault.at_s, partial(self._befall, fault))
        sender.start()
        try:
            while sender.is_alive() or self._later or self._aside:
                self._tend()
                self._pause.wait(0.1)
        finally:
            sender.is_over.set()
        self.problems += sender.failed[:3]

    def _tend(self) -> None:
        self._look_after()  # before a fault, that it hits a worker that lives
        self._note_disturbances()
        self._note_what_is_over()
        if self._later and self._later[0][0] <= time.monotonic() - self._start:
            heapq.heappop(self._later)[2]()

    def _look_after(self) -> None:
        """Start workers that have ended again, and tell how it stands."""
        self._fleet.tend()
        if self._outside is not None:
            self._outside.tend()
        if time.monotonic() - self._told_at > PROGRESS_EVERY_S:
            self._tell()

    def _tell(self) -> None:
        self._told_at = time.monotonic()
        measured = self._fleet.measure()
        faults = " ".join(f"{kind}={count}" for kind, count in sorted(self._all_that_happened().items()) if count)
        self._say(
            f"{time.monotonic() - self._start:4.0f} s  sent {self._sender.sent:,}  "
            f"committed {self._fleet.committed:,}  lag {measured.lag:,}  waiting {measured.waiting:,}  "
            f"workers {len(self._fleet.workers)}  {faults}"
        )

    def _do_later(self, at_s: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._later, (at_s, next(self._numbers), action))

    def _do_in(self, seconds: float, action: Callable[[], object]) -> None:
        self._do_later(time.monotonic() - self._start + seconds, action)

    def _befall(self, fault: Fault) -> None:
        """Start a fault; those that take long, or are not sure to happen, are counted when they have."""
        acts: dict[str, Callable[[Fault], int]] = {
            "kill": partial(self._signal, signal.SIGKILL),
            "term": partial(self._signal, signal.SIGTERM),
            "pause": partial(self._put_to_sleep, SLEEP_S),
            "long-pause": partial(self._put_to_sleep, LONG_SLEEP_S),
            "hang": self._hang,
            "damaged-table": self._damage_tables,
            "join": self._join,
            "leave": self._leave,
            "broker": self._end_brokers_and_note,
            "users": self._let_users_fail,
            "network": self._disturb,
            "outside": self._kill_outside,
            "clock": self._shift_clock,
            "compaction": partial(self._when_all_run, self._begin_compaction),
            "registry-away": self._silence_registry,
            "partition-away": partial(self._when_all_run, self._take_partition_away),
            "unwritable": partial(self._when_all_run, self._let_be_unwritable),
            "stranger": partial(self._begin_aside, self._visit),
            "foreign-transaction": partial(self._begin_aside, self._hold),
        }
        self.happened[fault.kind] += acts[fault.kind](fault)

    def _signal(self, number: signal.Signals, fault: Fault) -> int:
        worker = self._fleet.pick(fault.pick)
        worker.send(number)
        self._watch.touch(fault.kind, partitions_of(worker))
        return 1

    def _damage_tables(self, fault: Fault) -> int:
        """Kill a worker, and damage its tables before another one starts in its place."""
        worker = self._fleet.pick(fault.pick)
        worker.send(signal.SIGKILL)
        worker.wait_ended()
        self._watch.touch(fault.kind, partitions_of(worker))
        if not damage(self._fleet.tables_of(worker), fault.detail):
            self._plan_again(fault)
            return 0
        return 1

    def _put_to_sleep(self, seconds: float, fault: Fault) -> int:
        worker = self._fleet.pick(fault.pick)
        self._watch.touch(fault.kind, partitions_of(worker), for_s=seconds)
        worker.send(signal.SIGSTOP)
        self._do_in(seconds, lambda: worker.send(signal.SIGCONT))
        return 1

    def _hang(self, fault: Fault) -> int:
        worker = self._fleet.pick(fault.pick)
        worker.send(HANG)
        self._watch.touch(fault.kind, partitions_of(worker))
        self._do_in(HUNG_S, partial(self._note_hung, worker, fault))
        return 0

    def _note_hung(self, worker: WorkerProcess, fault: Fault) -> None:
        """Count a hang, and report one that has not ended its worker; one that had only just begun did not hang."""
        if worker.process.poll() is None:
            if worker.is_stopped() or worker.admin("/health/live", within_s=1.0)[0]:
                self._do_in(AGAIN_S, partial(self._hang, fault))
                return
            self.problems.append(f"{worker.name} still runs {HUNG_S:.0f} s after its event loop began to hang")
            worker.send(signal.SIGKILL)
        self.happened[fault.kind] += 1

    def _join(self, _fault: Fault) -> int:
        self._fleet.join()
        return 1

    def _shift_clock(self, fault: Fault) -> int:
        """Move a wall clock by two hours, and back; a worker that starts meanwhile waits until it is right."""
        worker = self._fleet.pick(fault.pick)
        self._fleet.set_clock(worker, int(fault.detail))
        self._do_in(CLOCK_WRONG_S, partial(self._fleet.set_clock, worker, 0))
        return 1

    def _kill_outside(self, fault: Fault) -> int:
        if self._outside is None:
            return 0
        self._outside.kill(fault.detail, fault.pick)
        return 1

    def _leave(self, fault: Fault) -> int:
        partitions = partitions_of(self._fleet.pick(fault.pick))
        if not self._fleet.leave(fault.pick):
            self._plan_again(fault)
            return 0
        self._watch.touch(fault.kind, partitions)
        return 1

    def _end_brokers_and_note(self, fault: Fault) -> int:
        if not self._cluster.running:  # the fault before it is not over: to end it again would start it twice
            self._do_in(AGAIN_S, partial(self._befall, fault))
            return 0
        began_s = self._watch.now_s()
        ended = self._end_brokers(fault)
        self._watch.touch(fault.kind, None, before_s=self._watch.now_s() - began_s, for_s=BROKER_AWAY_S)
        return ended

    def _begin_aside(self, work: Callable[[Fault], int], fault: Fault) -> int:
        """Start a fault that takes long, beside others; `work` returns how often it has happened."""
        self._aside.append((fault, self._helpers.submit(work, fault)))
        return 0

    def _note_what_is_over(self) -> None:
        """Count the faults that are over, and plan those again that failed because a broker was away."""
        over = [one for one in self._aside if one[1].done()]
        self._aside = [one for one in self._aside if not one[1].done()]
        for fault, future in over:
            try:
                self.happened[fault.kind] += future.result()
            except (KafkaException, KafkaError, TimeoutError) as error:
                self._say(f"{fault.kind} {fault.detail}: {error!r}")
                self._plan_again(fault)

    def _plan_again(self, fault: Fault) -> None:
        """Plan a fault again that failed to happen, unless it has failed too often."""
        again = planned_again(fault, time.monotonic() - self._start + RETRY_S)
        if again is None:
            self._say(f"{fault.kind} {fault.detail}: failed too often, and is not planned again")
        else:
            self._do_later(again.at_s, partial(self._begin_again, again))

    def _count_or_plan_again(self, fault: Fault, *, has_happened: bool) -> None:
        """Count a fault that happens only while commands come, or plan it again if more of them will."""
        if has_happened:
            self.happened[fault.kind] += 1
        elif self._sender.is_alive():
            self._plan_again(fault)
        else:
            self._say(f"{fault.kind} {fault.detail}: did not happen before all commands were sent")

    def _begin_again(self, fault: Fault) -> None:
        """Begin a fault again when all lanes run: without writes nothing is compacted either."""
        if self._waits_for_lanes():
            self._do_in(AGAIN_S, partial(self._begin_again, fault))
        else:
            self._befall(fault)

    def _when_all_run(self, work: Callable[[Fault], int], fault: Fault) -> int:
        """Start a fault when all lanes run: one after the other, such faults would never let some of them run."""
        if self._waits_for_lanes():
            self._do_in(AGAIN_S, partial(self._befall, fault))
            return 0
        return work(fault)

    def _waits_for_lanes(self) -> bool:
        """Return whether commands come while not all lanes run."""
        return self._sender.is_alive() and self._fleet.measure().lanes < PARTITIONS

    def _note_disturbances(self) -> None:
        """Note as soon as a proxy has disturbed a connection: whose it was is not known."""
        disturbed = sum(proxy.happened.total() for proxy in self._cluster.proxies.values())
        if disturbed != self._disturbed:
            self._disturbed = disturbed
            self._watch.touch("network", None, before_s=DELAY_S, for_s=DELAY_S)

    def _begin_compaction(self, fault: Fault) -> int:
        """Begin a compaction while commands come: a segment that nothing more is written to is never cleaned."""
        if not self._sender.is_alive():
            self._count_or_plan_again(fault, has_happened=False)
            return 0
        return self._begin_aside(self._compact, fault)

    def _compact(self, _fault: Fault) -> int:
        topics = [getattr(self._service.names, name) for name in CHANGELOGS]
        nodes = [self._cluster.directory / f"node-{node}" for node in self._cluster.nodes]
        servers, pause = self._cluster.bootstrap_servers, self._pause.wait
        with self._compacting:  # of two at once, the second would restore the settings of the first
            compact(servers, topics, range(PARTITIONS), nodes, within_s=COMPACTED_WITHIN_S, pause=pause)
        return 1

    def _visit(self, fault: Fault) -> int:
        """Add a stranger to the group, who is kept out if workers are there and it has another assignor than they."""
        began_s = self._watch.now_s()
        servers, topic = self._cluster.bootstrap_servers, self._service.names.commands
        is_let_in = fault.detail == STRANGERS[1]
        assignors = (LaneAssignor,) if is_let_in else FOREIGN
        partitions = visit_group(servers, self._service.group_id, topic, self._stay, assignors)
        self._watch.touch("stranger", partitions, before_s=self._watch.now_s() - began_s)
        if is_let_in and not partitions:
            raise TimeoutError("the stranger left before it was given partitions")
        return 1

    def _hold(self, fault: Fault) -> int:
        began_s = self._watch.now_s()
        topic, partition = getattr(self._service.names, fault.detail), int(fault.pick * PARTITIONS)
        try:
            hold_transaction(self._cluster.bootstrap_servers, topic, partition, self._stay)
        finally:
            self._watch.touch(fault.kind, {partition}, before_s=self._watch.now_s() - began_s)
        return 1

    def _stay(self) -> None:
        self._pause.wait(STRANGER_STAYS_S)

    def _let_users_fail(self, fault: Fault) -> int:
        """Set one mode after the other, each until a worker has asked: no worker asks while Kafka is away."""
        stub, mode = self._users.stub, Mode(fault.detail)
        if stub.mode is not Mode.OK:
            self._do_in(AGAIN_S, partial(self._let_users_fail, fault))
            return 0
        asked_before = asked(stub)
        patience_ends = time.monotonic() + USERS_AWAY_S + USERS_ASKED_WITHIN_S

        def heal() -> None:
            was_asked = asked(stub) != asked_before
            if not was_asked and self._sender.is_alive() and time.monotonic() < patience_ends:
                self._do_in(AGAIN_S, heal)
                return
            stub.mode = Mode.OK
            self._count_or_plan_again(fault, has_happened=was_asked)

        stub.mode = mode
        self._do_in(USERS_AWAY_S, heal)
        return 0

    def _silence_registry(self, fault: Fault) -> int:
        """Send commands by ids that no worker knows while the registry is silent, and others that wait for their users.

        It is silent until it was asked; no worker asks while Kafka is away.
        """
        users, registry = self._users.stub, self._registry
        if users.mode is not Mode.OK or registry.is_silent:
            self._do_in(AGAIN_S, partial(self._silence_registry, fault))
            return 0
        held_up_before, began_s = registry.held_up, self._watch.now_s()
        patience_ends = time.monotonic() + REGISTRY_AWAY_S + USERS_ASKED_WITHIN_S

        def heal() -> None:
            was_asked = registry.held_up != held_up_before
            if not was_asked and self._sender.is_alive() and time.monotonic() < patience_ends:
                self._do_in(AGAIN_S, heal)
                return
            users.mode = Mode.OK
            registry.answer_again()
            self._watch.touch(fault.kind, None, before_s=self._watch.now_s() - began_s)
            self._count_or_plan_again(fault, has_happened=was_asked)

        users.mode = Mode.HANG
        registry.fall_silent()
        self._sender.foreign += 1
        self._do_in(REGISTRY_AWAY_S, heal)
        return 0

    def _take_partition_away(self, fault: Fault) -> int:
        """Leave a partition of an output topic to one node and end that; all others have leaders elsewhere."""
        cluster, servers = self._cluster, self._cluster.bootstrap_servers
        topic, partition = getattr(self._service.names, fault.detail), int(fault.pick * PARTITIONS)
        coordinator = cluster.coordinator_of_group(self._service.group_id)
        node = next(node for node in cluster.nodes if node != coordinator)
        began_s = self._watch.now_s()
        with Altered(servers, [topic], ALONE, pause=self._pause.wait):
            self._meanwhile(partial(place_on, servers, topic, partition, [node]))
            cluster.kill(node)
            self._watch.touch(fault.kind, None, for_s=NOTICED_S)
            self._meanwhile(partial(wait_leaderless, servers, topic, partition))
            self._meanwhile(partial(self._pause.wait, PARTITION_AWAY_S))
            self._meanwhile(partial(cluster.start, node))
            self._meanwhile(partial(place_on, servers, topic, partition, [node, *(set(cluster.nodes) - {node})]))
        self._meanwhile(cluster.wait_all_in_sync)
        self._watch.touch(fault.kind, {partition}, before_s=self._watch.now_s() - began_s)
        return 1

    def _let_be_unwritable(self, fault: Fault) -> int:
        """End a node while a topic that turns are written to needs the replicas of all nodes."""
        cluster, topic = self._cluster, getattr(self._service.names, fault.detail)
        node = list(cluster.nodes)[int(fault.pick * len(cluster.nodes))]
        began_s = self._watch.now_s()
        with Altered(cluster.bootstrap_servers, [topic], ALL_THREE, pause=self._pause.wait):
            cluster.kill(node)
            self._meanwhile(partial(self._pause.wait, PARTITION_AWAY_S))
            self._meanwhile(partial(cluster.start, node))
            self._meanwhile(cluster.wait_all_in_sync)
        self._watch.touch(fault.kind, None, before_s=self._watch.now_s() - began_s)
        return 1

    def _disturb(self, fault: Fault) -> int:
        name, _, api = fault.detail.partition(" ")
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
        return 0  # the proxies count what has really happened

    def _end_brokers(self, fault: Fault) -> int:
        cluster = self._cluster
        nodes = list(cluster.nodes)
        match fault.detail:
            case "kill" | "kill any":
                node = nodes[int(fault.pick * len(nodes))]
            case "stop":
                with self._sender.at_rest():
                    cluster.stop(nodes[0])
                self._do_in(BROKER_AWAY_S, partial(self._start_broker, nodes[0]))
                return 1
            case "kill group coordinator":
                node = cluster.coordinator_of_group(self._service.group_id)
            case "kill transaction coordinator":
                transactional_id = self._fleet.transactional_id(fault.pick)
                if transactional_id is None:
                    self._plan_again(fault)
                    return 0
                node = cluster.coordinator_of_transaction(transactional_id)
            case "rolling restart":
                for node in nodes:
                    self._meanwhile(partial(cluster.stop, node))
                    self._meanwhile(partial(cluster.start, node))
                    self._meanwhile(cluster.wait_all_in_sync)
                return len(nodes)
        cluster.kill(node)
        if self.sizes.brokers == 1:
            self._do_in(BROKER_AWAY_S, partial(self._start_broker, node))
            return 1
        self._meanwhile(partial(self._pause.wait, BROKER_AWAY_S))
        self._meanwhile(partial(cluster.start, node))
        self._meanwhile(cluster.wait_all_in_sync)  # the next fault must not find two of three away
        return 1

    def _start_broker(self, node: int) -> None:
        began_s = self._watch.now_s()
        self._meanwhile(partial(self._cluster.start, node))
        self._watch.touch("broker", None, before_s=self._watch.now_s() - began_s + BROKER_AWAY_S)

    def _meanwhile(self, work: Callable[[], object]) -> None:
        """Wait for what takes long, and look after the workers meanwhile."""
        with ThreadPoolExecutor(1) as pool:
            doing = pool.submit(work)
            while not doing.done():
                self._look_after()
                self._pause.wait(0.1)
        doing.result()

    def _heal(self) -> None:
        """Resume everything, and wait until all commands are decided."""
        self._users.stub.mode = Mode.OK
        for worker in self._fleet.workers:
            worker.send(signal.SIGCONT)
        if self._outside is not None:
            self._outside.let_callers_end()
        deadline = time.monotonic() + SETTLED_WITHIN_S
        settled = 0
        while settled < 3:
            # Events that come later, as of orders that are cancelled unpaid, are not for the readers.
            ends = {
                partition: max(self._watched.seen[partition].events, default=-1) + 1 for partition in range(PARTITIONS)
            }
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
        if self._outside is not None:
            self._outside.stop(ends)
            self.problems += self._outside.problems[:SHOWN]
            self.outside_ends.update((end.kind, end.code) for end in self._outside.ends)

    def _is_settled(self) -> bool:
        is_calm = not self._aside and self._fleet.measure() == Measured(lag=0, waiting=0, lanes=PARTITIONS)
        return is_calm and (self._outside is None or self._has_seen_all(self._outside))

    def _has_seen_all(self, outside: Outside) -> bool:
        """Return whether no caller waits, and the readers were shown all that a consumer has seen."""
        return not outside.is_calling and all(
            self._watched.seen[partition].events <= reader.offsets_of(partition)
            for reader in outside.readers
            for partition in range(PARTITIONS)
        )

    def _all_that_happened(self) -> Counter[str]:
        network = sum(proxy.happened.total() for proxy in self._cluster.proxies.values())
        return Counter({**self.happened, "network": network}) if network else Counter(self.happened)


@contextmanager
def running(sizes: Sizes, directory: Path, **settings: str) -> Iterator[tuple[Cluster, StubThread, Service]]:
    """Provide a cluster behind proxies, a User Service stub, and a service without orders; its topics are kept."""
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
                "ORDERS_STANDBYS": str(sizes.standbys),
                # Only the older orders have been closed for that long.
                **({"ORDERS_REMEMBER_CLOSED_DAYS": "1"} if "forgetting" in sizes.kinds else {}),
                # A partition is taken away by leaving it one replica. A worker that starts would refuse that.
                "TEST_FEW_REPLICAS_ARE_ENOUGH": "yes",
                "TEST_TOPICS_EVERY_S": str(TOPICS_EVERY_S),
                "ORDERS_DATABASE_URL": f"sqlite:///{directory}/views.db",
                **settings,
            },
        ) as service,
    ):
        yield cluster, users, service


def shorten_segments(service: Service) -> None:
    """Have the changelogs compacted from now on, a few seconds after each record."""
    for name in CHANGELOGS:
        settings = {setting.replace(".", "_"): value for setting, value in SHORT_SEGMENTS.items()}
        service.configure(getattr(service.names, name), **settings)


def is_static(sizes: Sizes, number: int) -> bool:
    """Return whether the worker of a place has a static member id: of each if the seed is even, else of every other."""
    return "static" in sizes.kinds and (sizes.seed % 2 == 0 or number % 2 == 1)


def fill_tables(servers: str, topic: str, count: int) -> None:
    """Write orders into the table's changelog that are there before all commands, as of an earlier time."""
    producer = Producer({"log_level": 0, "bootstrap.servers": servers, "partitioner": "murmur2_random", "linger.ms": 5})
    for key, value in old_orders(count):
        enqueue(producer, topic, key, value)
    if left := producer.flush(60):
        raise TimeoutError(f"{left} old orders did not arrive in Kafka")


def asked(stub: Stub) -> int:
    """Count what the User Service was asked; it forgets the oldest users at last."""
    return sum(stub.requests.values())
