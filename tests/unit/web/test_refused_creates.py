"""A create that was refused is decided again when it is repeated: at every server, whatever its views hold."""

import pytest

from order_service.domain.decision import UserCheck
from tests.support.copies import two_servers, two_views
from tests.support.event_log import EVENTS
from tests.support.samples import ORDER_ID, but, create, ship
from tests.support.shop import ORDER, SHIPMENT

KEY = {"Idempotency_Key": "k", "Prefer": "wait=30"}


async def decided(world, waiting, count, user=UserCheck.ACTIVE, views=()):
    """Decide what was sent, show it in views, and return the answer."""
    await world.sent(count)
    outcomes = world.decide(user)
    for each in (world, *views):
        each.project()
    answer = await waiting
    return outcomes, answer.status, answer.headers.get("Idempotency-Replayed")


async def test_a_refused_create_is_decided_again_until_it_is_accepted(tmp_path):
    async with two_servers(tmp_path) as (world, first, second):
        for count, http in enumerate((first, second, first), start=1):
            asking = http.asking("POST", "/v1/orders", ORDER, **KEY)
            assert await decided(world, asking, count, UserCheck.NOT_FOUND) == (["user_not_found"], 422, None)
        asking = second.asking("POST", "/v1/orders", ORDER, **KEY)
        assert await decided(world, asking, 4) == (["OrderCreated"], 201, None)
        for http in (first, second):
            answer = await http.ask("POST", "/v1/orders", ORDER, **KEY)
            assert (answer.status, answer.headers["Idempotency-Replayed"]) == (201, "true")
        assert len(world.commands) == 4


async def test_a_server_whose_views_are_behind_does_the_same(tmp_path):
    async with two_views(tmp_path) as (world, first, late, second):
        asking = first.asking("POST", "/v1/orders", ORDER, **KEY)
        assert await decided(world, asking, 1, UserCheck.NOT_FOUND) == (["user_not_found"], 422, None)
        asking = second.asking("POST", "/v1/orders", ORDER, **KEY)
        assert await decided(world, asking, 2, views=[late]) == (["OrderCreated"], 201, None)
        answer = await first.ask("POST", "/v1/orders", ORDER, **KEY)
        assert (answer.status, answer.headers["Idempotency-Replayed"]) == (201, "true")


@pytest.mark.parametrize("kept", [(), (EVENTS,)], ids=["rejections kept", "rejections past their retention"])
async def test_views_that_were_rebuilt_do_the_same(tmp_path, kept):
    async with two_views(tmp_path) as (world, first, rebuilt, second):
        asking = first.asking("POST", "/v1/orders", ORDER, **KEY)
        assert await decided(world, asking, 1, UserCheck.NOT_ACTIVE) == (["user_not_active"], 422, None)
        rebuilt.project(*kept)
        asking = second.asking("POST", "/v1/orders", ORDER, **KEY)
        await world.sent(2)
        assert world.decide() == ["OrderCreated"]
        rebuilt.project(EVENTS)
        assert (await asking).status == 201


async def test_another_order_under_the_key_of_a_refused_create_is_decided_too(tmp_path):
    """The worker knows nothing of a refused create either. Once an order exists, its id stands for one command."""
    async with two_servers(tmp_path) as (world, first, second):
        asking = first.asking("POST", "/v1/orders", ORDER, **KEY)
        assert await decided(world, asking, 1, UserCheck.NOT_FOUND) == (["user_not_found"], 422, None)
        other = {**ORDER, "user_id": "erin"}
        asking = second.asking("POST", "/v1/orders", other, **KEY)
        assert await decided(world, asking, 2) == (["OrderCreated"], 201, None)
        for http in (first, second):
            answer = await http.ask("POST", "/v1/orders", ORDER, **KEY)
            assert (answer.status, answer.body["type"]) == (422, "/problems/command_id_reused")
        assert len(world.commands) == 2


async def test_the_newest_outcome_of_a_refused_create_is_the_one_of_its_id(tmp_path):
    async with two_servers(tmp_path) as (world, first, second):
        for count, user in enumerate((UserCheck.NOT_FOUND, UserCheck.NOT_ACTIVE), start=1):
            asking = first.asking("POST", "/v1/orders", ORDER, **KEY)
            await decided(world, asking, count, user)
        command = world.commands[0]
        answer = await second.ask("GET", f"/v1/orders/{command.order_id}/commands/{command.command_id}")
        assert answer.body["problem"] == "/problems/user_not_active"


async def test_what_an_order_remembers_is_not_decided_again(tmp_path):
    async with two_views(tmp_path) as (world, first, rebuilt, second):
        world.commands.append(create)
        assert world.decide() == ["OrderCreated"]
        world.project()
        path = f"/v1/orders/{ORDER_ID}/ship"
        asking = first.asking("POST", path, SHIPMENT, **KEY)
        assert await decided(world, asking, 2) == (["not_paid"], 409, None)
        rebuilt.project()
        for http in (first, second):
            answer = await http.ask("POST", path, SHIPMENT, **KEY)
            assert (answer.status, answer.headers["Idempotency-Replayed"]) == (409, "true")
        assert len(world.commands) == 2


async def test_what_an_order_has_forgotten_is_decided_again(tmp_path):
    async with two_servers(tmp_path) as (world, first, _):
        world.commands.append(create)
        assert world.decide() == ["OrderCreated"]
        world.project()
        path = f"/v1/orders/{ORDER_ID}/ship"
        asking = first.asking("POST", path, SHIPMENT, **KEY)
        assert await decided(world, asking, 2) == (["not_paid"], 409, None)
        world.commands += [but(ship, command_id=f"ship-{number}") for number in range(16)]
        assert world.decide() == ["not_paid"] * 16
        world.project()
        asking = first.asking("POST", path, SHIPMENT, **KEY)
        assert await decided(world, asking, 19) == (["not_paid"], 409, None)
