from __future__ import annotations

import asyncio
import gc
import ssl
import time
from pathlib import Path

import pytest
from aiohttp import ClientSession
from prometheus_client import REGISTRY
from pydantic import SecretStr, ValidationError
from structlog.testing import capture_logs

from order_service.domain.decision import UserCheck
from order_service.errors import SetupError, UserServiceUnavailable
from order_service.settings import Settings
from order_service.users.breaker import Breaker, NoAnswers, Refusals, State
from order_service.users.client import BODY_MAX, CallPolicy, OAuthClient, UserClient
from order_service.users.stub import Mode
from order_service.worker.user_lookups import UserLookups
from tests.support.certificates import CertificateAuthority
from tests.support.token_endpoint import TokenEndpoint


def outcome(name: str) -> float:
    return REGISTRY.get_sample_value("orders_user_lookups_total", {"outcome": name}) or 0.0


def state_of(it: Breaker) -> State:
    return it.state


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def no_answer(users, user_id, **how):
    with pytest.raises(UserServiceUnavailable):
        await users.check(user_id, **how)


# What is an answer, and what is not


@pytest.mark.parametrize(
    ("user_id", "check", "tries"),
    [
        pytest.param("ann", UserCheck.ACTIVE, 1, id="an active user may order"),
        pytest.param("unknown-1", UserCheck.NOT_FOUND, 1, id="404 is an answer"),
        pytest.param("status-410-ann", UserCheck.NOT_FOUND, 1, id="410 is the same answer"),
        pytest.param("inactive-1", UserCheck.NOT_ACTIVE, 1, id="another status may not order"),
        pytest.param("flaky-1", UserCheck.ACTIVE, 2, id="a failure that passes is tried again"),
        pytest.param("slow-50-ann", UserCheck.ACTIVE, 1, id="a slow answer within the time is an answer"),
    ],
)
async def test_an_answer_says_what_a_user_is(users, stub, user_id, check, tries):
    before = outcome(check.value)
    assert await users.check(user_id) is check
    assert stub.requests == {user_id: tries}
    assert outcome(check.value) == before + 1


@pytest.mark.parametrize(
    ("mode", "tries"),
    [
        (Mode.HANG, 1),
        (Mode.RESET, 3),
        (Mode.ERROR, 3),
        (Mode.TOO_MANY, 1),
        (Mode.UNAUTHORIZED, 1),
        (Mode.FORBIDDEN, 1),
        (Mode.REDIRECT, 1),
        (Mode.GARBAGE, 1),
        (Mode.HUGE, 1),
        (Mode.DRIP, 1),
    ],
)
async def test_every_fault_is_no_answer_within_three_tries_and_heals(users, stub, mode, tries):
    assert await users.check("warm") is UserCheck.ACTIVE  # so that a pooled connection is there
    stub.mode = mode
    before = outcome("no_answer")
    async with asyncio.timeout(10.0):
        await no_answer(users, "ann")
    assert stub.requests == {"warm": 1, "ann": tries}
    assert outcome("no_answer") == before + 1
    stub.mode = Mode.OK
    assert await users.check("ann") is UserCheck.ACTIVE


async def test_nobody_listening_is_no_answer(open_client, unused_tcp_port):
    users = await open_client(url=f"http://127.0.0.1:{unused_tcp_port}")
    await no_answer(users, "ann")


async def test_a_user_slower_than_the_time_is_no_answer(users, stub):
    await no_answer(users, "slow-5000-ann")
    assert stub.requests == {"slow-5000-ann": 1}


async def test_the_time_in_which_the_process_was_stopped_does_not_count(open_client, monkeypatch):
    """After a SIGSTOP the answer is in the socket, and the time of the lookup has passed."""
    monkeypatch.setattr("order_service.runtime.deadline.TICK_S", 0.005)

    async def stop_then_answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        time.sleep(1.0)  # noqa: ASYNC251, that is the point
        writer.write(ok(b'{"status": "active"}'))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(stop_then_answer, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        users = await open_client(url=f"http://{host}:{port}", total_s=0.5, probe_every_s=0.6)
        assert await users.check("ann") is UserCheck.ACTIVE


async def test_a_retry_after_within_the_time_is_waited_for(open_client, stub, until):
    users = await open_client(total_s=5.0, probe_every_s=6.0)
    stub.mode = Mode.TOO_MANY
    asking = asyncio.create_task(users.check("ann"))
    await until(lambda: stub.requests.get("ann") == 1)
    asked_at = asyncio.get_running_loop().time()
    stub.mode = Mode.OK
    assert await asking is UserCheck.ACTIVE
    assert asyncio.get_running_loop().time() - asked_at >= 0.9
    assert stub.requests["ann"] == 2


@pytest.mark.parametrize("after", [b"", b"-1", b"soon", b"Wed, 21 Oct 2026 07:28:00 GMT", b"9" * 500, "²".encode()])
async def test_any_other_retry_after_is_not_waited_for(open_client, bytes_server, after):
    head = b"HTTP/1.1 429 Slow down\r\nRetry-After: %s\r\nContent-Length: 0\r\n\r\n"
    async with bytes_server(head % after) as (url, heads):
        await no_answer(await open_client(url=url), "ann")
        assert len(heads) == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(ok(b""), id="nothing"),
        pytest.param(ok(b"{"), id="half an object"),
        pytest.param(ok(b"[]"), id="a list"),
        pytest.param(ok(b"null"), id="null"),
        pytest.param(ok(b"{}"), id="no field"),
        pytest.param(ok(b'{"status": 1}'), id="a number in the field"),
        pytest.param(ok(b'{"status": null}'), id="null in the field"),
        pytest.param(ok(b'{"status": ["active"]}'), id="a list in the field"),
        pytest.param(ok(b'{"status": "\xff"}'), id="no UTF-8"),
        pytest.param(ok(b'{"a":' * 13_000), id="nested too deep"),
        pytest.param(ok(b'{"status": "active"}' + b" " * BODY_MAX), id="too large"),
        pytest.param(ok(b'{"status": "active"}')[:-1], id="cut short"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="a bad chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", id="a bad length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", id="a huge header"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="another protocol"),
        pytest.param(b"\x00" * 100, id="zeros"),
        pytest.param(b"", id="a closed connection"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", id="another success"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", id="our mistake"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00", id="compressed"
        ),
    ],
)
async def test_anything_else_is_no_answer(open_client, bytes_server, answer):
    async with bytes_server(answer) as (url, heads):
        await no_answer(await open_client(url=url), "ann")
        assert 1 <= len(heads) <= 3


