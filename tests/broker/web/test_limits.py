"""How often a subject may ask, how many requests may wait, and how many connections there may be."""

from __future__ import annotations

import asyncio
import itertools
import json
import resource
from contextlib import ExitStack, closing, suppress
from datetime import timedelta
from http.client import HTTPConnection, RemoteDisconnected
from typing import Any

import pytest

from order_service.domain.messages import DeliverOrder
from order_service.errors import KafkaAwayError
from order_service.users.stub import Mode
from order_service.views.queries import StoredRejection, ViewChanges
from order_service.web.access.rate_limit import SUBJECTS_MAX, Limits
from order_service.web.http.connections import FILES_BESIDE, connections_possible
from order_service.web.http.problems import Problem, Trouble
from order_service.web.live import command_results as web_outcomes
from order_service.web.live.command_results import CommandResults
from tests.support import tokens
from tests.support.copies import Arrived
from tests.support.samples import but, ship, ship_refused
from tests.support.service import until
from tests.support.shop import ORDER, Http

MINE = {name: value for name, value in ORDER.items() if name != "user_id"}


def taken(limits, subject):
    """Count how many requests of a subject get through at once."""
    with suppress(Problem):
        for count in itertools.count():  # noqa: B007, it is the answer
            limits.take(subject)
    return count


def retry_after(limits, subject):
    with pytest.raises(Problem) as caught:
        limits.take(subject)
    assert caught.value.kind is Trouble.TOO_MANY_REQUESTS
    return int(caught.value.headers["Retry-After"])


@pytest.mark.parametrize(
    ("per_s", "quiet_s", "more"),
    [
        pytest.param(50.0, 0.0, 0, id="nothing at once"),
        pytest.param(50.0, 0.1, 5, id="a tenth of a second's worth"),
        pytest.param(50.0, 3600.0, 100, id="never more than two seconds' worth"),
        pytest.param(0.1, 9.9, 0, id="a slow rate gives nothing early"),
        pytest.param(0.1, 10.0, 1, id="and one request in its time"),
    ],
)
def test_a_bucket_fills_while_its_subject_is_quiet(clock, per_s, quiet_s, more):
    limits = Limits(per_s, clock)
    taken(limits, "user:dana")
    clock.now += quiet_s
    assert taken(limits, "user:dana") == more


@pytest.mark.parametrize(
    ("per_s", "burst"), [pytest.param(50.0, 100, id="two seconds' worth"), pytest.param(0.1, 1, id="at least one")]
)
def test_a_new_subject_may_begin_with_a_burst(clock, per_s, burst):
    assert taken(Limits(per_s, clock), "user:dana") == burst


@pytest.mark.parametrize("per_s", [0.1, 0.4, 3.0, 50.0])
def test_whoever_comes_again_after_retry_after_is_served(clock, per_s):
    limits = Limits(per_s, clock)
    taken(limits, "user:dana")
    clock.now += retry_after(limits, "user:dana")
    limits.take("user:dana")


def test_one_subject_does_not_hurt_another(clock):
    limits = Limits(50.0, clock)
    taken(limits, "user:dana")
    assert taken(limits, "user:erin") == 100


def test_asking_in_vain_costs_nothing(clock):
    limits = Limits(1.0, clock)
    taken(limits, "user:dana")
    for _ in range(10):
        assert retry_after(limits, "user:dana") == 1
    clock.now += 1.0
    assert taken(limits, "user:dana") == 1


def test_the_buckets_are_bounded_and_the_quietest_are_forgotten(clock):
    limits = Limits(1.0, clock)
    taken(limits, "user:dana")
    taken(limits, "user:erin")
    for number in range(SUBJECTS_MAX - 1):
        limits.take(f"user:{number}")
    assert len(limits._buckets) == SUBJECTS_MAX
    assert retry_after(limits, "user:erin")
    assert taken(limits, "user:dana") == 2


class Silence:
    """Views, a poller and a topic of which nothing ever comes."""

    def add(self, listener):
        """Take a listener, and never tell it anything."""

    async def wake(self):
        """Never come to an end."""
        await asyncio.get_running_loop().create_future()


