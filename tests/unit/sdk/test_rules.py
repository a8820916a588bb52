"""Given, when, then: sentences about the rules of an order."""

import pytest

from order_service.errors import HistoryError
from order_service.sdk import OrderCancelled, OrderPaid, Reason
from order_service.sdk.testing import (
    UserCheck,
    cancel_order,
    create_order,
    deliver_order,
    given,
    order_amended,
    order_cancelled,
    order_created,
    order_delivered,
    order_paid,
    order_shipped,
    pay_order,
    sample_life,
    ship_order,
)

LIFE = sample_life()


@pytest.mark.parametrize(
    ("history", "command", "expected"),
    [
        pytest.param([], create_order(), [LIFE[0].fact], id="a new order is created"),
        pytest.param([], pay_order(), [Reason.ORDER_NOT_FOUND], id="what is not there is not paid"),
        pytest.param(LIFE[:2], pay_order(), [OrderPaid("payment-1", 3800, "EUR")], id="an order is paid"),
        pytest.param(LIFE[:2], pay_order(amount=1), [Reason.PAYMENT_MISMATCH], id="a part is not paid"),
        pytest.param(LIFE[:3], pay_order(), [], id="a repeat brings nothing new"),
        pytest.param([order_created().fact, order_paid().fact], ship_order(), [order_shipped().fact], id="facts alone"),
        pytest.param(
            [order_created(), order_paid()], cancel_order(), [order_cancelled(refund_due=3800).fact], id="owed"
        ),
        pytest.param([order_created(), order_amended()], deliver_order(), [Reason.NOT_PAID], id="nothing to deliver"),
        pytest.param(LIFE, cancel_order(), [Reason.ALREADY_DELIVERED], id="too late"),
    ],
)
def test_what_follows(history, command, expected):
    given(*history).when(command).then(*expected)


def test_an_unknown_user_orders_nothing():
    given().when(create_order(), user=UserCheck.NOT_FOUND).then(Reason.USER_NOT_FOUND)


def test_a_sentence_that_is_wrong_says_what_came():
    with pytest.raises(AssertionError, match=r"expected nothing new, got OrderCancelled\(.*refund_due=0\)"):
        given(order_created()).when(cancel_order()).then()
    with pytest.raises(AssertionError, match=r"expected <Reason\.NOT_PAID"):
        given(order_created()).when(cancel_order()).then(Reason.NOT_PAID)


def test_a_history_that_cannot_be_is_refused():
    with pytest.raises(HistoryError, match="OrderPaid cannot follow"):
        given(order_paid())


def test_samples_are_changed_by_name():
    event = order_cancelled("order-7", version=4, reason="fraud", actor="service:fraud")
    assert (event.order_id, event.version, event.actor) == ("order-7", 4, "service:fraud")
    assert event.fact == OrderCancelled("fraud", "two were enough", 0)
    assert create_order("order-7").command_id != create_order("order-8").command_id


def test_a_sample_life_is_chained_and_every_builder_fits_it():
    built = [order_created(), order_amended(), order_paid(), order_shipped(), order_delivered()]
    assert [event.version for event in LIFE] == [1, 2, 3, 4, 5]
    assert [event.fact for event in LIFE] == [event.fact for event in built]
    assert [event.event_id for event in LIFE] == [event.event_id for event in built]
