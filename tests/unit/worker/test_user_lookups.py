"""Asking about users: ahead, again after a while, at once when the breaker closes, and not more than there is room."""

import asyncio

import pytest

from order_service.domain.decision import UserCheck
from order_service.worker.user_lookups import UserLookups
from tests.unit.worker.lookup_world import AskingWorld, asking_in, users_that_wait

PATIENCE_S = 30


class World(AskingWorld):
    def __init__(self, concurrency=4):
        super().__init__()
        self.wanted: set[str] = set()
        self.answered: list[tuple[str, UserCheck]] = []
        self.users = users_that_wait()
        self.asking = UserLookups(
            self.users,
            self.wanted.__contains__,
            lambda user_id, check: self.answered.append((user_id, check)),
            concurrency=concurrency,
            clock=lambda: self.now,
        )

    def ask(self, *user_ids):
        self.wanted |= set(user_ids)
        for user_id in user_ids:
            self.asking.ask(user_id)

    async def fail(self, user_id, why="no answer"):
        self.users.fail(user_id, why)
        await self.settled()


@pytest.fixture
async def world():
    async with asking_in(World()) as made:
        yield made


async def test_a_user_is_asked_about_once_however_many_orders_want_to_know(world):
    world.ask("dana", "dana", "sam")
    await world.settled()
    world.ask("dana")
    await world.settled()
    assert world.users.asked == [("dana", False), ("sam", False)]
    world.users.lookups["dana"].set_result(UserCheck.ACTIVE)
    await world.settled()
    assert world.answered == [("dana", UserCheck.ACTIVE)]


async def test_no_more_lookups_go_out_than_there_is_concurrency(world):
    world.ask("a", "b", "c", "d", "e")
    await world.settled()
    assert len(world.users.asked) == 4
    world.users.lookups["a"].set_result(UserCheck.NOT_FOUND)
    await world.settled()
    assert world.users.asked[4:] == [("e", False)]


async def test_who_got_no_answer_is_asked_about_again_after_5_seconds_doubling_to_60(world):
    world.ask("dana")
    await world.settled()
    due = 0.0
    for pause in (5, 10, 20, 40, 60, 60):
        await world.fail("dana")
        asked = len(world.users.asked)
        due += pause
        await world.at(due - 0.1)
        assert len(world.users.asked) == asked
        await world.at(due)
        assert world.users.asked[asked:] == [("dana", True)]


async def test_after_three_lookups_without_an_answer_the_reason_is_known(world):
    users = ("dana", "sam", "kim")
    world.ask(*users)
    for now in (0, 5, 15):
        assert world.asking.reason(users) == ""
        await world.at(now)
        for user_id, why in (("dana", "status 400"), ("sam", "status 302")):
            await world.fail(user_id, why)
    assert world.asking.reason(users) == "no usable answer about 2 users: status 400 (1), status 302 (1)"
    assert world.asking.reason(["sam", "eve"]) == "no usable answer about 1 user: status 302 (1)"
    await world.at(35)
    world.users.lookups["sam"].set_result(UserCheck.ACTIVE)
    await world.settled()
    assert world.asking.reason(["sam"]) == ""
    world.users.no_answer = "status 503"
    assert world.asking.reason(users) == "status 503"
    world.users.problem = "a refused credential"
    assert world.asking.reason(users) == "a refused credential"


async def test_asking_again_leaves_room_for_others(world):
    world.ask("a", "b", "c")
    await world.settled()
    for user_id in "abc":
        await world.fail(user_id)
    await world.at(5)
    assert world.users.asked[3:] == [("a", True), ("b", True)]


async def test_everybody_is_asked_about_again_at_once_when_the_breaker_closes(world):
    world.ask("dana")
    await world.settled()
    await world.fail("dana")
    for tell in world.users.on_breaker_closed:
        tell()
    await world.settled()
    assert world.users.asked == [("dana", False), ("dana", True)]


async def test_nobody_is_asked_about_for_whom_nobody_waits(world):
    world.ask("dana", "sam")
    await world.settled()
    world.wanted.clear()
    await world.fail("dana")
    world.wanted.add("sam")
    await world.fail("sam")
    world.wanted.clear()
    await world.at(100)
    assert world.users.asked == [("dana", False), ("sam", False)]
    world.ask("sam")
    await world.settled()
    assert world.users.asked[2:] == [("sam", False)]


async def test_an_error_that_is_none_of_a_service_is_not_swallowed():
    world = World()
    running = asyncio.create_task(world.asking.run())
    world.ask("dana", "sam")
    await world.settled()
    world.users.lookups["dana"].set_exception(ZeroDivisionError("a bug"))
    with pytest.raises(ExceptionGroup) as raised:
        await asyncio.wait_for(running, PATIENCE_S)
    assert raised.group_contains(ZeroDivisionError)
    assert world.users.lookups["sam"].cancelled()