@pytest.mark.parametrize(
    ("value", "check"),
    [
        (b'"ACTIVE"', UserCheck.ACTIVE),
        (b'"Active"', UserCheck.ACTIVE),
        (b"true", UserCheck.ACTIVE),
        (b'"INACTIVE"', UserCheck.NOT_ACTIVE),
        (b'" active"', UserCheck.NOT_ACTIVE),
        (b'"True"', UserCheck.ACTIVE),
        (b'"truely"', UserCheck.NOT_ACTIVE),
        (b'""', UserCheck.NOT_ACTIVE),
        (b"false", UserCheck.NOT_ACTIVE),
    ],
)
async def test_a_status_is_read_whatever_its_case_and_true_is_active(open_client, bytes_server, value, check):
    async with bytes_server(ok(b'{"status": %s}' % value)) as (url, _):
        assert await (await open_client(url=url)).check("ann") is check


@pytest.mark.parametrize(
    ("value", "check"),
    [
        (b'"ENABLED"', UserCheck.ACTIVE),
        (b'"Staged"', UserCheck.ACTIVE),
        ('"STRAßE"'.encode(), UserCheck.ACTIVE),
        (b'"active"', UserCheck.NOT_ACTIVE),
        (b"true", UserCheck.NOT_ACTIVE),
        (b"false", UserCheck.ACTIVE),
    ],
)
async def test_which_values_are_active_is_a_setting(open_client, bytes_server, value, check):
    settings = Settings(user_service_active="enabled, staged,strasse,FALSE")
    async with bytes_server(ok(b'{"status": %s}' % value)) as (url, _):
        users = await open_client(url=url, active=CallPolicy.from_settings(settings).active)
        assert await users.check("ann") is check


@pytest.mark.parametrize("status", [204, 400, 404])
async def test_which_statuses_are_no_such_user_is_a_setting(users, open_client, status):
    settings = Settings(user_service_not_found="204, 400")
    strict = await open_client(not_found=CallPolicy.from_settings(settings).not_found)
    if status == 404:
        assert await users.check(f"status-{status}") is UserCheck.NOT_FOUND
        await no_answer(strict, f"status-{status}")
    else:
        await no_answer(users, f"status-{status}")
        assert await strict.check(f"status-{status}") is UserCheck.NOT_FOUND


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("user_service_active", ""),
        ("user_service_active", "active,,true"),
        *[("user_service_not_found", value) for value in ("", "404;410", "200", "302", "401", "403", "429", "500")],
        ("user_service_oauth_token_url", "login.example"),
        ("user_service_oauth_token_url", "https://orders:secret@login.example/token"),
        ("user_service_oauth_client_auth", "jwt"),
    ],
)
def test_values_that_mean_nothing_are_refused(setting, value):
    with pytest.raises(ValidationError, match=setting):
        Settings(**{setting: value})


@pytest.mark.parametrize(
    ("body", "check"),
    [
        (b'{"user": {"status": "active"}}', UserCheck.ACTIVE),
        (b'{"user": {"status": "gone"}, "user.status": "active"}', UserCheck.ACTIVE),
        (b'{"user": {"status": "gone"}, "status": "active"}', UserCheck.NOT_ACTIVE),
        (b'{"user": {"status": {}}}', None),
        (b'{"user": "active"}', None),
        (b'{"status": "active"}', None),
        (b'{"user": null}', None),
    ],
)
async def test_a_field_may_stand_in_an_object(open_client, bytes_server, body, check):
    async with bytes_server(ok(body)) as (url, _):
        users = await open_client(url=url, field="user.status")
        if check is None:
            await no_answer(users, "ann")
        else:
            assert await users.check("ann") is check


async def test_a_body_of_just_the_limit_is_read(open_client, bytes_server):
    async with bytes_server(ok(b'{"status": "active"}'.ljust(BODY_MAX))) as (url, _):
        assert await (await open_client(url=url)).check("ann") is UserCheck.ACTIVE


