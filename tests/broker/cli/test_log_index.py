"""`timeline` and the answer to a repeat, found by the views: also if these are behind, empty or away."""

import asyncio
import signal
from uuid import uuid4

import pytest
from sqlalchemy import delete
from sqlalchemy.engine import make_url

from order_service.kafka.reader import Reader
from order_service.sdk import Accepted, OrderCommands, Refused
from order_service.sdk.log_index import IndexEntries
from order_service.sdk.testing import create_order, pay_order
from order_service.views.log_index import ViewsIndex
from order_service.views.tables import open_database, order_events, refusals
from tests.support.command_line import CommandLine
from tests.support.service import histories, until

PAY = ["--payment-id", "payment-1", "--amount", "2500", "--currency", "EUR"]
OTHERS = 600
"""Orders of others, five events each, between the order and the ends of its partition."""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('views')}/views.db"


@pytest.fixture(scope="module")
def early(service):
    """An order whose records are followed by many of others."""
    order_id = f"order-early-{uuid4().hex[:8]}"
    cli = CommandLine(service.environment)
    cli("create", order_id, "--user", "dana", "--currency", "EUR", "--line", "mug-blue:2:1250", "--command-id", "first")
    cli("pay", order_id, *PAY[:3], "1", *PAY[4:], "--command-id", "too-little", code=1)
    cli("pay", order_id, *PAY, "--command-id", "second")
    commands = histories(OTHERS)
    service.send(commands)
    service.wait_outcomes(len(commands) + 3)
    return order_id


@pytest.fixture(scope="module")
def projected(service, early, url):
    """Views that have all that came before, and whose projector has ended."""
    projector = service.start_worker(module=("order_service.cli", "projector"), ORDERS_DATABASE_URL=url).wait_ready()
    until(lambda: "\norders_views_lag_offsets 0.0\n" in projector.admin("/metrics")[1], "the views have all")
    projector.send(signal.SIGTERM)
    projector.process.wait(30)
    return early


@pytest.fixture
def cli(service, url):
    return CommandLine(service.environment | {"ORDERS_DATABASE_URL": url})


def steps(cli, order_id, **more):
    return [(step["type"], step["version"]) for step in cli.json("timeline", order_id, **more)]


def settings_of(service, url):
    return service.settings().model_copy(update={"database_url": type(service.settings().database_url)(url)})


async def read_by_index(settings, order_id):
    """Return how many records are read for an order, and how many its partition has."""
    async with Reader(settings) as reader:
        entries = await ViewsIndex(settings).find([order_id])
        ends = await reader.ends(await reader.partitions_of(order_id, reader.names.events, reader.names.rejections))
        assert entries is not None
        ranges = entries.ranges(ends)
        assert ranges is not None
        read = [record async for record in reader.within(ranges)]
    assert [record.offset for record in read if record.topic == reader.names.events] == sorted(
        {record.offset for record in read if record.topic == reader.names.events}
    )
    return len(read), sum(ends.values())


def test_only_the_records_of_the_order_and_few_of_others_are_read(service, projected, url):
    read, total = asyncio.run(read_by_index(settings_of(service, url), projected))
    assert total > OTHERS
    assert 3 <= read < total / 5


def test_a_timeline_by_the_views_is_that_of_the_log(service, projected, cli):
    assert cli.json("timeline", projected) == CommandLine(service.environment).json("timeline", projected)
    assert steps(cli, projected) == [("OrderCreated", 1), ("Rejection", 1), ("OrderPaid", 2)]


def test_what_the_views_lack_yet_is_read_from_the_log(projected, cli):
    cli("ship", projected, "--carrier", "DHL", "--tracking-number", "JD0146")
    assert steps(cli, projected)[-1] == ("OrderShipped", 3)
    new = f"order-{uuid4().hex[:8]}"
    cli("create", new, "--user", "dana", "--currency", "EUR", "--line", "mug-blue:2:1250")
    assert steps(cli, new) == [("OrderCreated", 1)]