async def held(outcomes, actor, number):
    """Begin a request that waits; give it, or the problem if it has no place."""
    command = DeliverOrder(command_id=f"{actor[5:]}-{number}", order_id="order-1", actor=actor)
    request = asyncio.create_task(outcomes.outcome(command, [], 30.0, is_new=True))
    await asyncio.wait({request}, timeout=0)
    if not request.done():
        return request
    with pytest.raises(Problem) as caught:
        await request
    return caught.value.kind


async def test_one_subject_holds_a_quarter_of_the_places_and_gets_them_back():
    silence: Any = Silence()
    outcomes = CommandResults(silence, silence, silence, waiting_max=8)
    first = await held(outcomes, "user:dana", 1)
    assert isinstance(await held(outcomes, "user:dana", 2), asyncio.Task)
    assert await held(outcomes, "user:dana", 3) is Trouble.TOO_MANY_REQUESTS
    assert isinstance(await held(outcomes, "user:erin", 1), asyncio.Task)
    first.cancel()
    await asyncio.wait({first})
    assert isinstance(await held(outcomes, "user:dana", 4), asyncio.Task)


async def test_a_server_that_stops_refuses_a_new_command_with_service_unavailable():
    silence: Any = Silence()
    outcomes = CommandResults(silence, silence, silence, waiting_max=8)
    await outcomes.stop()
    assert await held(outcomes, "user:dana", 1) is Trouble.SERVICE_UNAVAILABLE


async def test_a_command_that_cannot_be_sent_for_whatever_reason_leaves_nobody_waiting():
    class Broken(Silence):
        async def wake(self):
            raise ZeroDivisionError

    broken: Any = Broken()
    outcomes = CommandResults(broken, broken, broken, waiting_max=8)
    command = DeliverOrder(command_id="command-1", order_id="order-1", actor="user:dana")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await outcomes.outcome(command, [], 30.0, is_new=True)
    assert not outcomes.pending("order-1", "command-1", "user:dana")


async def test_of_too_many_commands_those_are_forgotten_that_nobody_waits_for(monkeypatch):
    monkeypatch.setattr(web_outcomes, "KNOWN_MAX", 2)
    silence: Any = Silence()
    outcomes = CommandResults(silence, silence, silence, waiting_max=80)
    waiting = await held(outcomes, "user:dana", 1)
    left = await held(outcomes, "user:dana", 2)
    left.cancel()
    await asyncio.wait({left})
    await held(outcomes, "user:dana", 3)
    known = [number for number in (1, 2, 3) if outcomes.pending("order-1", f"dana-{number}", "user:dana")]
    assert known == [1, 3]
    assert not waiting.done()


async def test_a_forgotten_command_that_fails_leaves_another_callers_copy_alone(monkeypatch):
    monkeypatch.setattr(web_outcomes, "KNOWN_MAX", 1)

    class Slow(Silence):
        def __init__(self):
            self.answers: asyncio.Queue[Any] = asyncio.Queue()

        async def wake(self):
            """Look."""

        async def send(self, _command, _headers):
            answer = asyncio.get_running_loop().create_future()
            self.answers.put_nowait(answer)
            return await answer

    slow: Any = Slow()
    outcomes = CommandResults(slow, slow, slow, waiting_max=80)
    answers = []
    for number in (1, 2):
        left = await held(outcomes, "user:dana", number)
        answers.append(await slow.answers.get())
        left.cancel()
        await asyncio.wait({left})
    waiting = await held(outcomes, "user:dana", 1)
    await slow.answers.get()
    answers[0].set_exception(KafkaAwayError("Kafka is away"))
    failed, _ = await asyncio.wait(outcomes._sending, timeout=30, return_when=asyncio.FIRST_COMPLETED)
    assert failed
    assert outcomes.pending("order-1", "dana-1", "user:dana") is not None
    assert not waiting.done()