async def test_the_field_and_the_path_can_be_set(open_client, bytes_server):
    async with bytes_server(ok(b'{"state": "active", "status": "gone"}')) as (url, heads):
        users = await open_client(url=url + "/api", path="/u/{id}/state?full=1", field="state")
        assert await users.check("ann") is UserCheck.ACTIVE
        assert heads[0].startswith(b"GET /api/u/ann/state?full=1 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("user_id", "segment"),
    [
        ("a/b", b"a%2Fb"),
        ("../admin", b"..%2Fadmin"),
        ("..\\admin", b"..%5Cadmin"),
        ("%2e%2e", b"%252e%252e"),
        ("%2F", b"%252F"),
        ("a?b=c#d", b"a%3Fb%3Dc%23d"),
        ("a;b&c", b"a%3Bb%26c"),
        ("a b\r\nX: y", b"a%20b%0D%0AX%3A%20y"),
        ("{id}", b"%7Bid%7D"),
        ("@evil.example", b"%40evil.example"),
        ("ü", b"%C3%BC"),
        ("\ud800", b"%ED%A0%80"),
        ("...", b"..."),
    ],
)
async def test_an_id_stays_one_segment_of_the_path(open_client, bytes_server, user_id, segment):
    async with bytes_server(ok(b'{"status": "active"}')) as (url, heads):
        await (await open_client(url=url)).check(user_id)
        assert heads[0].split(b"\r\n")[0] == b"GET /v1/users/%s HTTP/1.1" % segment


@pytest.mark.parametrize("user_id", ["", ".", ".."])
async def test_an_id_that_no_path_can_carry_is_nobody_and_is_not_asked_for(users, stub, user_id):
    assert await users.check(user_id) is UserCheck.NOT_FOUND
    assert not stub.requests


# The cache, and one lookup in flight per user


@pytest.mark.parametrize(("user_id", "keep_s"), [("ann", 60.0), ("unknown-1", 5.0), ("inactive-1", 5.0)])
async def test_an_answer_is_kept_for_its_time(users, stub, clock, user_id, keep_s):
    assert users.known(user_id) is None
    check = await users.check(user_id)
    clock.now += keep_s - 0.01
    cached = outcome("cached")
    assert users.known(user_id) is check
    assert await users.check(user_id) is check
    assert outcome("cached") == cached + 1
    assert stub.requests[user_id] == 1
    clock.now += 0.02
    assert users.known(user_id) is None
    assert await users.check(user_id) is check
    assert stub.requests[user_id] == 2


async def test_no_answer_is_not_kept(users, stub):
    stub.mode = Mode.GARBAGE
    await no_answer(users, "ann")
    assert users.known("ann") is None


async def test_the_cache_is_bounded_and_the_oldest_answer_leaves(open_client, clock):
    users = await open_client(cache_max=3)
    for user_id in ("a", "b", "c"):
        await users.check(user_id)
    clock.now += 61
    for user_id in ("a", "d"):
        await users.check(user_id)
    assert users.known("a") is UserCheck.ACTIVE  # asked again, so not the oldest
    assert list(users._cache) == ["c", "a", "d"]


async def test_many_who_ask_about_one_user_share_one_lookup(users, stub):
    checks = await asyncio.gather(*(users.check("slow-50-ann") for _ in range(20)))
    assert set(checks) == {UserCheck.ACTIVE}
    assert stub.requests == {"slow-50-ann": 1}


async def test_all_who_share_a_lookup_hear_that_there_is_no_answer(users, stub):
    stub.mode = Mode.HANG
    asking = [asyncio.create_task(users.check("ann")) for _ in range(3)]
    for error in await asyncio.gather(*asking, return_exceptions=True):
        assert isinstance(error, UserServiceUnavailable)
    assert stub.requests == {"ann": 1}


async def test_cancelling_one_who_waits_does_not_end_the_lookup(users, stub, until):
    first, second = (asyncio.create_task(users.check("slow-100-ann")) for _ in range(2))
    await until(lambda: stub.requests)
    first.cancel()
    assert await second is UserCheck.ACTIVE
    assert first.cancelled()
    assert stub.requests == {"slow-100-ann": 1}


@pytest.mark.parametrize("mode", [Mode.OK, Mode.HANG])
async def test_a_lookup_that_nobody_waits_for_ends_quietly(users, stub, until, mode):
    stub.mode = mode
    only = asyncio.create_task(users.check("slow-50-ann"))
    await until(lambda: stub.requests)
    only.cancel()
    await until(lambda: not users._flights)
    gc.collect()  # a result that no task took would be reported here, and a warning fails a test
    assert (users.known("slow-50-ann") is UserCheck.ACTIVE) is (mode is Mode.OK)


# The bound on concurrency


async def test_no_more_lookups_go_out_than_there_are_slots(open_client, stub, until):
    users = await open_client(concurrency=3, queue_max=2, total_s=3.0, probe_every_s=4.0)
    stub.mode = Mode.HANG
    asking = [asyncio.create_task(users.check(f"u{n}")) for n in range(5)]
    await until(lambda: len(stub.requests) == 3)
    async with asyncio.timeout(2.0):
        await no_answer(users, "one too many in the queue")
    assert len(stub.requests) == 3
    stub.mode = Mode.OK
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(answer, UserServiceUnavailable) for answer in answers[:3])
    assert users._slots.free == 3
    assert await users.check("later") is UserCheck.ACTIVE


