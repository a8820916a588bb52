"""Large bodies take memory and time: few are received at once, few of them from one subject, and each counts more."""

import asyncio
from contextlib import ExitStack

import pytest

from order_service.web.access.rate_limit import LARGE_BYTES, LARGE_MAX, Limits
from order_service.web.http.problems import Problem, Trouble
from tests.support.copies import two_servers

CANCEL = "/v1/orders/order-1/cancel"
JSON = {"Content_Type": "application/json", "Prefer": "respond-async"}


def test_a_subject_has_a_quarter_of_the_slots():
    limits = Limits(50.0)
    with ExitStack() as stack:
        for number in range(LARGE_MAX):
            stack.enter_context(limits.large_body(f"user:{number % 4}"))
        for subject in ("user:0", "user:another"):
            with pytest.raises(Problem) as caught, limits.large_body(subject):
                pass
            assert (caught.value.kind, caught.value.headers) == (Trouble.TOO_MANY_REQUESTS, {"Retry-After": "1"})
    with limits.large_body("user:0"):
        pass


def send(limits, count):
    """Use the tokens of a request with a large body."""
    limits.take("user:dana")
    limits.take_parts("user:dana", count)


@pytest.mark.parametrize(
    ("per_s", "count", "times"),
    [
        pytest.param(50.0, 9, 10, id="ten of nine parts"),
        pytest.param(50.0, 80, 1, id="one of the largest"),
        pytest.param(40.0, 80, 1, id="one that needs a full bucket"),
        pytest.param(30.0, 80, 1, id="one larger than a bucket"),
        pytest.param(1.0, 80, 1, id="one, however low the rate is"),
        pytest.param(0.1, 1, 1, id="a small one, however low the rate is"),
    ],
)
def test_a_large_body_counts_as_several_requests(clock, per_s, count, times):
    limits = Limits(per_s, clock)
    for _ in range(times):
        send(limits, count)
    refused = 0
    while True:
        try:
            send(limits, count)
        except Problem as problem:
            refused += 1
            clock.now += int(problem.headers["Retry-After"])
        else:
            break
    assert 1 <= refused <= 2  # a request that is refused for its body has used its own token


async def test_too_many_large_bodies_are_refused_while_small_ones_pass(tmp_path):
    may_end = asyncio.Event()

    async def slowly():
        yield b'{"note": "' + b"n" * LARGE_BYTES
        await may_end.wait()
        yield b'"}'

    large = b'{"note": "' + b"n" * LARGE_BYTES + b'"}'
    async with two_servers(tmp_path) as (_, http, _):
        waiting = [http.asking("POST", CANCEL, slowly(), **JSON) for _ in range(LARGE_MAX // 4)]
        async with asyncio.timeout(30):
            while (answer := await http.ask("POST", CANCEL, large, **JSON)).status == 422:
                pass
        assert (answer.status, answer.headers["Retry-After"], answer.headers["Connection"]) == (429, "1", "close")
        assert (await http.ask("POST", CANCEL, b"{}", **JSON)).status == 202
        may_end.set()
        assert [(await each).status for each in waiting] == [422] * len(waiting)
        assert (await http.ask("POST", CANCEL, large, **JSON)).status == 422
