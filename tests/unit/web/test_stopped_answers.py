"""What HTTP says of an order whose views are stopped: 503 where it cannot say that something does not exist."""

import pytest

from tests.support.copies import two_servers
from tests.support.event_log import EVENTS, REJECTIONS
from tests.support.samples import ORDER_ID, create

HERE = f"/v1/orders/{ORDER_ID}"
BEFORE = "2020-01-01T00:00:00Z"
COPY = f"copy_id=7-{'0' * 32}"


@pytest.fixture
async def shop(tmp_path):
    async with two_servers(tmp_path) as (world, server, _):
        world.commands.append(create)
        assert world.decide() == ["OrderCreated"]
        world.project()
        yield world, server


@pytest.mark.parametrize(
    ("stopped", "path", "status"),
    [
        pytest.param(EVENTS, HERE, 200, id="an order is shown as it last was"),
        pytest.param(EVENTS, f"{HERE}?version=1", 200, id="a version that is there"),
        pytest.param(EVENTS, f"{HERE}?version=2", 503, id="a version that may be in the stopped partition"),
        pytest.param(None, f"{HERE}?version=2", 404, id="a version that is not there"),
        pytest.param(EVENTS, f"{HERE}?at={BEFORE}", 404, id="a time before the order"),
        pytest.param(EVENTS, "/v1/orders/unknown", 503, id="an order that may exist"),
        pytest.param(REJECTIONS, "/v1/orders/unknown", 404, id="no rejection makes an order"),
        pytest.param(EVENTS, f"{HERE}/commands/unknown", 503, id="a command that may be accepted"),
        pytest.param(REJECTIONS, f"{HERE}/commands/unknown", 503, id="a command that may be refused"),
        pytest.param(REJECTIONS, f"{HERE}/commands/{create.command_id}", 200, id="a command that was accepted"),
        pytest.param(None, f"{HERE}/commands/unknown", 404, id="a command that was never sent"),
        pytest.param(EVENTS, f"{HERE}/commands/unknown?{COPY}", 503, id="a copy that may be accepted"),
        pytest.param(REJECTIONS, f"{HERE}/commands/unknown?{COPY}", 503, id="a copy that may be refused"),
        pytest.param(None, f"{HERE}/commands/unknown?{COPY}", 202, id="a copy that was never sent"),
    ],
)
async def test_a_stopped_partition_makes_503_of_404_and_202_where_the_answer_may_be_in_it(shop, stopped, path, status):
    world, server = shop
    if stopped is not None:
        world.stop(stopped)
    answer = await server.ask("GET", path)
    assert answer.status == status
    if status == 503:
        assert (answer.body["type"], answer.headers["Retry-After"]) == ("/problems/views_not_ready", "30")
