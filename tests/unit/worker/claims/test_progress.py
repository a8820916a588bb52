"""How claims share their worker: one that waits lends its place, and none holds the event loop for long."""

import asyncio
import re
from itertools import pairwise

from aiokafka import TopicPartition

from order_service.worker.claims.progress import RUNBOOK_HINT, ClaimSlots, Progress

PATIENCE_S = 0.05


async def becomes(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110, what is looked at has no event
            await asyncio.sleep(0.005)


async def test_three_of_twenty_claims_run_while_seventeen_wait():
    places = ClaimSlots(16, patience_s=PATIENCE_S)
    blocked, done = asyncio.Event(), []

    async def claim(number):
        progress = Progress(places)
        await progress.at("a transaction to end")
        if number < 17:
            await blocked.wait()
        done.append(number)
        progress.leave()

    claims = [asyncio.create_task(claim(number)) for number in range(20)]
    await becomes(lambda: sorted(done) == [17, 18, 19])
    blocked.set()
    await asyncio.gather(*claims)
    assert sorted(done) == list(range(20))
    assert places.free._value == 16


async def test_a_claim_that_gets_on_takes_a_place_before_it_works():
    places = ClaimSlots(1, patience_s=PATIENCE_S)
    first, second = Progress(places), Progress(places)
    await first.at("a fence")
    await second.at("a barrier")  # once the first has waited for long enough
    going_on = asyncio.create_task(first.moved())
    await asyncio.sleep(0)
    assert not going_on.done()
    second.leave()
    await going_on
    first.leave()
    assert places.free._value == 1


async def test_a_claim_tells_what_it_waits_for():
    working, progress = Progress(ClaimSlots(1)), Progress(ClaimSlots(1, patience_s=PATIENCE_S))
    for each in (working, progress):
        await each.at("a fence")
    assert working.waits_for() == ""
    await becomes(progress.waits_for)
    assert re.fullmatch(r"it has waited \d+ s for a fence", progress.waits_for())
    progress.failure = "the broker is away"
    assert progress.waits_for() == "it failed and is tried again: the broker is away"
    for each in (working, progress):
        each.leave()


async def test_between_two_slices_all_others_have_their_turn():
    places, order = ClaimSlots(2), []

    async def work(name):
        for _ in range(3):
            async with places.slice():
                order.append(name)

    async def lane():
        for _ in range(6):
            await asyncio.sleep(0)
            order.append("lane")

    await asyncio.gather(work("a"), work("b"), lane())
    assert not any(one != "lane" and other != "lane" for one, other in pairwise(order[2:9]))


async def test_a_claim_tells_which_open_transactions_it_waits_for_also_after_a_failure():
    working, progress = Progress(ClaimSlots(1)), Progress(ClaimSlots(1, patience_s=PATIENCE_S))
    table, room = TopicPartition("table", 3), TopicPartition("waiting", 3)
    for each in (working, progress):
        await each.at("the brokers")
        each.failure = "the broker is away"
        each.open_transactions = {room: 7, table: 5}
    assert (working.waits_for(), working.open_for()) == ("", {})
    await becomes(progress.waits_for)
    assert re.fullmatch(
        r"it has waited \d+ s for a transaction that is open on table partition 3 from offset 5"
        rf" and a transaction that is open on waiting partition 3 from offset 7; {re.escape(RUNBOOK_HINT)}",
        progress.waits_for(),
    )
    assert progress.open_for().keys() == {table, room}
    assert min(progress.open_for().values()) >= PATIENCE_S
    await progress.moved()
    assert (progress.waits_for(), progress.open_for()) == ("it failed and is tried again: the broker is away", {})
    progress.open_transactions = {table: 5}
    progress.leave()
    await becomes(lambda: progress.waits_s() >= PATIENCE_S)
    assert progress.open_for() == {}
    working.leave()


async def test_a_transaction_that_has_ended_is_forgotten_while_its_claim_waits_for_a_place():
    places = ClaimSlots(1, patience_s=PATIENCE_S)
    first, second = Progress(places), Progress(places)
    await first.at("the brokers")
    await becomes(lambda: not first.has_slot)
    first.open_transactions = {TopicPartition("table", 3): 5}
    await second.at("its records")
    going_on = asyncio.create_task(first.moved())
    await asyncio.sleep(0)
    assert (going_on.done(), first.open_for()) == (False, {})
    second.leave()
    await going_on
    first.leave()