def test_repeats_are_answered_by_the_views(projected, cli):
    [paid] = cli.json("pay", projected, *PAY, "--command-id", "second")
    assert (paid["outcome"], paid["repeated"], paid["event"]["version"]) == ("accepted", True, 2)
    [refused] = cli.json("pay", projected, *PAY[:3], "1", *PAY[4:], "--command-id", "too-little", code=1)
    assert (refused["outcome"], refused["repeated"]) == ("refused", True)
    assert refused["rejection"]["reason"] == "payment_mismatch"


async def test_a_client_of_the_sdk_finds_the_outcomes_of_repeats_by_an_index(service, projected, url):
    settings = settings_of(service, url)
    async with OrderCommands(actor="service:shop", settings=settings, index=ViewsIndex(settings)) as orders:
        order_id = f"order-{uuid4().hex[:8]}"
        first = await orders.send(create_order(order_id))
        refused = await orders.send(pay_order(order_id, amount=1))
        assert isinstance(first, Accepted)
        assert isinstance(refused, Refused)
        assert await orders.send(create_order(order_id)) == Accepted(first.record, repeated=True)
        assert await orders.send(pay_order(order_id, amount=1)) == Refused(refused.record, repeated=True)


class GrowingIndex(ViewsIndex):
    """An index whose log has grown, and the views with it, when it answers."""

    def __init__(self, settings, grow):
        super().__init__(settings)
        self.grow = grow
        self.ranges = []

    async def find(self, order_ids):
        await asyncio.to_thread(self.grow)
        entries = await super().find(order_ids)
        assert entries is not None
        index = self

        class Kept(IndexEntries, frozen=True):
            def ranges(self, ends):
                index.ranges.append(IndexEntries.ranges(self, ends))
                return index.ranges[-1]

        return Kept(entries.offsets, entries.positions)


async def test_views_that_grow_while_they_are_asked_are_used(service, projected, tmp_path):
    url = f"sqlite:///{tmp_path}/growing.db"
    projector = service.start_worker(module=("order_service.cli", "projector"), ORDERS_DATABASE_URL=url).wait_ready()
    settings = settings_of(service, url)

    def grow():
        """Write to all partitions, and wait until the views have it."""
        commands = histories(8, first=100_000)
        before = service.outcome_count()
        service.send(commands)
        service.wait_outcomes(before + len(commands))
        until(lambda: "\norders_views_lag_offsets 0.0\n" in projector.admin("/metrics")[1], "the views have all")

    index = GrowingIndex(settings, grow)
    async with OrderCommands(actor="service:shop", settings=settings, index=index) as orders:
        order_id = f"order-{uuid4().hex[:8]}"
        first = await orders.send(create_order(order_id))
        assert isinstance(first, Accepted)
        assert await orders.send(create_order(order_id), wait_s=60) == Accepted(first.record, repeated=True)
    assert index.ranges
    assert None not in index.ranges
    projector.send(signal.SIGTERM)
    await asyncio.to_thread(projector.process.wait, 30)


def test_views_that_lack_rows_hide_no_order_and_no_outcome(projected, cli, url):
    engine = open_database(make_url(url), writes=True)
    with engine.begin() as connection:
        kept = connection.execute(order_events.select().where(order_events.c.order_id == projected)).all()
        connection.execute(delete(order_events).where(order_events.c.order_id == projected))
        lost = connection.execute(refusals.select().where(refusals.c.order_id == projected)).all()
        connection.execute(delete(refusals).where(refusals.c.order_id == projected))
    try:
        assert steps(cli, projected)[:3] == [("OrderCreated", 1), ("Rejection", 1), ("OrderPaid", 2)]
        [paid] = cli.json("pay", projected, *PAY, "--command-id", "second")
        assert (paid["outcome"], paid["repeated"]) == ("accepted", True)
    finally:
        with engine.begin() as connection:
            connection.execute(order_events.insert(), [row._asdict() for row in kept])
            connection.execute(refusals.insert(), [row._asdict() for row in lost])
        engine.dispose()


def test_without_views_there_the_log_is_read(service, projected, tmp_path):
    cli = CommandLine(service.environment | {"ORDERS_DATABASE_URL": f"sqlite:///{tmp_path}/none.db"})
    assert steps(cli, projected)[0] == ("OrderCreated", 1)
    assert not (tmp_path / "none.db").exists()