async def test_waiting_for_a_slot_ends(open_client, stub, until):
    users = await open_client(concurrency=1)
    stub.mode = Mode.HANG
    asking = [asyncio.create_task(users.check(f"u{n}")) for n in range(8)]
    async with asyncio.timeout(6.0):  # one time for the slot and one for the answer, not eight
        answers = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(answer, UserServiceUnavailable) for answer in answers)
    assert len(stub.requests) <= 3


async def test_asking_again_takes_a_quarter_of_the_slots_and_leaves_the_rest(open_client, stub, until):
    users = await open_client(concurrency=8, total_s=2.0, probe_every_s=3.0)
    assert users.retry_capacity == 2
    stub.mode = Mode.HANG
    again = [asyncio.create_task(users.check(f"u{n}", again=True)) for n in range(5)]
    await until(lambda: len(stub.requests) == 2)
    assert users.retry_capacity == 0
    stub.mode = Mode.OK
    assert await asyncio.gather(*(users.check(f"new-{n}") for n in range(20))) == [UserCheck.ACTIVE] * 20
    assert set(stub.requests) - {f"new-{n}" for n in range(20)} == {"u0", "u1"}
    for task in again:
        task.cancel()


async def test_a_few_users_that_hang_delay_nobody_else(open_client, stub):
    users = await open_client(concurrency=32, total_s=4.0, probe_every_s=5.0)
    hanging = [asyncio.create_task(users.check(f"slow-60000-{n}")) for n in range(10)]
    checks = await asyncio.gather(*(users.check(f"u{n}") for n in range(500)))
    assert set(checks) == {UserCheck.ACTIVE}
    assert users.breaker is State.CLOSED
    assert not any(task.done() for task in hanging)
    answers = await asyncio.gather(*hanging, return_exceptions=True)
    assert all(isinstance(answer, UserServiceUnavailable) for answer in answers)


# The breaker

ANSWER = "an answer"


@pytest.mark.parametrize(
    ("story", "state"),
    [
        pytest.param([], State.CLOSED, id="a new breaker is closed"),
        pytest.param([(0, "abcde")], State.CLOSED, id="five users at once are not yet a silence"),
        pytest.param([(0, "abcd"), (5, "e")], State.OPEN, id="five users and five seconds open it"),
        pytest.param([(0, "abcde"), (5, "a")], State.OPEN, id="so does one of them after the five seconds"),
        pytest.param([(0, "abcd"), (4.9, "e")], State.CLOSED, id="a little less silence does not"),
        pytest.param([(2, "abcd", 2), (5, "e", 2)], State.OPEN, id="the silence begins when the first of them asked"),
        pytest.param([(1, ANSWER), (2, "abcd", 2), (5.9, "e", 2)], State.CLOSED, id="but not before the last answer"),
        pytest.param([(n, "a") for n in range(100)], State.CLOSED, id="one hanging user never opens it"),
        pytest.param([(n, "abcd") for n in range(100)], State.CLOSED, id="nor do four"),
        pytest.param([(0, "abcd"), (3, ANSWER), (6, "e")], State.CLOSED, id="an answer begins the count again"),
        pytest.param([(0, ANSWER), (60, "abcde")], State.CLOSED, id="a quiet hour before is no silence"),
        pytest.param([(0, "abcde"), (5, "f"), (5.1, ANSWER)], State.CLOSED, id="a late answer closes it"),
        pytest.param([(0, "abcde"), (5, "f"), (6, "g")], State.OPEN, id="a late failure leaves it open"),
        pytest.param(
            [(0, "abcde"), (5, "f"), (6, ANSWER), (7, "abcde"), (11.9, "f")], State.CLOSED, id="it forgets when closed"
        ),
    ],
)
def test_when_the_breaker_opens(clock, story, state):
    breaker = Breaker(users=5, silence_s=5.0, probe_every_s=3.0, clock=clock)
    start = clock.now
    for at, what, *took_s in story:
        clock.now = start + at
        if what is ANSWER:
            breaker.record_answer()
        else:
            for user_id in what:
                breaker.record_failure(user_id, clock.now - sum(took_s))
    assert breaker.state is state
    assert breaker.refuses is (state is State.OPEN)


def test_an_open_breaker_lets_one_probe_through_at_a_time(clock):
    breaker = Breaker(users=1, silence_s=0.0, probe_every_s=3.0, clock=clock)
    assert breaker.admit()
    assert breaker.record_failure("a", clock.now)
    assert not breaker.admit()
    clock.now += 3.0
    assert [breaker.admit() for _ in range(3)] == [True, False, False]
    assert state_of(breaker) is State.HALF_OPEN
    assert not breaker.record_failure("a", clock.now)  # it was open before
    assert state_of(breaker) is State.OPEN
    clock.now += 2.9
    assert not breaker.admit()
    clock.now += 0.2
    assert breaker.admit()
    clock.now += 3.0
    assert breaker.admit()  # the probe before was lost; that does not keep it shut for ever
    assert breaker.record_answer()
    assert state_of(breaker) is State.CLOSED
    assert [breaker.admit() for _ in range(3)] == [True] * 3
    assert not breaker.record_answer()  # it was closed before


