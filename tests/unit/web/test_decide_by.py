"""`X-Decide-By`: until when a command over HTTP may be decided, as `decide_by` of the SDK."""

from datetime import timedelta

import pytest

from tests.support.copies import two_servers
from tests.support.samples import LATER, NOW, ORDER_ID, create
from tests.support.shop import ORDER, PAYMENT

PAY = {**PAYMENT, "amount": 3800}
PAY_PATH = f"/v1/orders/{ORDER_ID}/pay"


@pytest.fixture
async def shop(tmp_path):
    async with two_servers(tmp_path) as (world, http, _):
        yield world, http


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/orders", ORDER),
        ("PATCH", f"/v1/orders/{ORDER_ID}", {"tax": 1}),
        ("DELETE", f"/v1/orders/{ORDER_ID}", None),
        ("POST", PAY_PATH, PAY),
    ],
)
async def test_a_command_carries_the_time_by_which_it_must_be_decided(shop, method, path, body):
    world, http = shop
    await http.ask(method, path, body, Prefer="respond-async", X_Decide_By="2026-01-05T11:00:00.5+01:00")
    await http.ask(method, path, body, Prefer="respond-async")
    assert [command.decide_by for command in world.commands] == [LATER + timedelta(seconds=0.5), None]


async def test_a_command_decided_too_late_is_refused_and_a_later_time_tries_it_again(shop):
    world, http = shop
    world.commands.append(create)
    waiting = http.asking("POST", PAY_PATH, PAY, Idempotency_Key="k", X_Decide_By=NOW.isoformat())
    await world.sent(2)
    assert world.decide(now=LATER) == ["OrderCreated", "deadline_passed"]
    world.project()
    late = await waiting
    assert (late.status, late.body["type"]) == (504, "/problems/deadline_passed")
    waiting = http.asking("POST", PAY_PATH, PAY, Idempotency_Key="k", X_Decide_By=LATER.isoformat())
    await world.sent(3)
    assert world.decide(now=LATER) == ["OrderPaid"]
    world.project()
    assert (await waiting).status == 200


@pytest.mark.parametrize("later", [{}, {"X_Decide_By": (LATER + timedelta(hours=1)).isoformat()}])
async def test_a_later_decide_by_is_sent_while_the_earlier_copy_is_undecided(shop, later):
    world, http = shop
    world.commands.append(create)
    waiting = [http.asking("POST", PAY_PATH, PAY, Idempotency_Key="k", X_Decide_By=NOW.isoformat())]
    await world.sent(2)
    waiting.append(http.asking("POST", PAY_PATH, PAY, Idempotency_Key="k", **later))
    await world.sent(3)
    assert world.decide(now=LATER) == ["OrderCreated", "deadline_passed", "OrderPaid"]
    world.project()
    assert [(await answer).status for answer in waiting] == [200, 200]


async def test_a_later_time_is_sent_behind_the_same_command_that_is_on_its_way(shop, monkeypatch):
    world, http = shop
    world.commands.append(create)
    may_arrive = world.hold_answers(monkeypatch)
    waiting = [http.asking("POST", PAY_PATH, PAY, Idempotency_Key="k", X_Decide_By=NOW.isoformat())]
    await world.sent(2)
    waiting += [http.asking("POST", PAY_PATH, PAY, Idempotency_Key="k", X_Decide_By=LATER.isoformat()) for _ in "ab"]
    assert world.decide(now=LATER) == ["OrderCreated", "deadline_passed"]
    world.project()
    may_arrive.set()
    await world.sent(3)
    assert world.decide(now=LATER) == ["OrderPaid"]
    world.project()
    assert [(await answer).status for answer in waiting[1:]] == [200, 200]
    assert (await waiting[0]).status in (200, 504)  # 504 if it hears of its refusal before the other copy is sent
    assert len(world.commands) == 3


async def test_a_later_time_that_cannot_be_sent_takes_no_address_from_the_caller_before(shop, monkeypatch):
    world, http = shop
    world.commands.append(create)
    ask = {"Idempotency_Key": "k", "X_Decide_By": NOW.isoformat()}
    waiting = http.asking("POST", PAY_PATH, PAY, **ask, Prefer="wait=2")
    patient = http.asking("POST", PAY_PATH, PAY, **ask, Prefer="wait=30")
    await world.sent(2)
    with monkeypatch.context() as away:
        world.fail_to_send(away)
        later = await http.ask("POST", PAY_PATH, PAY, Idempotency_Key="k", X_Decide_By=LATER.isoformat())
        assert later.status == 503
    undecided = await waiting
    assert (undecided.status, undecided.body.get("copy_id", "none")[:2]) == (202, "1-")
    assert (await http.ask("GET", undecided.headers["Location"])).status == 202
    assert world.decide() == ["OrderCreated", "OrderPaid"]
    world.project()
    answer = await patient
    assert (answer.status, answer.headers.get("Idempotency-Replayed")) == (200, None)


async def test_a_later_time_that_could_not_be_sent_is_sent_when_it_is_asked_for_again(shop, monkeypatch):
    world, http = shop
    world.commands.append(create)
    waiting = [http.asking("POST", PAY_PATH, PAY, Idempotency_Key="k", X_Decide_By=NOW.isoformat(), Prefer="wait=30")]
    await world.sent(2)
    ask = {"Idempotency_Key": "k", "X_Decide_By": LATER.isoformat(), "Prefer": "wait=30"}
    with monkeypatch.context() as away:
        world.fail_to_send(away)
        assert (await http.ask("POST", PAY_PATH, PAY, **ask)).status == 503
    waiting.append(http.asking("POST", PAY_PATH, PAY, **ask))
    await world.sent(3)
    assert world.commands[2].decide_by == LATER
    assert world.decide(now=LATER) == ["OrderCreated", "deadline_passed", "OrderPaid"]
    world.project()
    assert [(await answer).status for answer in waiting] == [200, 200]


async def test_an_earlier_time_joins_the_same_command_that_is_undecided(shop):
    world, http = shop
    world.commands.append(create)
    await http.ask("POST", PAY_PATH, PAY, Idempotency_Key="k", Prefer="respond-async", X_Decide_By=LATER.isoformat())
    here = {"Idempotency_Key": "k", "Prefer": "respond-async", "X_Decide_By": NOW.isoformat()}
    assert (await http.ask("POST", PAY_PATH, PAY, **here)).status == 202
    assert len(world.commands) == 2


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("soon", id="a word"),
        pytest.param("1767603600", id="a number"),
        pytest.param("2026-01-05 09:00:00Z", id="a space for T"),
        pytest.param("2026-01-05t09:00:00Z", id="a small t"),
        pytest.param("2026-01-05T09:00:00z", id="a small z"),
        pytest.param("2026-01-05T09:00:00+0100", id="an offset without a colon"),
        pytest.param("2026-01-05T09:00:00.0000000001Z", id="ten digits of a second"),
        pytest.param("2026-01-05T09:00:00", id="no offset"),
        pytest.param("2026-02-30T09:00:00Z", id="30 February"),
        pytest.param("9999-12-31T23:59:59-02:00", id="the year 10000"),
        pytest.param("0001-01-01T00:00:00+02:00", id="the year 0"),
    ],
)
async def test_what_is_not_a_time_is_refused(shop, text):
    world, http = shop
    answer = await http.ask("POST", PAY_PATH, PAY, X_Decide_By=text)
    assert (answer.status, answer.body["errors"][0]["pointer"]) == (400, "X-Decide-By")
    assert text not in str(answer.body)
    assert world.commands == []