async def test_an_old_refusal_of_the_moment_is_not_the_outcome_of_the_retry():
    old = but(ship_refused, reason="too_many_waiting")

    class Sent(Silence):
        async def wake(self):
            """Look."""

        async def send(self, _command, _headers):
            """Take it, at offset 7."""
            return Arrived(0, 7)

        def remembered(self, _order_id, _command_id):
            return []

    sent: Any = Sent()
    outcomes = CommandResults(sent, sent, sent, waiting_max=8)
    waiting = asyncio.create_task(outcomes.outcome(ship, [], 30.0, is_new=False))
    while not outcomes._pending or not next(iter(outcomes._pending.values())).sent.done():
        await asyncio.wait({waiting}, timeout=0.01)
    outcomes.on_changes(ViewChanges((), (StoredRejection(old, 0, 0, 3),), {}))
    assert not waiting.done()
    new = but(old, rejected_at=old.rejected_at - timedelta(hours=1))  # by a worker whose clock is behind
    outcomes.on_changes(ViewChanges((), (StoredRejection(new, 0, 1, 7),), {}))
    assert (await waiting).decided == new
    await outcomes.stop()


# A running server


@pytest.fixture(scope="module")
def server(shop):
    """Serve little, and only to those whom a token names."""
    little = {"RATE_PER_S": "0.5", "WAITING_MAX": "3", "CONNECTIONS_MAX": "8"}
    settings = {f"ORDERS_WEB_{name}": value for name, value in little.items()}
    return shop.serve(**settings, **tokens.settings(shop.service.directory))


@pytest.fixture
def caller(server):
    """Make callers, each for one request and another one two seconds later."""
    return lambda user_id: Http(server[0].port, Authorization=tokens.bearer(user_id))


def test_a_busy_subject_is_told_to_wait_and_another_is_served(caller):
    dana, erin = caller("dana"), caller("erin")
    assert dana.get("/v1/orders").status == 200
    refused = dana.get("/v1/orders")
    assert refused.status == 429
    assert refused.body["type"] == "/problems/too_many_requests"
    assert int(refused.headers["retry-after"]) in (1, 2)
    assert erin.get("/v1/orders").status == 200
    until(lambda: dana.get("/v1/orders").status == 200, "dana is served again", within_s=10)


@pytest.fixture
def undecided(users):
    """Keep the User Service from answering, so that no order is decided."""
    users.stub.mode = Mode.HANG
    yield
    users.stub.mode = Mode.OK


@pytest.mark.usefixtures("undecided")
def test_requests_that_wait_are_bounded_and_hinder_no_reader(server, caller):
    with ExitStack() as undo:
        for number, connection in enumerate(connections(undo, server, 3)):
            headers = {**caller(f"user-{number}").headers, "Content-Type": "application/json", "Prefer": "wait=20"}
            connection.request("POST", "/v1/orders", json.dumps(MINE), headers)
        until(lambda: is_open(server, 3), "three requests wait")
        refused = caller("one-too-many").ask("POST", "/v1/orders", MINE, Prefer="wait=20")
        assert refused.status == 429
        assert refused.headers["retry-after"] == "1"
        assert caller("reader").get("/v1/orders").status == 200
        assert is_open(server, 3)
    until(lambda: is_open(server, 0), "a caller that hangs up waits no longer")


def is_open(server, requests):
    return f"orders_http_requests_open {requests}.0" in server[1].admin("/metrics")[1]


def test_a_connection_too_many_is_closed_at_once_until_another_ends(server, caller):
    with ExitStack() as undo:
        eight = connections(undo, server, 8)
        for connection in eight:
            connection.request("GET", "/nothing")
            assert connection.getresponse().read()
        assert not is_answered(caller("frank"))
        eight[0].close()
        until(lambda: is_answered(caller("frank")), "there is room again")


@pytest.fixture
def files_max():
    """Limit this process to few open files, and provide how many it may allow itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_more_connections_are_taken_than_files_may_be_open(files_max):
    assert connections_possible(500) == 500
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 500 + FILES_BESIDE
    assert connections_possible(2 * files_max) == files_max - FILES_BESIDE


def connections(undo, server, count):
    port = server[0].port
    return [undo.enter_context(closing(HTTPConnection("127.0.0.1", port, timeout=40))) for _ in range(count)]


def is_answered(caller):
    try:
        return caller.get("/nothing").status == 404
    except (RemoteDisconnected, ConnectionError):
        return False
