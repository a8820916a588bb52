"""The clients that claims share, without a broker: one fence for each owner, few readers, one client for offsets."""

import asyncio

import pytest
from aiokafka import TopicPartition

from order_service.errors import Stuck
from order_service.worker.claims import clients as claim_clients
from order_service.worker.claims.clients import ClaimClients

CONNECTION = {"bootstrap_servers": "127.0.0.1:1"}


class Fences:
    """The fences that were begun; each ends when the test answers it."""

    def __init__(self):
        self._begun: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()
        self.owners: list[str] = []

    async def fence(self, owner, connection):
        assert connection == CONNECTION
        self.owners.append(owner)
        answer = asyncio.get_running_loop().create_future()
        self._begun.put_nowait(answer)
        await answer

    async def next(self):
        """Wait for the next fence to begin; give what answers it."""
        return await asyncio.wait_for(self._begun.get(), 10)


@pytest.fixture
def fences(monkeypatch):
    made = Fences()
    monkeypatch.setattr(claim_clients, "fence", made.fence)
    return made


@pytest.fixture
async def clients():
    made = ClaimClients(CONNECTION, set())
    yield made
    await made.close()


def claims_of(clients, *owners):
    return [asyncio.create_task(clients.fence(owner)) for owner in owners]


async def test_claims_that_name_the_same_owner_share_one_fence_and_it_holds_for_later_ones(fences, clients):
    claims = claims_of(clients, "worker-1", "worker-1", "worker-2")
    answers = [await fences.next(), await fences.next()]
    assert not any(claim.done() for claim in claims)
    for answer in answers:
        answer.set_result(None)
    async with asyncio.timeout(10):
        await asyncio.gather(*claims)
        await clients.fence("worker-1")
    assert fences.owners == ["worker-1", "worker-2"]


async def test_a_fence_that_failed_fails_all_who_wait_for_it_and_the_next_one_tries_again(fences, clients):
    claims = claims_of(clients, "worker-1", "worker-1")
    (await fences.next()).set_exception(Stuck("no coordinator"))
    async with asyncio.timeout(10):
        errors = await asyncio.gather(*claims, return_exceptions=True)
    assert [type(error) for error in errors] == [Stuck, Stuck]
    [again] = claims_of(clients, "worker-1")
    (await fences.next()).set_result(None)
    await asyncio.wait_for(again, 10)
    assert fences.owners == ["worker-1", "worker-1"]


async def test_a_claim_that_is_given_up_does_not_end_the_fence_that_another_waits_for(fences, clients):
    given_up, other = claims_of(clients, "worker-1", "worker-1")
    answer = await fences.next()
    given_up.cancel()
    await asyncio.wait([given_up])
    answer.set_result(None)
    await asyncio.wait_for(other, 10)
    assert fences.owners == ["worker-1"]


class Client:
    """A Kafka consumer that remembers whether it was started and stopped."""

    started: list["Client"]

    def __init__(self, **arguments):
        self.isolation_level = arguments["isolation_level"]
        self.is_stopped = False

    async def start(self):
        await asyncio.sleep(0)
        self.started.append(self)

    async def stop(self):
        self.is_stopped = True

    def assignment(self):
        return set()

    def pause(self, *places):
        pass

    async def beginning_offsets(self, places):
        return dict.fromkeys(places, 0)

    async def end_offsets(self, places):
        return dict.fromkeys(places, 7)


@pytest.fixture
def started(monkeypatch):
    """The clients that were started."""
    monkeypatch.setattr(Client, "started", [], raising=False)
    monkeypatch.setattr(claim_clients, "Consumer", Client)
    return Client.started


async def test_claims_that_follow_each_other_share_a_reader_and_those_at_once_do_not(started, clients):
    for _ in range(3):
        async with clients.reader():
            pass
    async with clients.reader(), clients.reader():
        pass
    async with clients.reader(), clients.reader():
        pass
    assert [client.isolation_level for client in started] == ["read_committed"] * 2
    await clients.close()
    assert all(client.is_stopped for client in started)


async def test_a_reader_that_a_claim_failed_with_is_stopped_and_not_used_again(started, clients):
    with pytest.raises(Stuck):
        async with clients.reader():
            raise Stuck("no coordinator")
    async with clients.reader():
        pass
    assert [client.is_stopped for client in started] == [True, False]


async def test_one_client_asks_for_the_offsets_of_all_claims(started, clients):
    place = TopicPartition("orders.events.v1", 0)
    async with asyncio.timeout(10):
        starts, ends = await asyncio.gather(clients.starts([place]), clients.ends([place]))
        await clients.ends([place])
    assert (starts, ends) == ({place: 0}, {place: 7})
    assert [client.isolation_level for client in started] == ["read_uncommitted"]