async def test_a_dead_service_opens_the_breaker_and_a_probe_closes_it(users, stub, clock):
    told: list[str] = []
    users.on_breaker_closed.append(lambda: told.append("ask again"))
    stub.mode = Mode.ERROR
    with capture_logs() as logs:
        for n, second in enumerate((0, 1, 2, 3, 5)):
            clock.now = 1000.0 + second
            await no_answer(users, f"u{n}")
        assert state_of(users._breaker) is State.OPEN
        assert users.retry_capacity == 0
        stub.mode = Mode.OK
        requests, not_asked = dict(stub.requests), outcome("not_asked")
        for n in range(10):
            await no_answer(users, f"new-{n}")
        assert stub.requests == requests
        assert outcome("not_asked") == not_asked + 10
        assert REGISTRY.get_sample_value("orders_user_breaker_state") == 2
        clock.now += 1.0
        assert users.retry_capacity == 1  # the probe
        answers = await asyncio.gather(*(users.check(f"unknown-{n}") for n in range(5)), return_exceptions=True)
    assert [answer for answer in answers if isinstance(answer, UserCheck)] == [UserCheck.NOT_FOUND]
    assert users.breaker is State.CLOSED
    assert told == ["ask again"]
    assert REGISTRY.get_sample_value("orders_user_breaker_state") == 0
    assert await users.check("new-1") is UserCheck.ACTIVE
    assert [entry["log_level"] for entry in logs if "stamina" not in entry["event"]] == [
        "warning",
        "warning",
        "info",
        "info",
    ]


async def test_users_that_hang_never_open_it_while_others_are_answered(users, stub, clock):
    for n in range(6):
        hanging = asyncio.create_task(users.check(f"slow-60000-{n}"))
        assert await users.check(f"ann-{n}") is UserCheck.ACTIVE
        clock.now += 10
        with pytest.raises(UserServiceUnavailable):
            await hanging
    assert users.breaker is State.CLOSED


def unusable(status: int) -> float:
    return REGISTRY.get_sample_value("orders_user_answers_unusable_total", {"status": str(status)}) or 0.0


@pytest.mark.parametrize("status", [204, 301, 400, 405, 422])
async def test_an_answer_about_one_user_never_opens_it(users, clock, status):
    before = unusable(status)
    with capture_logs() as logs:
        for n in range(43):
            await no_answer(users, f"status-{status}-{n}")
            clock.now += 2
    assert users.breaker is State.CLOSED
    assert unusable(status) == before + 43
    [why] = logs[0]["counts"]
    counts = [entry["counts"] for entry in logs if "counts" in entry]
    assert counts == [{why: 1}, {why: 30}]  # one line a minute
    assert why.startswith(f"status {status}")
    assert await users.check("ann") is UserCheck.ACTIVE


async def test_bodies_that_say_nothing_of_their_user_never_open_it(users, stub, clock):
    before, stub.mode = unusable(200), Mode.GARBAGE
    for n in range(43):
        await no_answer(users, f"u{n}")
        clock.now += 2
    assert users.breaker is State.CLOSED
    assert unusable(200) == before + 43


@pytest.mark.parametrize("status", [401, 403, 407, 408, 429, 500, 503])
async def test_an_answer_that_concerns_all_users_opens_it(users, clock, status):
    with capture_logs() as logs:
        for n in range(6):
            await no_answer(users, f"status-{status}-{n}")
            clock.now += 2
    assert users.breaker is State.OPEN
    whys = [entry["why"] for entry in logs if "why" in entry]
    assert whys
    assert all(why.startswith(f"status {status}") for why in whys)


async def test_an_answer_about_one_user_shows_that_a_dead_service_works_again(users, stub, clock):
    stub.mode = Mode.ERROR
    for n in range(6):
        await no_answer(users, f"u{n}")
        clock.now += 2
    assert state_of(users._breaker) is State.OPEN
    stub.mode = Mode.OK
    await no_answer(users, "status-400")
    assert state_of(users._breaker) is State.CLOSED


async def test_the_order_of_a_good_user_waits_for_no_users_without_a_usable_answer(users, stub, clock, until):
    """Forty-three such users once delayed it by 130 s: the breaker had opened, and each took a probe."""
    bad = {f"status-400-{n}" for n in range(43)}
    answered: list[str] = []
    asking = UserLookups(
        users, bad.__contains__, lambda user_id, _: answered.append(user_id), concurrency=256, clock=clock
    )
    running = asyncio.create_task(asking.run())
    for user_id in sorted(bad):
        asking.ask(user_id)
    await until(lambda: len(asking._again) == len(bad))
    clock.now += 9
    asking._wake.set()
    await until(lambda: all(stub.requests[user_id] == 2 for user_id in bad) and len(asking._again) == len(bad))
    asking.ask("ann")
    await until(lambda: answered)  # at the same time by the clock of the breaker
    assert answered == ["ann"]
    running.cancel()
    await asyncio.wait({running})


