"""Callers of an HTTP server, in a process of their own: what they ask, how long it took, that no answer is wrong."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from multiprocessing.connection import Connection
from typing import Any, Final

from aiohttp import ClientSession, ClientTimeout, TCPConnector
from msgspec import Struct

from bench.processes import Work, running
from bench.watching import WrongResult

LINES: Final = [
    {"sku": "mug-blue", "name": "Blue mug", "quantity": 2, "unit_price": 1250},
    {"sku": "poster-a2", "quantity": 1, "unit_price": 900},
]
TOTAL: Final = 2 * 1250 + 900
PAID_AFTER_S: Final = 1.0
LOOK_EVERY: Final = 10
"""Of how many orders one is read after each write: it must be as the answer said."""


class Took(Struct, frozen=True):
    """How long an answer took, counted from when its request was due, so many seconds after the beginning.

    `late_ms` of it is the caller's own fault.
    """

    kind: str
    due_s: float
    latency_ms: float
    late_ms: float


class Question(Struct, frozen=True):
    """What to read, and the bytes that the answer must hold so many times."""

    kind: str
    path: str
    holds: bytes
    times: int = 1


def ask(work: Work, *arguments: Any) -> list[Took]:
    """Run one of the functions below in a process of its own; raise WrongResult if an answer was wrong."""
    with running(work, *arguments) as pipe:
        taken: list[Took] | WrongResult = pipe.recv()
    if isinstance(taken, WrongResult):
        raise taken
    return taken


def write(pipe: "Connection[Any, Any]", port: int, name: str, per_s: int, seconds: float) -> None:
    """Create orders, each of another user never seen before, and pay each a second later; `per_s` of both in all.

    An open loop: a request starts when it is due, however many have no answer at that time.
    """
    _tell(pipe, _evenly(port, 0, per_s, islice(_writes(name, round(PAID_AFTER_S * per_s / 2)), round(per_s * seconds))))


def read_evenly(
    pipe: "Connection[Any, Any]", port: int, questions: Sequence[Question], callers: int, per_s: float, seconds: float
) -> None:
    """Ask in turn, `per_s` in all, on so many connections: an open loop, in which waiting for a connection counts."""
    steps = (Step(question.kind, partial(_read_one, question=question)) for question in cycle(questions))
    _tell(pipe, _evenly(port, callers, per_s, islice(steps, round(per_s * seconds))))


def read(pipe: "Connection[Any, Any]", port: int, questions: Sequence[Question], callers: int, seconds: float) -> None:
    """Ask in turn; each caller has a connection, and asks again as soon as it has its answer: a closed loop."""
    _tell(pipe, _in_turn(port, questions, callers, seconds))


class Step(Struct, frozen=True):
    """One request, and a look at what came of it that is not measured."""

    kind: str
    send: Callable[[ClientSession], Awaitable[None]]
    look: Callable[[ClientSession], Awaitable[None]] | None = None


class Orders:
    """Orders by their numbers; where each is, is known once it is created."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._places: dict[int, asyncio.Future[str]] = {}

    async def create(self, session: ClientSession, number: int) -> None:
        """Place it."""
        self._places[number] = asyncio.get_running_loop().create_future()
        body = {"user_id": f"{self._name}-{number}", "currency": "EUR", "lines": LINES}
        async with session.post("/v1/orders", json=body) as answer:
            _check(answer.status, 201, await answer.json(), 1)
            self._places[number].set_result(answer.headers["Location"])

    async def pay(self, session: ClientSession, number: int) -> None:
        """Pay it, once it is there."""
        body = {"payment_id": f"{self._name}-{number}", "amount": TOTAL, "currency": "EUR"}
        async with session.post(f"{await self._places[number]}/pay", json=body) as answer:
            _check(answer.status, 200, await answer.json(), 2)

    async def look(self, session: ClientSession, number: int, version: int) -> None:
        """Read it: it has that version, or a later one by now."""
        async with session.get(await self._places[number]) as answer:
            _check(answer.status, 200, await answer.json(), version)


def _writes(name: str, unpaid: int) -> Iterator[Step]:
    """Create and pay in turn; so many are created first."""
    orders = Orders(name)

    def step(kind: str, number: int, version: int) -> Step:
        look = partial(orders.look, number=number, version=version) if number % LOOK_EVERY == 0 else None
        return Step(kind, partial(getattr(orders, kind), number=number), look)

    for number in range(10**9):
        yield step("create", number, 1)
        if number >= unpaid:
            yield step("pay", number - unpaid, 2)


async def _evenly(port: int, connections: int, per_s: float, steps: Iterable[Step]) -> list[Took]:
    """Begin each step when it is due."""
    async with _session(port, connections) as session:
        begun: list[asyncio.Task[Took]] = []
        start = time.monotonic()
        for place, step in enumerate(steps):
            due_at = start + place / per_s
            await asyncio.sleep(due_at - time.monotonic())
            begun.append(asyncio.create_task(_taken(session, step, start, due_at)))
        return await asyncio.gather(*begun)


async def _in_turn(port: int, questions: Sequence[Question], callers: int, seconds: float) -> list[Took]:
    taken: list[Took] = []
    start, turns = time.monotonic(), cycle(questions)

    async def call(session: ClientSession) -> None:
        while (now := time.monotonic()) < start + seconds:
            question = next(turns)
            taken.append(await _taken(session, Step(question.kind, partial(_read_one, question=question)), start, now))

    async with _session(port, callers) as session:
        await asyncio.gather(*[call(session) for _ in range(callers)])
    return taken


async def _taken(session: ClientSession, step: Step, start: float, due_at: float) -> Took:
    began_at = time.monotonic()
    await step.send(session)
    took = Took(step.kind, due_at - start, (time.monotonic() - due_at) * 1000, (began_at - due_at) * 1000)
    if step.look is not None:
        await step.look(session)
    return took


async def _read_one(session: ClientSession, question: Question) -> None:
    async with session.get(question.path) as answer:
        body = await answer.read()
    if answer.status != 200 or body.count(question.holds) != question.times:
        raise WrongResult(f"{question.path} is answered with {answer.status}: {body[:500]!r}")


def _check(status: int, expected: int, order: dict[str, Any], version: int) -> None:
    if status != expected or order["version"] < version:
        raise WrongResult(f"answered with {status}, not with {expected} and version {version}: {order}")


def _session(port: int, connections: int) -> ClientSession:
    """Open a session of at most so many connections, 0 for as many as it takes."""
    connector = TCPConnector(limit=connections, keepalive_timeout=4)
    return ClientSession(f"http://127.0.0.1:{port}", connector=connector, timeout=ClientTimeout(total=60))


def _tell(pipe: "Connection[Any, Any]", asking: Coroutine[Any, Any, list[Took]]) -> None:
    gc.disable()  # a collection here would look like a pause of the server
    try:
        pipe.send(asyncio.run(asking))
    except WrongResult as error:
        pipe.send(error)
