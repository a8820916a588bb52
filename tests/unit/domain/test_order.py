"""The rules of an order: after this history, this command gets this answer."""

from typing import get_args

import pytest

from order_service.domain.messages import COMMAND_TYPES, FACT_TYPES, Command, Fact
from order_service.domain.order import ABSENT, Cancelled, Created, Delivered, Paid, Shipped, decide, evolve, fold
from order_service.domain.refusals import MEANINGS, NEVER_REMEMBERED, RULES, Reason, Refusal, Status
from order_service.errors import HistoryError
from tests.support.samples import (
    amend,
    amended,
    but,
    cancel,
    cancelled,
    cancelled_with_refund,
    commands,
    create,
    created,
    deliver,
    delivered,
    facts,
    mugs,
    paid,
    pay,
    poster,
    ship,
    shipped,
)

created_: list[Fact] = [created]
paid_: list[Fact] = [created, paid]
shipped_: list[Fact] = [created, paid, shipped]
delivered_: list[Fact] = [created, paid, shipped, delivered]
cancelled_: list[Fact] = [created, cancelled]

HISTORIES: dict[Status, list[Fact]] = {
    Status.ABSENT: [],
    Status.CREATED: created_,
    Status.PAID: paid_,
    Status.SHIPPED: shipped_,
    Status.DELIVERED: delivered_,
    Status.CANCELLED: cancelled_,
}


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("command", commands, ids=lambda command: type(command).__name__)
def test_every_command_in_every_status_has_the_outcome_of_the_rules(command, status):
    order = fold(HISTORIES[status])
    assert order.status == status
    outcome = decide(command, order)
    expected = RULES[type(command), status]
    if isinstance(expected, Reason):
        assert outcome == Refusal(expected)
    else:
        assert type(outcome) is expected


def test_the_rules_cover_every_command_in_every_status():
    assert RULES.keys() == {(command, status) for command in COMMAND_TYPES for status in Status}
    assert {type(command) for command in commands} == set(COMMAND_TYPES)
    assert len(RULES) == 36


@pytest.mark.parametrize(
    ("history", "command", "fact"),
    [
        pytest.param([], create, created, id="a new order is created"),
        pytest.param(created_, amend, amended, id="an unpaid order can be amended"),
        pytest.param(created_, pay, paid, id="paying the full total pays the order"),
        pytest.param(paid_, ship, shipped, id="a paid order is shipped"),
        pytest.param(shipped_, deliver, delivered, id="a shipped order is delivered"),
        pytest.param(created_, cancel, cancelled, id="cancelling an unpaid order owes nothing"),
        pytest.param(paid_, cancel, cancelled_with_refund, id="cancelling a paid order owes a refund"),
    ],
)
def test_an_accepted_command_makes_its_fact(history, command, fact):
    assert decide(command, fold(history)) == fact


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        pytest.param(but(pay, amount=3799), "expected 3800 EUR, got 3799 EUR", id="a cent short is not paid"),
        pytest.param(but(pay, amount=3801), "expected 3800 EUR, got 3801 EUR", id="a cent over is not paid"),
        pytest.param(but(pay, amount=0), "expected 3800 EUR, got 0 EUR", id="nothing is not paid"),
        pytest.param(but(pay, currency="USD"), "expected 3800 EUR, got 3800 USD", id="dollars are not euros"),
    ],
)
def test_only_the_whole_total_in_its_currency_pays(command, answer):
    assert decide(command, fold(created_)) == Refusal(Reason.PAYMENT_MISMATCH, answer)


def test_a_payment_must_match_the_total_after_the_last_amendment():
    dearer = decide(but(amend, tax=301), fold(created_))
    assert not isinstance(dearer, Refusal)
    order = fold([created, dearer])
    assert decide(pay, order) == Refusal(Reason.PAYMENT_MISMATCH, "expected 3801 EUR, got 3800 EUR")
    assert decide(but(pay, amount=3801), order) == but(paid, amount=3801)


def test_an_order_of_nothing_to_pay_is_paid_with_nothing():
    free = decide(but(create, discount=3400, tax=0, shipping=0), ABSENT)
    assert not isinstance(free, Refusal)
    assert decide(but(pay, amount=0), fold([free])) == but(paid, amount=0)


