"""The table of a lane: what it returns, what a turn writes of it, and what a claim restores."""

import pytest

from order_service.errors import HistoryError
from order_service.wire.changelog import encode
from order_service.worker.table import Table
from tests.support.samples import ORDER_ID, create, deliver, entry_after, pay, ship, short_of
from tests.support.tables import table_of

CREATED, PAID, DELIVERED = entry_after([create]), entry_after([create, pay]), entry_after([create, pay, ship, deliver])
SHORT = short_of(DELIVERED)


def test_an_order_is_returned_as_it_was_put_before_and_after_its_turn_is_taken():
    table = Table()
    for entry in (CREATED, PAID, DELIVERED):
        table.put(ORDER_ID, entry)
        assert table.get(ORDER_ID) == entry
        assert table.take_changes() == {ORDER_ID: encode(entry)}
        assert table.get(ORDER_ID) == entry
    assert (len(table), list(table.items())) == (1, [(ORDER_ID, DELIVERED)])


def test_a_turn_writes_the_newest_entry_of_each_order_once():
    table = table_of({"other": CREATED})
    table.put(ORDER_ID, CREATED)
    table.put(ORDER_ID, PAID)
    assert table.take_changes() == {ORDER_ID: encode(PAID)}
    assert table.take_changes() == {}


def test_a_deleted_order_is_restored_as_absent():
    table = table_of({ORDER_ID: CREATED})
    table.restore(ORDER_ID, None)
    table.restore("never there", None)
    assert (table.get(ORDER_ID), len(table)) == (None, 0)


def test_orders_are_swept_in_slices_as_they_are_at_that_time():
    table = table_of({f"order-{number}": DELIVERED for number in range(5)})
    slices = table.sweep(2)
    first = next(slices)
    table.restore("order-2", None)
    table.put("order-3", SHORT)
    table.put("a new one", CREATED)
    table.take_changes()
    left = [order for each in slices for order in each]
    assert [order_id for order_id, _ in first] == ["order-0", "order-1"]
    assert left == [("order-3", encode(SHORT)), ("order-4", encode(DELIVERED))]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x09",
        b"\x01",
        encode(PAID)[:-1],
        encode(PAID) + b"\x00",
        b"\x01\x90",
        encode(SHORT)[:-1],
        b"\x03" + encode(PAID)[1:],
    ],
)
def test_a_damaged_record_is_refused_when_it_is_restored(value):
    table = table_of({ORDER_ID: CREATED})
    with pytest.raises(HistoryError):
        table.restore(ORDER_ID, value)
    assert table.get(ORDER_ID) == CREATED
