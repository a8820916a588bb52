"""The clients that claims share, without a broker: one fence for each owner."""

import asyncio

import pytest

from order_service.errors import Stuck
from order_service.stream import claim_clients
from order_service.stream.claim_clients import ClaimClients

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
    made = ClaimClients(CONNECTION)
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
