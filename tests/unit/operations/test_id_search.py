"""Which ids of a command, an event or a rejection are equal to a text that is searched for."""

import pytest

from order_service.domain.decision import reject
from order_service.domain.identity import keyed_id
from order_service.domain.refusals import Reason, Refusal
from order_service.operations.why.id_search import IdKind, search_for
from order_service.sdk.testing.samples import decided
from order_service.web.http.requests import new_id
from tests.support.samples import DANA, NOW, ORDER_ID, SHOP, but, create, pay, ship

KEY = "basket-7"
DERIVED = new_id(DANA, KEY, "command")
by_key = but(create, command_id=DERIVED)
[created, _], [paid, _], [shipped, _] = decided(create, pay, ship)
refused = reject(pay, None, NOW, Refusal(Reason.ORDER_NOT_FOUND))


@pytest.mark.parametrize(
    ("text", "message", "kinds"),
    [
        pytest.param(ORDER_ID, create, {IdKind.ORDER_ID}, id="the order of a command"),
        pytest.param(ORDER_ID, paid, {IdKind.ORDER_ID}, id="the order of an event"),
        pytest.param(ORDER_ID, refused, {IdKind.ORDER_ID}, id="the order of a rejection"),
        pytest.param(pay.command_id, pay, {IdKind.COMMAND_ID}, id="the id of a command"),
        pytest.param(pay.command_id, paid, {IdKind.COMMAND_ID}, id="the command of an event"),
        pytest.param(pay.command_id, refused, {IdKind.COMMAND_ID}, id="the command of a rejection"),
        pytest.param(pay.payment_id, pay, {IdKind.PAYMENT_ID}, id="the payment of a command"),
        pytest.param(pay.payment_id, paid, {IdKind.PAYMENT_ID}, id="the payment of an event"),
        pytest.param(ship.tracking_number, ship, {IdKind.TRACKING_NUMBER}, id="the tracking number of a command"),
        pytest.param(ship.tracking_number, shipped, {IdKind.TRACKING_NUMBER}, id="the tracking number of an event"),
        pytest.param(KEY, by_key, {IdKind.IDEMPOTENCY_KEY}, id="the key of its own caller"),
        pytest.param(KEY, but(by_key, actor=SHOP), set(), id="the key of another caller"),
        pytest.param(DERIVED, by_key, {IdKind.COMMAND_ID}, id="an id that a key resulted in"),
        pytest.param(
            ORDER_ID,
            but(pay, payment_id=ORDER_ID),
            {IdKind.ORDER_ID, IdKind.PAYMENT_ID},
            id="an order that is its own payment",
        ),
        pytest.param(ORDER_ID[:-1], create, set(), id="the beginning of an id"),
        pytest.param(f"{ORDER_ID}\n", create, set(), id="an id and a line feed"),
        pytest.param(create.currency, create, set(), id="another field"),
    ],
)
def test_what_a_text_is_in_a_message(text, message, kinds):
    search = search_for(text)
    assert search is not None
    assert set(search.kinds_in(message)) == kinds


@pytest.mark.parametrize("text", ["", "x" * 256, "\udcff", "order-\ud800"])
def test_a_text_that_no_id_can_be_is_not_searched_for(text):
    assert search_for(text) is None


@pytest.mark.parametrize(
    ("text", "partition"),
    [
        pytest.param("order-1", 2, id="an order id"),
        pytest.param("2:17", 2, id="an offset"),
        pytest.param("4:17", None, id="a partition that does not exist"),
        pytest.param("2:17:1", None, id="a key with colons"),
        pytest.param("2:" + "9" * 19, None, id="an offset that is too large"),
        pytest.param("²:17", None, id="a digit that is not ASCII"),
        pytest.param("JD 0146", None, id="a tracking number with a space"),
        pytest.param("\0position", None, id="a key of a control record"),
        pytest.param("é" * 255, None, id="the longest text"),
    ],
)
def test_the_partition_that_is_searched_first(text, partition):
    search = search_for(text)
    assert search is not None
    assert search.partition(4) == partition


def test_a_key_results_in_the_ids_that_it_had_in_every_earlier_version():
    assert keyed_id("user:dana", "command", "basket-1") == "89e818ab-3020-5b76-a043-226f40532756"