async def test_a_full_queue_says_nothing_of_the_service(open_client, stub, clock, until):
    users = await open_client(concurrency=1, queue_max=0, total_s=1.0, probe_every_s=2.0)
    asking = asyncio.create_task(users.check("slow-300-ann"))
    await until(lambda: stub.requests)
    for n in range(10):
        clock.now += 1
        await no_answer(users, f"u{n}")
    assert users.breaker is State.CLOSED
    assert await asking is UserCheck.ACTIVE


# Why there is no usable answer


@pytest.mark.parametrize(
    ("story", "reason"),
    [
        pytest.param([], None, id="nothing has happened"),
        pytest.param([(0, "a"), (1, "b")], None, id="two in a row"),
        pytest.param([(0, "a"), (1, "b"), (2, "c")], "c", id="three in a row"),
        pytest.param([(0, "a"), (5, "a"), (15, "a")], "a", id="of one user, before any answer"),
        pytest.param([(0, ANSWER), (1, "a"), (5, "a"), (15, "a")], None, id="of one user, after an answer"),
        pytest.param([(0, ANSWER), (1, "a"), (5, "b"), (15, "a")], None, id="of two users"),
        pytest.param([(0, ANSWER), (1, "a"), (2, "b"), (3, "c")], "c", id="of three users"),
        pytest.param([(0, "a"), (1, "b"), (2, ANSWER), (3, "c")], None, id="not in a row"),
        pytest.param([(0, "a"), (1, "b"), (2, "c"), (3, ANSWER)], None, id="and an answer ends it"),
        pytest.param([(1, ANSWER), (2, "a", 2), (2, "b", 2), (2, "c", 2)], None, id="overtaken by an answer"),
    ],
)
def test_when_lookups_in_a_row_have_no_answer(clock, story, reason):
    no_answers = NoAnswers(clock=clock)
    start = clock.now
    for at, what, *took_s in story:
        clock.now = start + at
        had_reason = no_answers.reason is not None
        if what is ANSWER:
            assert no_answers.record_answer() is had_reason
        else:
            begins = no_answers.record_no_answer(what, clock.now - sum(took_s), what)
            assert begins is (not had_reason and no_answers.reason is not None)
    assert no_answers.reason == reason


NOT_JSON = ": the body is not a JSON object"


@pytest.mark.parametrize(
    ("head", "body", "why"),
    [
        pytest.param("200 OK", b'{"id": 1}', "status 200: the field status is missing", id="a missing field"),
        pytest.param(
            "200 OK",
            b'{"status": 1}',
            "status 200: the field status is neither text nor true or false",
            id="a number",
        ),
        pytest.param(
            "200 OK\r\nContent-Type: text/html; charset=utf-8",
            b"<html>",
            f"status 200 with text/html{NOT_JSON}",
            id="a page",
        ),
        pytest.param(
            "200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip",
            b"\x1f\x8b",
            f"status 200 with application/json in gzip{NOT_JSON}",
            id="a body that we did not accept",
        ),
        pytest.param(
            "302 Found\r\nLocation: https://sso.example/login?token=secret",
            b"",
            "status 302, a redirect to sso.example",
            id="a sign-in page",
        ),
        pytest.param("422 No", b"", "status 422", id="a status"),
        pytest.param("503 Busy", b"", "status 503", id="an outage"),
    ],
)
async def test_the_reason_stands_in_the_log_after_three_in_a_row(open_client, bytes_server, clock, head, body, why):
    answer = f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    async with bytes_server(answer) as (url, _):
        users = await open_client(url=url)
        with capture_logs() as logs:
            for number in range(6):
                clock.now += 10
                assert users.no_answer == (why if number >= 3 else None)
                await no_answer(users, "ann")
    told = [entry for entry in logs if entry["event"] == "The User Service gives no usable answer; orders wait."]
    assert [entry["why"] for entry in told] == [why]
    assert "secret" not in str(logs)


async def test_a_usable_answer_ends_the_reason(users, stub):
    stub.mode = Mode.GARBAGE
    for _ in range(3):
        await no_answer(users, "ann")
    assert users.no_answer == "status 200 with text/html: the body is not a JSON object"
    stub.mode = Mode.OK
    with capture_logs() as logs:
        assert await users.check("inactive-1") is UserCheck.NOT_ACTIVE
    assert users.no_answer is None
    assert [entry["event"] for entry in logs] == ["The User Service gives usable answers again."]


async def test_a_few_users_without_a_usable_answer_are_no_reason(users):
    assert await users.check("ann") is UserCheck.ACTIVE
    for _ in range(3):
        for user_id in ("status-400-a", "status-422-b"):
            await no_answer(users, user_id)
    assert users.no_answer is None


# Our credential

OAUTH = "ORDERS_USER_SERVICE_OAUTH"


async def test_a_token_file_is_read_once_it_is_there(open_client, bytes_server, tmp_path):
    token_file = tmp_path / "token"
    async with bytes_server(ok(b'{"status": "active"}')) as (url, heads):
        users = await open_client(url=url, token_file=token_file)
        for _ in range(3):
            await no_answer(users, "ann")
        assert users.no_answer == f"the token file {token_file} cannot be read: No such file or directory"
        assert not heads
        token_file.write_text("open-sesame\n")
        assert await users.check("ann") is UserCheck.ACTIVE
        assert b"\r\nAuthorization: Bearer open-sesame\r\n" in heads[0]


