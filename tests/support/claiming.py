"""What delays a claim: a transaction of a stranger that stays open, and a stop after one of its steps."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

from aiokafka.cluster import ClusterMetadata
from confluent_kafka import Producer

from order_service.kafka.connection import connection
from order_service.wire.changelog import BARRIER_KEY
from order_service.worker.claims.changelog_reader import ChangelogState
from order_service.worker.claims.claim import Claimer
from order_service.worker.claims.clients import ClaimClients
from order_service.worker.claims.progress import ClaimSlots, Progress
from tests.support.service import until


@contextmanager
def open_transaction(service, topic, partition):
    """Open a stranger's transaction with a record on a partition, and provide its producer; the caller ends it."""
    stranger = Producer(
        {
            "log_level": 0,
            "bootstrap.servers": service.bootstrap_servers,
            "transactional.id": f"{service.app_id}-stranger",
        }
    )
    stranger.init_transactions(30)
    stranger.begin_transaction()
    stranger.produce(topic, key=BARRIER_KEY, value=b"stranger", partition=partition)
    assert stranger.flush(30) == 0
    yield stranger


@asynccontextmanager
async def claimer_of(service, owner, failpoint):
    """Make claims of this owner, whose process has no other part, and waits for no other owner."""
    arguments = connection(service.settings())
    clients = ClaimClients(arguments, set())
    try:
        yield Claimer(
            service.group_id,
            owner,
            set(),
            frozenset(),
            service.names,
            arguments,
            ClusterMetadata(),
            clients,
            failpoint,
        )
    finally:
        await clients.close()


@contextmanager
def claim_that_stops(service, after):
    """Claim partition 1 in a thread of the test, and stop after a step; yields what lets it go on to its end."""
    reached, may_go_on = threading.Event(), threading.Event()

    def stop(step):
        if step == after:
            reached.set()
            assert may_go_on.wait(60)

    async def claim() -> None:
        async with claimer_of(service, "late", stop) as claimer:
            await claimer.claim(1, ChangelogState(), Progress(ClaimSlots(1)))

    def go_on():
        may_go_on.set()
        late.result(60)

    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(asyncio.run, claim())
        try:
            until(lambda: reached.is_set() or late.done(), f"the claim has reached {after}")
            assert reached.is_set(), late.result()
            yield go_on
        finally:
            may_go_on.set()