@pytest.mark.parametrize(
    ("given", "stands"),
    [
        pytest.param({"lines": (mugs,)}, {"lines": (but(mugs, line_id="1"),), "total": 2900}, id="lines"),
        pytest.param({"lines": (poster, mugs)}, {"lines": (poster, but(mugs, line_id="2"))}, id="lines in new places"),
        pytest.param({"discount": 0}, {"discount": 0, "total": 4200}, id="no discount"),
        pytest.param({"discount": 3400}, {"discount": 3400, "total": 800}, id="a discount of all"),
        pytest.param({"tax": 0}, {"tax": 0, "total": 3500}, id="no tax"),
        pytest.param({"shipping": 900}, {"shipping": 900, "total": 4200}, id="shipping"),
        pytest.param({"shipping_address_ref": "office"}, {"shipping_address_ref": "office"}, id="an address"),
        pytest.param({"metadata": {"gift": "yes"}}, {"metadata": {"gift": "yes"}}, id="metadata, the whole of it"),
        pytest.param({"metadata": {}}, {"metadata": {}}, id="no metadata"),
        pytest.param(
            {"lines": (mugs,), "discount": 2500, "tax": 0, "shipping": 0},
            {"lines": (but(mugs, line_id="1"),), "discount": 2500, "tax": 0, "shipping": 0, "total": 0},
            id="many at once",
        ),
    ],
)
def test_what_an_amendment_gives_replaces_what_was_and_the_rest_stays(given, stands):
    nothing_else = but(amend, shipping_address_ref=None)
    fact = decide(but(nothing_else, **given), fold(created_))
    assert fact == but(amended, **({"shipping_address_ref": "home"} | stands))


def test_a_discount_that_stayed_must_fit_lines_that_changed():
    cheap = but(amend, lines=(but(mugs, quantity=1, unit_price=399),))
    detail = "/discount must be at most the subtotal, 399"
    assert decide(cheap, fold(created_)) == Refusal(Reason.INVALID_ORDER, detail, "/discount")


def test_a_refund_is_what_was_paid_after_amendments():
    dearer = decide(but(amend, tax=1300), fold(created_))
    assert not isinstance(dearer, Refusal)
    history = [created, dearer, but(paid, amount=4800)]
    assert decide(cancel, fold(history)) == but(cancelled, refund_due=4800)


@pytest.mark.parametrize("reason", ["payment_failed", "payment_timeout", "out_of_stock", "fraud", "other"])
def test_a_cancellation_says_why(reason):
    assert decide(but(cancel, reason=reason, note=None), fold(created_)) == but(cancelled, reason=reason, note=None)


def test_a_state_carries_only_what_its_rules_need():
    assert fold([]) is ABSENT
    assert isinstance(fold(created_), Created)
    assert fold([created, amended]) == but(fold(created_), shipping_address_ref="office")
    assert fold(paid_) == Paid("dana", 3800)
    assert fold(shipped_) == Shipped("dana")
    assert fold(delivered_) == Delivered("dana")
    assert fold(cancelled_) == Cancelled("dana")


@pytest.mark.parametrize("fact", facts, ids=lambda fact: type(fact).__name__)
@pytest.mark.parametrize("history", HISTORIES.values(), ids=lambda history: fold(history).status)
def test_a_fact_that_the_rules_do_not_allow_stops_the_fold(history, fact):
    order = fold(history)
    if type(fact) in {outcome for (_, status), outcome in RULES.items() if status == order.status}:
        assert evolve(order, fact).status != Status.ABSENT
        return
    with pytest.raises(HistoryError, match=f"{type(fact).__name__} cannot follow an order that is {order.status}"):
        evolve(order, fact)


def test_the_lists_of_types_name_every_type():
    assert get_args(Command) == COMMAND_TYPES
    assert get_args(Fact) == FACT_TYPES
    assert {outcome for outcome in RULES.values() if not isinstance(outcome, Reason)} == set(FACT_TYPES)


def test_every_reason_says_its_cause_and_its_cure_as_sentences():
    assert set(MEANINGS) == set(Reason)
    for meaning in MEANINGS.values():
        assert meaning.cause.endswith(".")
        assert meaning.cure.endswith(".")


def test_only_refusals_of_the_moment_are_never_remembered():
    assert {"deadline_passed", "user_check_timed_out", "too_many_waiting"} == NEVER_REMEMBERED