async def test_an_access_token_is_requested_once_for_many_lookups(open_client, stub):
    endpoint = TokenEndpoint()
    async with endpoint.serving() as token_url:
        oauth = OAuthClient(token_url=token_url, client_id="orders", client_secret=SecretStr("hidden"), scope="users")
        assert "hidden" not in repr(oauth)
        users = await open_client(oauth=oauth)
        assert await users.check("ann") is UserCheck.ACTIVE
        assert await users.check("bob") is UserCheck.ACTIVE
        assert endpoint.credentials == [("orders", "hidden")]
        assert endpoint.forms == [{"grant_type": "client_credentials", "scope": "users"}]


async def test_without_an_access_token_there_is_no_answer_and_the_reason_names_its_endpoint(open_client, stub):
    endpoint = TokenEndpoint()
    endpoint.answers(401, {"error": "invalid_client"})
    async with endpoint.serving() as token_url:
        oauth = OAuthClient(token_url=token_url, client_id="orders", client_secret=SecretStr("hidden"))
        users = await open_client(oauth=oauth)
        for number in range(3):
            await no_answer(users, f"u{number}")
    assert not stub.requests
    host = token_url.split("/")[2]
    assert users.no_answer == (
        f"the token endpoint at {host} returned no access token: status 401 with application/json, error invalid_client"
    )


async def test_a_ca_file_and_a_client_certificate_are_used(open_client, tmp_path):
    authority = CertificateAuthority(tmp_path)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(*authority.issue("server"))
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.load_verify_locations(authority.file)
    cert_file, key_file = authority.issue("orders")
    settings = Settings(
        user_service_ssl_cafile=authority.file, user_service_ssl_certfile=cert_file, user_service_ssl_keyfile=key_file
    )
    async with TokenEndpoint().serving(server_context) as url:
        context = CallPolicy.from_settings(settings).ssl_context
        oauth = OAuthClient(token_url=url, client_id="orders", client_secret=SecretStr("hidden"))
        users = await open_client(url=url.replace("127.0.0.1", "localhost"), oauth=oauth, ssl_context=context)
        assert await users.check("ann") is UserCheck.NOT_FOUND  # the endpoint has no users, but TLS has worked
        strangers = await open_client(url=url)
        for _ in range(3):
            await no_answer(strangers, "ann")
    assert str(strangers.no_answer).startswith("the connection failed: the certificate is not trusted (")


@pytest.mark.parametrize("mode", [Mode.UNAUTHORIZED, Mode.FORBIDDEN])
async def test_a_refused_credential_makes_us_not_ready_and_back(users, stub, clock, mode):
    assert users.problem is None
    stub.mode = mode
    with capture_logs() as logs:
        for n in range(4):
            await no_answer(users, f"u{n}")
    assert [(entry["log_level"], entry["status"]) for entry in logs] == [("error", int(mode))]
    assert users.problem == f"the User Service refuses our credential with status {mode}"
    stub.mode = Mode.OK
    await users.check("ann")
    assert users.problem is not None  # one answer among refusals: still to be looked at
    clock.now += 5
    assert users.problem is None
    with capture_logs() as logs:
        await users.check("bob")
        await users.check("cid")
    assert [entry["log_level"] for entry in logs] == ["info"]


async def test_one_forbidden_user_among_others_says_nothing_about_our_credential(users, stub):
    await users.check("ann")
    stub.mode = Mode.FORBIDDEN
    for _ in range(3):
        await no_answer(users, "bob")
    assert (users.problem, users.no_answer) == (None, None)
    for user_id in ("cid", "dan"):
        await no_answer(users, user_id)
    assert users.problem is None
    assert "status 403" in str(users.no_answer)


@pytest.mark.parametrize(
    ("story", "problem"),
    [
        pytest.param([], False, id="nothing has happened"),
        pytest.param([(0, 401)], True, id="refused"),
        pytest.param([(0, 401), (3600, None)], True, id="refused an hour ago, and no answer since"),
        pytest.param([(0, 401), (1, 0)], True, id="answered just after"),
        pytest.param([(0, 401), (1, 0), (5, None)], False, id="answered, and calm since"),
        pytest.param([(0, 401), (1, 0), (2, 403), (3, 0), (6, None)], True, id="some are refused and some answered"),
        pytest.param([(0, 401), (9, 0)], False, id="answered after a long time"),
    ],
)
def test_when_a_refusal_is_over(clock, story, problem):
    refusals = Refusals(calm_s=5.0, clock=clock)
    start = clock.now
    for at, status in story:
        clock.now = start + at
        if status:
            refusals.record_refusal(status)
        elif status == 0:
            refusals.record_answer()
    assert (refusals.reason is not None) is problem


