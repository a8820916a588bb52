"""Both ends in memory, and what holds for every subscriber: the stand-in differs from the real one in its log alone."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from textwrap import dedent
from typing import Any

import pytest

from order_service.domain.messages import Line, OrderPaid
from order_service.errors import DecodeError, HistoryError
from order_service.sdk import (
    Accepted,
    AwaitingUser,
    Hole,
    HoleError,
    OrderCommands,
    OrderCreated,
    OrderEvents,
    Reason,
    Refused,
    SetupError,
    UnknownEvent,
    Unreadable,
    skip,
    testing,
)
from order_service.sdk.testing import (
    InMemoryOrders,
    UserCheck,
    amend_order,
    create_order,
    order_created,
    order_paid,
    pay_order,
    sample_commands,
    sample_life,
)
from order_service.sdk.testing.samples import UNKNOWN_ID
from order_service.wire import avro
from order_service.wire.headers import event_headers
from order_service.wire.schemas.catalogue import prefix_of


@pytest.fixture
def orders():
    return InMemoryOrders()


async def life(orders, order_id="order-1"):
    """Send the commands of an order's whole life."""
    for command in sample_commands(order_id):
        assert isinstance(await orders.commands().send(command), Accepted)


async def read(subscriber):
    """Read all that there is."""
    return [(happened.event.order_id, happened.event.version) async for happened in subscriber]


async def test_every_kind_of_outcome():
    checks = {"dana": UserCheck.ACTIVE, "eve": UserCheck.NOT_FOUND, "bob": None}
    commands = InMemoryOrders(check_user=checks.__getitem__).commands("service:shop")
    async with commands as orders:
        mug = Line(sku="mug-blue", quantity=2, unit_price=1250)
        placed = await orders.create("order-1", "dana", "EUR", [mug], command_id="create-1", tax=100)
        assert isinstance(placed, Accepted)
        assert isinstance(placed.event.fact, OrderCreated)
        assert placed.event.fact.total == 2600
        again = await orders.create("order-1", "dana", "EUR", [mug], command_id="create-1", tax=100)
        assert again == Accepted(placed.record, repeated=True)
        unknown = await orders.create("order-2", "eve", "EUR", [mug])
        assert isinstance(unknown, Refused)
        assert unknown.reason is Reason.USER_NOT_FOUND
        assert await orders.create("order-3", "bob", "EUR", [mug]) == AwaitingUser()
        unreadable = await orders.deliver("no id")
        assert isinstance(unreadable, Unreadable)
        assert unreadable.reason == "bad_shape"


async def test_the_methods_make_a_whole_life(orders):
    async with orders.commands("service:shop") as shop:
        await shop.create("order-1", "dana", "EUR", [Line(sku="mug-blue", quantity=2, unit_price=1250)])
        await shop.amend("order-1", [Line(sku="mug-blue", quantity=1, unit_price=1250)], shipping=50)
        await shop.pay("order-1", "payment-1", 1300, "EUR", expected_version=2)
        await shop.ship("order-1", "DHL", "JD0146")
        await shop.deliver("order-1", correlation_id="visit-7")
        refused = await shop.cancel("order-1", "customer_request", "too late")
    assert [type(event.fact).__name__ for event in orders.events] == [
        "OrderCreated",
        "OrderAmended",
        "OrderPaid",
        "OrderShipped",
        "OrderDelivered",
    ]
    assert refused.reason is Reason.ALREADY_DELIVERED
    assert orders.rejections == [refused.rejection]


async def test_a_refusal_is_repeated_too(orders):
    shop = orders.commands()
    await shop.send(create_order())
    first = await shop.send(pay_order(amount=1))
    assert await shop.send(pay_order(amount=1)) == Refused(first.record, repeated=True)
    reused = await shop.send(pay_order())
    assert reused.reason is Reason.COMMAND_ID_REUSED
    assert await shop.send(pay_order(amount=1)) == Refused(first.record, repeated=True)


async def test_a_refusal_points_to_the_invalid_field_also_when_it_is_repeated(orders):
    shop = orders.commands()
    await shop.send(create_order())
    refused = [await shop.send(pay_order(currency="XXX")) for _ in range(2)]
    assert [outcome.rejection.pointer for outcome in refused] == ["/currency", "/currency"]
    assert [outcome.repeated for outcome in refused] == [False, True]


async def test_a_new_group_is_silent_about_history_and_goes_on_where_it_was(orders):
    await life(orders, "order-1")
    async with orders.effects(group="mailer") as events:
        await life(orders, "order-2")
        assert (await anext(events)).event == orders.events[5]
    orders.end()
    async with orders.effects(group="mailer") as events:
        assert await read(events) == [("order-2", version) for version in (2, 3, 4, 5)]
    async with orders.effects(group="another") as events:
        assert await read(events) == []


