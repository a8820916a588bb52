"""Asking again while there is little room: no question is forgotten, and none crowds out a first question."""

import asyncio
from typing import Any

import pytest

from order_service.domain.decision import UserCheck
from order_service.errors import UserServiceUnavailable
from order_service.worker.user_lookups import UserLookups
from tests.unit.worker.lookup_world import AskingWorld, asking_in

CROWD = [f"user-{number}" for number in range(20)]


class Counting:
    """Stands in for the client, with the room that it has for asking again: taken by a lookup until it ends."""

    def __init__(self, room):
        self.on_breaker_closed: list[Any] = []
        self.refuses = False
        self.asked: list[tuple[str, bool]] = []
        self.lookups: dict[str, asyncio.Future[UserCheck]] = {}
        self.most_again = 0
        self._room = room
        self._again = 0

    @property
    def retry_capacity(self):
        return 0 if self.refuses else self._room - self._again

    def known(self, _user_id):
        return None

    async def check(self, user_id, *, again=False):
        self.asked.append((user_id, again))
        self._again += again
        self.most_again = max(self.most_again, self._again)
        lookup = self.lookups[user_id] = asyncio.get_running_loop().create_future()
        try:
            return await lookup
        finally:
            self._again -= again
            del self.lookups[user_id]


def stand_in(room) -> Any:
    return Counting(room)


class World(AskingWorld):
    def __init__(self, room):
        super().__init__()
        self.answered: list[str] = []
        self.users = stand_in(room)
        self.asking = UserLookups(
            self.users,
            lambda user_id: user_id not in self.answered,
            lambda user_id, _check: self.answered.append(user_id),
            concurrency=100,
            clock=lambda: self.now,
        )

    async def ask(self, user_ids):
        for user_id in user_ids:
            self.asking.ask(user_id)
        await self.settled()

    async def fail_all(self):
        for lookup in list(self.users.lookups.values()):
            lookup.set_exception(UserServiceUnavailable("no answer"))
        await self.settled()

    async def answer_all(self):
        for lookup in list(self.users.lookups.values()):
            lookup.set_result(UserCheck.ACTIVE)
        await self.settled()


@pytest.fixture
async def world():
    async with asking_in(World(room=3)) as made:
        yield made


async def test_a_crowd_is_asked_about_again_a_few_at_a_time_and_nobody_is_left_out(world):
    await world.ask(CROWD)
    await world.fail_all()
    await world.at(5)
    while world.users.lookups:
        await world.answer_all()
    assert world.users.most_again == 3
    assert sorted(world.answered) == sorted(CROWD)
    assert len(world.users.asked) == 2 * len(CROWD)


async def test_who_is_asked_about_for_the_first_time_goes_ahead_of_those_who_hang(world):
    await world.ask(CROWD)
    await world.fail_all()
    await world.at(5)
    await world.ask(["new"])
    assert world.users.asked[-1] == ("new", False)


async def test_while_the_breaker_refuses_nobody_is_asked_about_again_and_then_all_are(world):
    world.users.refuses = True
    await world.ask(CROWD)
    await world.fail_all()
    await world.at(100)
    assert len(world.users.asked) == len(CROWD)
    world.users.refuses = False
    for tell in world.users.on_breaker_closed:
        tell()
    await world.settled()
    while world.users.lookups:
        await world.answer_all()
    assert sorted(world.answered) == sorted(CROWD)
    assert world.users.most_again == 3


async def test_an_answer_ends_the_doubling(world):
    await world.ask(["dana"])
    await world.fail_all()
    await world.at(5)
    await world.fail_all()
    await world.at(15)
    await world.answer_all()
    world.answered.clear()
    await world.ask(["dana"])
    await world.fail_all()
    asked = len(world.users.asked)
    await world.at(19.9)
    assert len(world.users.asked) == asked
    await world.at(20)
    assert world.users.asked[asked:] == [("dana", True)]


async def test_a_question_that_nobody_waits_for_when_its_lookup_fails_can_be_asked_at_once(world):
    await world.ask(["dana"])
    world.answered.append("dana")  # no command waits any more
    await world.fail_all()
    world.answered.clear()
    await world.ask(["dana"])
    assert world.users.asked == [("dana", False), ("dana", False)]