async def test_the_token_goes_into_the_header_and_nowhere_else(open_client, bytes_server):
    policy = CallPolicy(url="http://127.0.0.1:1", token=SecretStr("open-sesame"))
    assert "open-sesame" not in repr(policy)
    async with bytes_server(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n") as (url, heads):
        users = await open_client(url=url, token=policy.token)
        with capture_logs() as logs, pytest.raises(UserServiceUnavailable) as refused:
            await users.check("ann")
    assert b"\r\nAuthorization: Bearer open-sesame\r\n" in heads[0]
    assert "open-sesame" not in f"{logs} {refused.value!r} {users.problem}"


async def test_a_redirect_is_not_followed_and_a_cookie_not_kept(open_client, bytes_server, stub):
    answer = b"HTTP/1.1 307 Go\r\nLocation: /elsewhere\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"
    async with bytes_server(answer) as (url, heads):
        users = await open_client(url=url)
        await no_answer(users, "ann")
        await no_answer(users, "bob")
    assert [head.split(b" ")[1] for head in heads] == [b"/v1/users/ann", b"/v1/users/bob"]
    assert b"cookie" not in b"".join(heads).lower()


@pytest.mark.parametrize(
    "wrong",
    [
        {"token": SecretStr("a\nb")},
        {"token": SecretStr("ü")},
        {"url": "http://me:secret@127.0.0.1", "token": SecretStr("t")},
        {"token": SecretStr("t"), "token_file": Path("token")},
        {
            "token_file": Path("token"),
            "oauth": OAuthClient(token_url="http://127.0.0.1", client_id="orders", client_secret=SecretStr("s")),
        },
    ],
)
def test_credentials_that_cannot_work_are_refused_at_the_start(wrong):
    with pytest.raises(SetupError, match="ORDERS_USER_SERVICE_TOKEN") as refused:
        CallPolicy(**({"url": "http://127.0.0.1"} | wrong))
    assert "secret" not in str(refused.value)


def test_probes_are_further_apart_than_a_lookup_takes():
    with pytest.raises(ValueError, match="must be further apart"):
        CallPolicy(url="http://127.0.0.1", probe_every_s=2.0, total_s=2.0)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"user_service_oauth_token_url": "https://login.example/token"},
            f"{OAUTH}_TOKEN_URL needs {OAUTH}_CLIENT_ID and {OAUTH}_CLIENT_SECRET",
        ),
        (
            {"user_service_oauth_client_id": "orders", "user_service_oauth_client_secret": SecretStr("hidden")},
            f"{OAUTH}_CLIENT_ID, {OAUTH}_CLIENT_SECRET needs {OAUTH}_TOKEN_URL",
        ),
        (
            {"user_service_oauth_scope": "users"},
            f"{OAUTH}_SCOPE needs {OAUTH}_TOKEN_URL and {OAUTH}_CLIENT_ID and {OAUTH}_CLIENT_SECRET",
        ),
        (
            {"user_service_oauth_audience": "users"},
            f"{OAUTH}_AUDIENCE needs {OAUTH}_TOKEN_URL and {OAUTH}_CLIENT_ID and {OAUTH}_CLIENT_SECRET",
        ),
        (
            {"user_service_ssl_keyfile": "orders.key"},
            "ORDERS_USER_SERVICE_SSL_KEYFILE is set without ORDERS_USER_SERVICE_SSL_CERTFILE: set both",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_one_line_that_names_them(values, line):
    with pytest.raises(SetupError) as refused:
        CallPolicy.from_settings(Settings(**values))
    assert str(refused.value) == line


def test_the_policy_comes_from_the_settings():
    settings = Settings(
        user_service_url="http://users.example/api/",
        user_service_path="/people/{id}",
        user_service_field="state",
        user_service_active="Enabled",
        user_service_not_found="404,422",
        user_service_oauth_token_url="https://login.example/token",
        user_service_oauth_client_id="orders",
        user_service_oauth_client_secret=SecretStr("s"),
        user_service_oauth_client_auth="post",
        user_service_oauth_scope="users",
        user_service_oauth_audience="https://users.example",
        user_service_concurrency=8,
        user_cache_s=20.0,
    )
    assert CallPolicy.from_settings(settings) == CallPolicy(
        url="http://users.example/api",
        path="/people/{id}",
        field="state",
        active=frozenset({"enabled"}),
        not_found=frozenset({404, 422}),
        oauth=OAuthClient(
            token_url="https://login.example/token",
            client_id="orders",
            client_secret=SecretStr("s"),
            scope="users",
            audience="https://users.example",
            in_body=True,
        ),
        concurrency=8,
        cache_s=20.0,
    )


# The end


async def test_closing_with_lookups_in_flight_leaves_nothing_behind(url, stub, clock, until):
    stub.mode = Mode.HANG
    before = asyncio.all_tasks()
    async with UserClient(CallPolicy(url=url, concurrency=2), clock=clock) as users:
        asking = [asyncio.create_task(users.check(f"u{n}")) for n in range(4)]
        await until(lambda: len(stub.requests) == 2)
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(answer, UserServiceUnavailable) for answer in answers)
    await no_answer(users, "later")
    await users.close()  # a second time does nothing
    await until(lambda: not {task for task in asyncio.all_tasks() - before if "user lookup" in task.get_name()})
    assert not users._flights
    gc.collect()
    assert REGISTRY.get_sample_value("orders_user_lookups_in_flight") == 0


async def test_the_mode_can_be_switched_over_http_while_lookups_wait(open_client, stub, url, until):
    users = await open_client(total_s=3.0, probe_every_s=4.0)
    async with ClientSession() as http:
        await (await http.put(f"{url}/mode", json={"mode": "500"})).read()
        await no_answer(users, "ann")
        await (await http.put(f"{url}/mode", json={"mode": "ok"})).read()
    assert await users.check("ann", again=True) is UserCheck.ACTIVE