async def test_what_was_being_worked_on_comes_again_and_what_was_done_does_not(orders):
    async def fail_at(version):
        async with orders.effects(group="mailer") as events:
            async for happened in events:
                assert happened.event.version != version
                assert not happened.is_replay

    async with orders.effects(group="mailer"):
        pass
    await life(orders)
    with pytest.raises(AssertionError):
        await fail_at(3)
    orders.end()
    async with orders.effects(group="mailer") as events:
        assert [version for _, version in await read(events)] == [3, 4, 5]


async def test_a_projection_reads_all_and_knows_what_is_history(orders):
    await life(orders, "order-1")
    async with orders.projection() as events:
        await orders.commands().send(create_order("order-2"))
        orders.end()
        replayed = {happened.event.order_id: happened.is_replay async for happened in events}
    assert replayed == {"order-1": True, "order-2": False}


async def test_a_projection_begins_where_it_is_told(orders):
    await life(orders)
    orders.end()
    partition = orders.records[0].partition
    async with orders.projection(start={partition: 3}) as events:
        assert [version for _, version in await read(events)] == [4, 5]


async def test_a_repeat_is_dropped_and_counted(orders):
    async with orders.effects(group="mailer") as events:
        await life(orders)
        orders.repeat("order-1")
        orders.add(orders.events[1])
        await orders.commands().send(create_order("order-2"))
        orders.end()
        assert len(await read(events)) == 6
        assert events.repeat_count == 2


async def test_a_hole_ends_the_reading_and_names_order_and_versions(orders):
    await orders.commands().send(create_order())
    orders.lose_next("order-1")
    await orders.commands().send(amend_order())
    await orders.commands().send(pay_order())
    orders.end()
    async with orders.projection() as events:
        assert (await anext(events)).event.version == 1
        for _ in range(2):  # it does not go away
            with pytest.raises(HoleError, match="version 2 of the order order-1 is missing: version 3 is next"):
                await anext(events)


async def test_a_first_version_above_1_is_a_hole_for_projections_only(orders):
    holes: list[Hole] = []
    async with orders.effects(group="mailer") as news:
        orders.add(order_paid(version=3))
        orders.end()
        assert await read(news) == [("order-1", 3)]
    async with orders.projection(on_hole=holes.append) as events:
        assert await read(events) == [("order-1", 3)]
    assert [(hole.order_id, hole.expected, hole.found) for hole in holes] == [("order-1", 1, 3)]


async def test_poison_ends_the_reading_and_is_not_told(orders, caplog):
    async with orders.effects(group="mailer") as events:
        orders.poison("order-1", b"\0secret")
        with pytest.raises(HistoryError, match=r"offset 0 of partition \d of orders.events.v1") as raised:
            await anext(events)
        assert "secret" not in str(raised.value)
        assert isinstance(raised.value.__cause__, DecodeError)
    orders.end()
    async with orders.effects(group="mailer", on_poison=skip) as events:  # it comes again, for it was not done
        assert await read(events) == []
    [said] = caplog.messages
    assert said.startswith("A record that cannot be decoded was skipped. why=")
    assert "offset=0" in said
    assert "secret" not in said
    async with orders.effects(group="mailer") as events:
        assert await read(events) == []


async def test_an_order_goes_on_behind_a_version_that_was_passed_over(orders):
    for order_id, before in (("order-1", [order_created("order-1")]), ("order-2", [])):
        for event in before:
            orders.add(event)
        orders.poison(order_id)
        orders.add(order_paid(order_id, version=len(before) + 2))
    orders.add(order_paid("order-1", version=5))
    orders.end()
    async with orders.projection(on_poison=skip) as events:
        assert [(await anext(events)).event.version for _ in range(3)] == [1, 3, 2]
        with pytest.raises(HoleError, match="version 4 of the order order-1 is missing"):
            await anext(events)


def test_the_group_of_the_workers_is_no_subscribers():
    with pytest.raises(SetupError, match="orders is the group of the order service's workers"):
        OrderEvents.effects(group="orders")


async def test_what_is_not_open_gives_nothing():
    with pytest.raises(SetupError, match="open it first"):
        await anext(OrderEvents.projection())
    with pytest.raises(SetupError, match="open it first"):
        await OrderCommands(actor="service:shop").deliver("order-1")
    with pytest.raises(SetupError, match="open it first"):
        await OrderCommands(actor="service:shop").deliver("order-1", wait_s=0)


