"""The table of a lane: what it returns, what a turn writes of it, and what a claim restores."""

import pytest

from order_service.errors import HistoryError
from order_service.wire.changelog import encode
from order_service.worker.table import Table
from tests.support.samples import ORDER_ID, create, deliver, entry_after, pay, ship
from tests.support.tables import table_of

CREATED, PAID, DELIVERED = entry_after([create]), entry_after([create, pay]), entry_after([create, pay, ship, deliver])


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


@pytest.mark.parametrize("value", [b"", b"\x09", b"\x01", encode(PAID)[:-1], encode(PAID) + b"\x00", b"\x01\x90"])
def test_a_damaged_record_is_refused_when_it_is_restored(value):
    table = table_of({ORDER_ID: CREATED})
    with pytest.raises(HistoryError):
        table.restore(ORDER_ID, value)
    assert table.get(ORDER_ID) == CREATED
