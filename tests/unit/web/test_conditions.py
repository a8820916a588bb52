"""`If-Match` and `If-None-Match` as RFC 9110 defines them, also as proxies change them."""

import pytest

from tests.support.copies import two_servers
from tests.support.samples import ORDER_ID, create, pay
from tests.support.shop import ORDER, PAYMENT, SHIPMENT

HERE = f"/v1/orders/{ORDER_ID}"
PAY = {**PAYMENT, "amount": 3800}
BRIEFLY = {"Prefer": "respond-async"}
MANY = ", ".join(f'"{number}"' for number in range(1, 900))


@pytest.fixture
async def shop(tmp_path):
    """An order at version 1."""
    async with two_servers(tmp_path) as (world, http, other):
        world.commands.append(create)
        assert world.decide() == ["OrderCreated"]
        world.project()
        yield world, http, other


async def paid(shop, tag):
    """Pay under a condition; return the status and the expected version of the command, if one was sent."""
    world, http, _ = shop
    answer = await http.ask("POST", f"{HERE}/pay", PAY, If_Match=tag, Idempotency_Key="k", **BRIEFLY)
    if answer.status != 202:
        return answer.status, None
    world.decide()
    world.project()
    answer = await http.ask("POST", f"{HERE}/pay", PAY, If_Match=tag, Idempotency_Key="k")
    (_, sent) = world.commands
    return answer.status, sent.expected_version


@pytest.mark.parametrize(
    ("tag", "version"),
    [
        pytest.param('"1"', 1, id="a version"),
        pytest.param('W/"1"', 1, id="a weakened version"),
        pytest.param('"7", "1"', 1, id="one of two"),
        pytest.param('"1-gzip", W/"1","x"', 1, id="the only version of a list"),
        pytest.param(' , "1" ,, "x",', 1, id="empty members"),
        pytest.param('"a,b", "1"', 1, id="a comma in a tag"),
        pytest.param(MANY, 1, id="all that fit into a header"),
        pytest.param("*", None, id="any"),
    ],
)
async def test_a_list_matches_if_one_member_does(shop, tag, version):
    assert await paid(shop, tag) == (200, version)


@pytest.mark.parametrize(
    ("tag", "version"),
    [
        pytest.param('"2"', 2, id="another version"),
        pytest.param('W/"2"', 2, id="another one, weakened"),
        pytest.param('"2", "3"', 2, id="other versions"),
        pytest.param('"0"', 0, id="no version"),
        pytest.param('"999999999"', 999_999_999, id="a version that no order has"),
        pytest.param('"01"', None, id="a version with a nought before it"),
        pytest.param('"1-gzip"', None, id="a tag that a proxy has changed"),
        pytest.param('"abc"', None, id="a word"),
        pytest.param('""', None, id="an empty tag"),
        pytest.param('"1234567890"', None, id="ten digits"),
        pytest.param('"*"', None, id="an asterisk in quotes"),
        pytest.param('"é"', None, id="a letter that is not ASCII"),
    ],
)
async def test_a_well_formed_tag_that_does_not_match_is_412(shop, tag, version):
    assert await paid(shop, tag) == (412, version)


@pytest.mark.parametrize(
    "tag", ["1", '"1', '1"', 'w/"1"', "W/1", '"1" "1"', '*, "1"', '"1", *', '"1";', "'1'", "", ",", 'W/ "1"', '"1""2"']
)
async def test_a_malformed_tag_is_400(shop, tag):
    world, http, _ = shop
    answer = await http.ask("POST", f"{HERE}/pay", PAY, If_Match=tag, **BRIEFLY)
    assert (answer.status, answer.body["errors"][0]["pointer"]) == (400, "If-Match")
    assert len(world.commands) == 1


async def test_a_repeat_keeps_the_version_that_it_had_first(shop):
    """Another version would make another command of it."""
    world, http, other = shop
    key = {"Idempotency_Key": "k", "If_Match": '"1", "2"', "Prefer": "wait=30"}
    asking = http.asking("POST", f"{HERE}/pay", PAY, **key)
    await world.sent(2)
    again = http.asking("POST", f"{HERE}/pay", PAY, **key)
    assert world.decide() == ["OrderPaid"]
    world.project()
    assert [(await each).status for each in (asking, again)] == [200, 200]
    answers = [await each.ask("POST", f"{HERE}/pay", PAY, **key) for each in (http, other)]
    assert [(answer.status, answer.headers["Idempotency-Replayed"]) for answer in answers] == [(200, "true")] * 2
    assert len(world.commands) == 2


async def test_a_list_is_for_the_version_that_the_order_has(shop):
    world, http, _ = shop
    world.commands.append(pay)
    assert world.decide() == ["OrderPaid"]
    world.project()
    asking = http.asking("POST", f"{HERE}/ship", SHIPMENT, If_Match='"3", "2", "1"', Prefer="wait=30")
    await world.sent(3)
    assert world.commands[2].expected_version == 2
    assert world.decide() == ["OrderShipped"]
    world.project()
    assert (await asking).status == 200


async def test_views_that_are_behind_choose_the_next_version_of_the_list(shop):
    world, http, _ = shop
    world.commands.append(pay)
    assert world.decide() == ["OrderPaid"]
    asking = http.asking("POST", f"{HERE}/ship", SHIPMENT, If_Match='"2", "4"', Prefer="wait=30")
    await world.sent(3)
    assert world.decide() == ["OrderShipped"]
    world.project()
    assert (await asking).status == 200


async def test_a_create_needs_no_order_at_version_1(shop):
    world, http, _ = shop
    answer = await http.ask("POST", "/v1/orders", ORDER, If_Match='"x"', **BRIEFLY)
    assert (answer.status, answer.body["type"]) == (412, "/problems/version_conflict")
    assert (await http.ask("POST", "/v1/orders", ORDER, If_Match='"0"', **BRIEFLY)).status == 202
    assert world.commands[1].expected_version == 0


@pytest.mark.parametrize(
    ("tag", "status"),
    [
        pytest.param('"1"', 304, id="the version"),
        pytest.param('W/"1"', 304, id="the version, weakened"),
        pytest.param('"7", W/"1"', 304, id="one of two"),
        pytest.param("*", 304, id="any"),
        pytest.param('"1-gzip"', 200, id="a tag that a proxy has changed"),
        pytest.param('"2"', 200, id="another version"),
        pytest.param('"01"', 200, id="a nought before it"),
        pytest.param('"*"', 200, id="an asterisk in quotes"),
        pytest.param("1", 200, id="malformed"),
        pytest.param('"1" and more', 200, id="malformed behind the version"),
    ],
)
async def test_what_the_caller_has_is_not_sent_again(shop, tag, status):
    _, http, _ = shop
    async with http.stream(HERE, If_None_Match=tag) as answer:
        assert answer.status == status