async def test_the_example_runs_as_it_is_written():
    said = testing.__doc__ or ""
    example: dict[str, Any] = {}
    exec(dedent(said[said.index("    from") : said.index("Faults can")]), example)
    example["test_a_partial_payment_is_refused"]()
    await example["test_every_new_order_sends_a_mail"]()


async def test_a_policy_may_be_async(orders):
    kept = []

    async def keep(record, error):
        await asyncio.sleep(0)
        kept.append((record.key, type(error)))

    orders.poison("order-1")
    orders.add(order_created())
    orders.end()
    async with orders.projection(on_poison=keep) as events:
        assert await read(events) == [("order-1", 1)]
    assert kept == [(b"order-1", HistoryError)]


async def test_who_waits_hears_of_what_comes(orders):
    async with orders.projection() as events:
        waiting = asyncio.create_task(anext(events))
        await asyncio.sleep(0)
        assert not waiting.done()
        await orders.commands().send(create_order())
        assert (await waiting).event == orders.events[0]


async def test_a_sample_life_is_what_the_service_would_write(orders):
    await life(orders)
    facts = [event.fact for event in orders.events]
    assert facts == [event.fact for event in sample_life()]
    assert facts[2] == OrderPaid("payment-1", 3800, "EUR") == order_paid().fact


async def order_with_an_unknown_event(orders):
    """Write versions 1, 2 of an unknown type, and 3."""
    await orders.commands().send(create_order())
    orders.add_unknown("order-1", "OrderReserved")
    await orders.commands().send(pay_order())
    orders.end()


async def test_an_event_of_an_unknown_type_is_delivered_with_what_every_event_has(orders):
    await order_with_an_unknown_event(orders)
    async with orders.projection() as events:
        created, unknown, paid = [record async for record in events]
    event = unknown.event
    assert isinstance(event, UnknownEvent)
    assert (event.type, event.order_id, event.version, event.fact) == ("OrderReserved", "order-1", 2, None)
    assert event.occurred_at == created.event.occurred_at + timedelta(seconds=1)
    assert event.previous_digest == created.digest
    assert event.digest == unknown.digest == paid.event.previous_digest
    assert paid.event.version == 3


async def test_an_unknown_type_can_be_skipped_and_its_version_counts(orders):
    await order_with_an_unknown_event(orders)
    async with orders.projection(on_unknown="skip") as events:
        assert await read(events) == [("order-1", 1), ("order-1", 3)]


async def test_an_unknown_type_can_stop_a_subscriber_until_it_is_updated(orders):
    async with orders.effects(group="mailer") as events:
        await order_with_an_unknown_event(orders)
    async with orders.effects(group="mailer", on_unknown="stop") as events:
        assert (await anext(events)).event.version == 1
        for _ in range(2):
            with pytest.raises(HistoryError, match=r"offset 1 of .* is an event of the unknown type OrderReserved"):
                await anext(events)
    async with orders.effects(group="mailer") as events:  # the updated one
        assert [version for _, version in await read(events)] == [2, 3]


async def test_an_unknown_event_that_comes_again_is_a_repeat_under_every_policy(orders):
    await order_with_an_unknown_event(orders)
    orders.records.append(orders.records[1])
    async with orders.projection() as events:
        assert len(await read(events)) == 3
        assert events.repeat_count == 1


async def test_a_version_missing_before_an_unknown_event_is_a_hole(orders):
    await orders.commands().send(create_order())
    orders.lose_next("order-1")
    await orders.commands().send(amend_order())
    orders.add_unknown("order-1")
    orders.end()
    async with orders.projection() as events:
        assert (await anext(events)).event.version == 1
        with pytest.raises(HoleError, match="version 2 of the order order-1 is missing: version 3 is next"):
            await anext(events)


async def test_a_new_field_of_a_known_type_is_left_out_without_a_registry(orders):
    await orders.commands().send(create_order())
    [record] = orders.records
    event = orders.events[0]
    value = prefix_of(UNKNOWN_ID) + record.value[5:] + b"\2\x0ca note"
    orders.records[0] = replace(record, value=value, headers=event_headers(event, None, 7))
    orders.end()
    async with orders.projection() as events:
        [seen] = [each async for each in events]
    assert seen.event == event
    assert seen.digest == avro.digest(value)


def test_a_policy_that_does_not_exist_is_refused():
    with pytest.raises(SetupError, match="on_unknown must be one of deliver, skip, stop"):
        OrderEvents.projection(on_unknown="ignore")  # type: ignore[arg-type]
