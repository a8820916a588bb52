"""A batch of events that a disk has damaged: the views of its partition stop before it, and the others go on."""

import pytest
from sqlalchemy import make_url

from order_service.errors import DamagedError
from order_service.sdk import OrderEvents
from order_service.views.queries import Views
from order_service.views.tables import open_database
from tests.broker.sdk.writing import write
from tests.support.samples import but, order_created
from tests.support.service import Service, until

COUNT = 40


@pytest.fixture
def service(broker, tmp_path, users):
    with Service(broker.bootstrap_servers, tmp_path, users) as made:
        yield made


def of(number):
    return f"order-{number}"


async def test_a_damaged_batch_stops_the_views_of_its_partition_alone_until_it_is_restored(broker, service, tmp_path):
    damaged = service.partition_of(of(20))
    for start in range(0, COUNT, 10):  # batches before and after the damage, and in all partitions
        write(service, *(but(order_created, order_id=of(number)) for number in range(start, start + 10)))
    broker.stop()
    log = broker.directory / "data" / f"{service.names.events}-{damaged}" / "00000000000000000000.log"
    whole = log.read_bytes()
    data = bytearray(whole)
    data[data.index(of(20).encode())] ^= 1
    log.write_bytes(data)
    broker.start()
    url = f"sqlite:///{tmp_path}/views.db"
    projector = service.start_worker(module=("order_service.cli", "projector"), ORDERS_DATABASE_URL=url)
    before = [number for number in range(20) if service.partition_of(of(number)) == damaged]
    why = f"a batch of {service.names.events}-{damaged} is damaged at offset {len(before)}"
    until(lambda: why in projector.faults(), "the partition is stopped at the damage")
    others = [number for number in range(COUNT) if service.partition_of(of(number)) != damaged]
    views = Views(open_database(make_url(url)), service.names)
    readable = [of(number) for number in [*before, *others]]
    until(lambda: len(views.orders(readable)) == len(readable), "the views have all that can be read")
    assert [fault[:3] for fault in views.stopped_partitions()] == [(service.names.events, damaged, len(before))]
    async with OrderEvents.projection(settings=service.settings()) as events:
        await read_to_damage(events, damaged, len(before))
    assert projector.process.poll() is None
    broker.stop()
    log.write_bytes(whole)
    broker.start()
    until(lambda: len(views.orders([of(number) for number in range(COUNT)])) == COUNT, "all are there")
    assert views.stopped_partitions() == []
    assert projector.process.poll() is None


async def read_to_damage(events, damaged, offset):
    """Read until the damage is met twice: each partition without a hole, the damaged one up to the damage."""
    reached: dict[int, int] = {}
    met: list[tuple[int, int]] = []
    while len(met) < 2:
        try:
            happened = await anext(events)
        except DamagedError as error:
            met.append((error.topic_partition[1], error.offset))
        else:
            assert happened.offset == reached.get(happened.partition, 0)
            reached[happened.partition] = happened.offset + 1
    assert met == [(damaged, offset)] * 2
    assert reached[damaged] == offset
