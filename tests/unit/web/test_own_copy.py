"""A caller gets the outcome of its own copy of a command, however many copies there are and whose they are."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy.exc import OperationalError

from order_service.domain.decision import UserCheck
from order_service.domain.entry import MAX_REFUSED
from order_service.domain.identity import command_digest
from order_service.domain.messages import CancelOrder
from tests.support.copies import two_servers
from tests.support.event_log import EVENTS, REJECTIONS
from tests.support.samples import LATER, NOW, ORDER_ID, but, create, pay, ship
from tests.support.shop import ORDER, PAYMENT, SHIPMENT

HERE = f"/v1/orders/{ORDER_ID}"
PAY = {**PAYMENT, "amount": 3800}
KEY = {"Idempotency_Key": "k", "Prefer": "wait=30"}
BRIEFLY = {"Idempotency_Key": "k", "Prefer": "respond-async"}


@pytest.fixture
async def shop(tmp_path):
    async with two_servers(tmp_path) as running:
        yield running


async def copied(shop, path, body):
    """Send a command at one server, whose caller leaves, and again at the other one, whose caller waits."""
    _, first, second = shop
    asked = await first.ask("POST", path, body, **BRIEFLY)
    assert asked.status == 202
    waiting = second.asking("POST", path, body, **KEY)
    return asked.headers["Location"].partition("?")[0], waiting


class Asked:
    """Counts the questions to a method of the views; the first `failing` of them fail."""

    def __init__(self, monkeypatch, views, name, failing=0):
        self._ask, self._failing, self._count = getattr(views, name), failing, 0
        monkeypatch.setattr(views, name, self)

    def __call__(self, *args):
        try:
            if self._count < self._failing:
                raise OperationalError("SELECT", {}, OSError())
            return self._ask(*args)
        finally:
            self._count += 1

    async def times(self, count):
        async with asyncio.timeout(30):
            while self._count < count:  # noqa: ASYNC110 - another thread asks
                await asyncio.sleep(0.005)


async def outcome_everywhere(shop, location):
    """Return what both servers say of a command."""
    _, *servers = shop
    return [(answer := await server.ask("GET", location)).body.get("outcome", answer.status) for server in servers]


async def test_a_payment_refused_before_its_order_came_is_accepted_for_the_second_server(shop):
    world, _, second = shop
    location, waiting = await copied(shop, f"{HERE}/pay", PAY)
    assert world.decide() == ["order_not_found"]
    world.commands.append(create)
    assert world.decide() == ["OrderCreated"]
    await world.sent(3)
    world.project()
    assert (await second.ask("GET", location)).body["outcome"] == "undecided"
    assert world.decide() == ["OrderPaid"]
    world.project()
    answer = await waiting
    assert (answer.status, answer.body["status"]) == (200, "paid")
    assert await outcome_everywhere(shop, location) == ["accepted", "accepted"]
    again = await second.ask("POST", f"{HERE}/pay", PAY, **KEY)
    assert (again.status, again.headers["Idempotency-Replayed"]) == (200, "true")
    assert len(world.commands) == 3


async def test_an_order_refused_for_its_user_is_accepted_for_the_second_server(shop):
    world, _, second = shop
    location, waiting = await copied(shop, "/v1/orders", ORDER)
    assert world.decide(UserCheck.NOT_FOUND) == ["user_not_found"]
    await world.sent(2)
    world.project()
    assert (await second.ask("GET", location)).body["outcome"] == "undecided"
    assert world.decide() == ["OrderCreated"]
    world.project()
    assert (await waiting).status == 201
    assert await outcome_everywhere(shop, location) == ["accepted", "accepted"]


async def test_two_refused_copies_have_a_reason_each_and_the_newest_is_final(shop):
    world, _, second = shop
    location, waiting = await copied(shop, f"{HERE}/ship", SHIPMENT)
    assert world.decide() == ["order_not_found"]
    world.commands.append(create)
    await world.sent(3)
    assert world.decide(now=NOW - timedelta(hours=1)) == ["OrderCreated", "not_paid"]  # a worker whose clock is behind
    world.project()
    answer = await waiting
    assert (answer.status, answer.body["type"]) == (409, "/problems/not_paid")
    assert "Idempotency-Replayed" not in answer.headers
    told = await second.ask("GET", location)
    assert told.body["problem"] == "/problems/not_paid"


async def test_the_refusal_that_an_order_remembers_is_the_answer_to_its_repeat(shop):
    world, _, _ = shop
    world.commands.append(create)
    location, waiting = await copied(shop, f"{HERE}/ship", SHIPMENT)
    await world.sent(3)
    assert world.decide() == ["OrderCreated", "not_paid", "Repeat"]
    world.project()
    answer = await waiting
    assert (answer.status, answer.body["type"]) == (409, "/problems/not_paid")
    assert answer.headers["Idempotency-Replayed"] == "true"
    assert await outcome_everywhere(shop, location) == ["rejected", "rejected"]


async def test_a_refusal_that_its_order_has_forgotten_is_no_answer_to_a_later_copy(shop):
    world, _, second = shop
    world.commands.append(create)
    location, waiting = await copied(shop, f"{HERE}/ship", SHIPMENT)
    world.commands += [but(ship, command_id=f"ship-{number}") for number in range(MAX_REFUSED)]
    world.commands.append(pay)
    await world.sent(MAX_REFUSED + 4)
    last = world.commands.pop()
    assert world.decide() == ["OrderCreated", *["not_paid"] * (MAX_REFUSED + 1), "OrderPaid"]
    world.project()
    world.commands.append(last)
    assert (await second.ask("GET", location)).body["outcome"] == "undecided"
    assert world.decide() == ["OrderShipped"]
    world.project()
    assert (await waiting).status == 200


async def test_refusals_of_the_moment_do_not_make_an_order_forget(shop):
    world, _, _ = shop
    world.commands += [create, ship]
    world.commands += [but(ship, command_id=f"late-{number}", decide_by=NOW) for number in range(MAX_REFUSED)]
    world.commands.append(ship)
    assert world.decide(now=LATER) == ["OrderCreated", "not_paid", *["deadline_passed"] * MAX_REFUSED, "Repeat"]
    world.project()
    found = world.views.outcome(ORDER_ID, ship.command_id, command_digest(ship), MAX_REFUSED + 2)
    assert found is not None
    assert found.reason == "not_paid"


async def test_what_is_remembered_of_an_order_that_the_caller_may_not_see_is_answered_too(shop):
    """Views cannot tell such a refusal from one of an order that does not exist, but for when the order was made."""
    world, _, _ = shop
    cancels = CancelOrder(command_id="hers", order_id=ORDER_ID, actor="user:eve", reason="customer_request")
    world.commands += [cancels, create]
    assert world.decide() == ["order_not_found", "OrderCreated"]
    world.commands += [cancels, cancels]
    assert world.decide(now=LATER) == ["order_not_found", "Repeat"]
    world.project()
    found = [world.views.outcome(ORDER_ID, "hers", command_digest(cancels), offset) for offset in (0, 2, 3)]
    assert [one and one.rejected_at for one in found] == [NOW, LATER, LATER]


async def test_a_refusal_is_found_though_it_is_in_the_views_before_its_offset_is_known(shop, monkeypatch):
    world, first, _ = shop
    world.commands.append(create)
    may_answer = world.hold_answers(monkeypatch)
    waiting = first.asking("POST", f"{HERE}/ship", SHIPMENT, **KEY)
    await world.sent(2)
    assert world.decide() == ["OrderCreated", "not_paid"]
    world.project()
    location = f"{HERE}/commands/{world.commands[1].command_id}"
    assert (await first.ask("GET", location)).body["outcome"] == "undecided"
    may_answer.set()
    assert (await waiting).body["type"] == "/problems/not_paid"


async def test_a_repeat_is_answered_though_its_refusal_comes_long_before_its_order(shop, monkeypatch):
    world, _, _ = shop
    world.commands.append(create)
    asked = Asked(monkeypatch, world.views, "outcome")
    _, waiting = await copied(shop, f"{HERE}/ship", SHIPMENT)
    await world.sent(3)
    assert world.decide() == ["OrderCreated", "not_paid", "Repeat"]
    world.project(REJECTIONS)
    await asked.times(1)
    world.project()
    answer = await waiting
    assert (answer.status, answer.body["type"]) == (409, "/problems/not_paid")


async def test_a_repeat_is_answered_when_it_is_sent_again_after_the_views_failed(shop, monkeypatch):
    world, _, second = shop
    world.commands.append(create)
    asked = Asked(monkeypatch, world.views, "outcome", failing=1)
    _, waiting = await copied(shop, f"{HERE}/ship", SHIPMENT)
    await world.sent(3)
    assert world.decide() == ["OrderCreated", "not_paid", "Repeat"]
    world.project()
    await asked.times(1)
    answers = [await second.ask("POST", f"{HERE}/ship", SHIPMENT, **KEY), await waiting]
    assert [answer.body["type"] for answer in answers] == ["/problems/not_paid"] * 2
    assert len(world.commands) == 3


async def test_a_copy_that_was_dropped_gets_the_outcome_of_the_next_one(shop, monkeypatch):
    world, _, second = shop
    asked = Asked(monkeypatch, world.views, "outcome")
    location, waiting = await copied(shop, f"{HERE}/pay", PAY)
    await world.sent(2)
    assert world.decide(dropped=[1]) == ["order_not_found"]
    world.project()
    await asked.times(1)
    again = second.asking("POST", f"{HERE}/pay", PAY, **KEY)
    await world.sent(3)
    assert (await second.ask("GET", location)).body["outcome"] == "undecided"
    assert world.decide() == ["order_not_found"]
    world.project()
    assert [(await answer).body["type"] for answer in (waiting, again)] == ["/problems/order_not_found"] * 2
    assert (await second.ask("GET", location)).body["outcome"] == "rejected"


async def test_the_event_of_an_earlier_copy_is_a_replay_though_it_comes_while_ours_is_sent(shop, monkeypatch):
    world, first, second = shop
    world.commands.append(create)
    assert (await first.ask("POST", f"{HERE}/pay", PAY, **BRIEFLY)).status == 202
    may_answer = world.hold_answers(monkeypatch)
    waiting = second.asking("POST", f"{HERE}/pay", PAY, **KEY)
    await world.sent(3)
    assert world.decide() == ["OrderCreated", "OrderPaid", "Repeat"]
    asked = Asked(monkeypatch, world.views, "changes_since")
    world.project()
    await asked.times(30)
    may_answer.set()
    answer = await waiting
    assert (answer.status, answer.headers.get("Idempotency-Replayed")) == (200, "true")


async def address_of(server, path, body):
    """Send a command without waiting; return the address that the 202 gives."""
    answer = await server.ask("POST", path, body, **BRIEFLY)
    address = answer.headers["Location"]
    assert (answer.status, answer.body["copy_id"]) == (202, address.partition("?copy_id=")[2])
    return address


async def test_every_server_answers_for_the_copy_that_an_address_names(shop):
    world, first, second = shop
    early = await address_of(first, f"{HERE}/pay", PAY)
    assert await outcome_everywhere(shop, early) == ["undecided", "undecided"]
    assert world.decide() == ["order_not_found"]
    world.commands.append(create)
    late = await address_of(second, f"{HERE}/pay", PAY)
    world.project()
    assert await outcome_everywhere(shop, early) == ["rejected", "rejected"]
    assert await outcome_everywhere(shop, late) == ["undecided", "undecided"]
    assert world.decide() == ["OrderCreated", "OrderPaid"]
    world.project()
    assert await outcome_everywhere(shop, late) == ["accepted", "accepted"]
    assert await outcome_everywhere(shop, early) == ["rejected", "rejected"]


async def test_the_event_of_a_later_copy_changes_no_refusal_that_answered_before(shop):
    world, first, second = shop
    await address_of(first, f"{HERE}/pay", PAY)
    dropped = await address_of(second, f"{HERE}/pay", PAY)
    pays = world.commands[0]
    world.commands += [pays, create, pays]
    assert world.decide(dropped=[1]) == ["order_not_found", "order_not_found", "OrderCreated", "OrderPaid"]
    world.project()
    assert await outcome_everywhere(shop, dropped) == ["rejected", "rejected"]


async def test_a_refused_copy_is_not_answered_by_the_event_of_a_later_one(shop):
    world, _, second = shop
    waiting = second.asking("POST", f"{HERE}/pay", PAY, **KEY)
    await world.sent(1)
    world.commands += [create, world.commands[0]]
    assert world.decide() == ["order_not_found", "OrderCreated", "OrderPaid"]
    world.project()
    answer = await waiting
    assert (answer.status, answer.body["type"]) == (404, "/problems/order_not_found")
    assert "Idempotency-Replayed" not in answer.headers


async def test_a_refused_copy_with_a_late_offset_is_not_answered_by_a_later_event(shop, monkeypatch):
    world, _, second = shop
    may_answer = world.hold_answers(monkeypatch)
    asked = Asked(monkeypatch, world.views, "changes_since")
    waiting = second.asking("POST", f"{HERE}/pay", PAY, **KEY)
    await world.sent(1)
    world.commands += [create, world.commands[0]]
    assert world.decide() == ["order_not_found", "OrderCreated", "OrderPaid"]
    world.project()
    await asked.times(30)
    may_answer.set()
    assert (await waiting).body["type"] == "/problems/order_not_found"


async def test_a_waiting_caller_whose_copy_was_dropped_gets_the_event_of_a_later_one(shop):
    world, first, second = shop
    await address_of(first, f"{HERE}/pay", PAY)
    waiting = second.asking("POST", f"{HERE}/pay", PAY, **KEY)
    await world.sent(2)
    assert world.decide(dropped=[1]) == ["order_not_found"]
    world.commands += [create, world.commands[0]]
    assert world.decide() == ["OrderCreated", "OrderPaid"]
    world.project()
    world.complete()
    answer = await waiting
    assert (answer.status, answer.headers.get("Idempotency-Replayed")) == (200, "true")


async def test_a_later_time_is_answered_by_the_event_of_which_an_earlier_copy_is_in_doubt(shop, monkeypatch):
    world, _, second = shop
    asked = Asked(monkeypatch, world.views, "outcome", failing=1)
    ask = {"Prefer": "wait=30", "Idempotency_Key": "k"}
    waiting = [second.asking("POST", f"{HERE}/pay", PAY, **ask, X_Decide_By=NOW.isoformat())]
    await world.sent(1)
    world.commands += [create, world.commands[0]]
    assert world.decide() == ["order_not_found", "OrderCreated", "OrderPaid"]
    world.project(EVENTS)
    await asked.times(1)
    waiting.append(second.asking("POST", f"{HERE}/pay", PAY, **ask, X_Decide_By=LATER.isoformat()))
    assert [(await answer).status for answer in waiting] == [200, 200]


async def test_a_refused_copy_is_undecided_while_the_views_have_only_a_later_event(shop, monkeypatch):
    world, first, _ = shop
    refused = await address_of(first, f"{HERE}/pay", PAY)
    asked = Asked(monkeypatch, world.views, "outcome")
    waiting = first.asking("POST", f"{HERE}/pay", PAY, **KEY)
    await asked.times(1)
    world.commands += [create, world.commands[0]]
    assert world.decide() == ["order_not_found", "OrderCreated", "OrderPaid"]
    world.project(EVENTS)
    await asked.times(2)
    assert await outcome_everywhere(shop, refused) == ["undecided", "undecided"]
    world.project()
    assert await outcome_everywhere(shop, refused) == ["rejected", "rejected"]
    assert (await waiting).body["type"] == "/problems/order_not_found"


async def test_a_dropped_copy_is_answered_by_the_event_of_a_later_one(shop):
    world, first, second = shop
    await address_of(first, f"{HERE}/pay", PAY)
    dropped = await address_of(second, f"{HERE}/pay", PAY)
    assert world.decide(dropped=[1]) == ["order_not_found"]
    world.commands += [create, world.commands[0]]
    assert world.decide() == ["OrderCreated", "OrderPaid"]
    world.project()
    assert await outcome_everywhere(shop, dropped) == ["undecided", "undecided"]
    world.complete()
    assert await outcome_everywhere(shop, dropped) == ["accepted", "accepted"]


async def test_a_refusal_missing_from_stopped_views_is_not_taken_for_a_dropped_copy(shop):
    world, first, _ = shop
    refused = await address_of(first, f"{HERE}/pay", PAY)
    assert world.decide() == ["order_not_found"]
    world.commands += [create, world.commands[0]]
    assert world.decide() == ["OrderCreated", "OrderPaid"]
    world.project(EVENTS)
    world.stop(REJECTIONS)
    assert await outcome_everywhere(shop, refused) == [503, 503]
    world.project()
    assert await outcome_everywhere(shop, refused) == ["rejected", "rejected"]


async def test_every_server_tells_that_a_full_waiting_room_refused_the_copy(shop):
    world, first, second = shop
    early = await address_of(first, f"{HERE}/pay", PAY)
    assert world.decide(too_many=[0]) == ["too_many_waiting"]
    world.project()
    late = await address_of(second, f"{HERE}/pay", PAY)
    told = [(await server.ask("GET", early)).body["problem"] for server in (first, second)]
    assert told == ["/problems/too_many_waiting"] * 2
    assert await outcome_everywhere(shop, late) == ["undecided", "undecided"]
    assert world.decide() == ["order_not_found"]
    world.project()
    told = [(await server.ask("GET", late)).body["problem"] for server in (first, second)]
    assert told == ["/problems/order_not_found"] * 2


async def test_a_dropped_copy_is_answered_once_a_later_one_is_refused(shop):
    world, first, second = shop
    await address_of(first, f"{HERE}/pay", PAY)
    dropped = await address_of(second, f"{HERE}/pay", PAY)
    assert world.decide(dropped=[1]) == ["order_not_found"]
    world.project()
    assert await outcome_everywhere(shop, dropped) == ["undecided", "undecided"]
    world.commands.append(world.commands[0])
    assert world.decide() == ["order_not_found"]
    world.project()
    assert await outcome_everywhere(shop, dropped) == ["rejected", "rejected"]


@pytest.mark.parametrize("copy_id", ["", "0", "1-2", f"-1-{'0' * 32}", f"1-{'g' * 32}", f"{'9' * 19}-{'0' * 32}"])
async def test_what_is_not_the_id_of_a_copy_is_refused(shop, copy_id):
    _, first, _ = shop
    answer = await first.ask("GET", f"{HERE}/commands/a?copy_id={copy_id}")
    assert (answer.status, answer.body["type"]) == (400, "/problems/invalid_parameter")
