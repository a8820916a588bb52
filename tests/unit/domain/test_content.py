"""What the values of a command may be: each limit at its edge and one past it, with a pointer and without an echo."""

import pytest

from order_service.domain.decision import UserCheck, answer
from order_service.domain.entry import Entry
from order_service.domain.messages import Command, CreateOrder, Event, Line, Rejection
from order_service.domain.refusals import Reason
from order_service.domain.validation import CANCEL_REASONS, CURRENCIES
from tests.support.foreign_ids import ENCODABLE_NO_IDS, FOREIGN_IDS
from tests.support.samples import (
    DANA,
    NOW,
    SHOP,
    amend,
    but,
    cancel,
    commands,
    create,
    entry_after,
    mugs,
    pay,
    poster,
    ship,
)

entries: dict[str, Entry | None] = {
    "CreateOrder": None,
    "AmendOrder": entry_after([create]),
    "PayOrder": entry_after([create]),
    "ShipOrder": entry_after([create, pay]),
    "DeliverOrder": entry_after([create, pay, ship]),
    "CancelOrder": entry_after([create]),
}
"""For each command an order on which the table allows it."""

INT64 = (-(2**63), 2**63 - 1)


def answer_to(command: Command) -> Event | Rejection:
    """Answer a command that only its content can stop."""
    outcome = answer(command, entries[type(command).__name__], NOW, UserCheck.ACTIVE)
    assert isinstance(outcome, Event | Rejection)
    return outcome


def fault_in(command: Command) -> str:
    """Return the detail of the refusal: the pointer, and what the value must be."""
    return rejection_of(command).detail


def pointer_in(command: Command) -> str | None:
    """Return the pointer of the refusal."""
    return rejection_of(command).pointer


def rejection_of(command: Command) -> Rejection:
    """Return the rejection of a command for its content."""
    rejection = answer_to(command)
    assert isinstance(rejection, Rejection), rejection
    assert rejection.reason == Reason.INVALID_ORDER
    return rejection


def with_line(**values: object) -> CreateOrder:
    return but(create, discount=0, lines=(poster, but(mugs, **values)))


def with_lines(count: int) -> CreateOrder:
    return but(create, lines=tuple(Line(sku=f"sku-{n}", quantity=1, unit_price=100) for n in range(count)))


NO_IDS = tuple(ENCODABLE_NO_IDS.values())


@pytest.mark.parametrize(
    "command",
    [
        *commands,
        *(but(create, actor=SHOP, user_id=given) for given in FOREIGN_IDS),
        *(but(create, currency=currency) for currency in ("EUR", "JPY", "BHD", "USD")),
        *(with_line(sku=given) for given in FOREIGN_IDS),
        *(with_line(line_id=given) for given in FOREIGN_IDS),
        with_line(name=None),
        with_line(name=""),
        with_line(name="é" * 200),
        with_line(name="😀" * 200),
        with_line(quantity=1),
        with_line(quantity=10**6),
        with_line(unit_price=0),
        with_line(unit_price=10**12),
        but(with_lines(1), discount=0),
        with_lines(500),
        but(create, discount=0),
        but(create, discount=3400),
        but(create, tax=0),
        but(create, shipping=0),
        but(create, shipping_address_ref=None),
        *(but(create, shipping_address_ref=given) for given in FOREIGN_IDS),
        but(create, metadata={}),
        but(create, metadata={f"key-{n}": "" for n in range(20)}),
        but(create, metadata={"é" * 40: "é" * 500}),
        but(amend, metadata={f"{n:040}": "v" * 500 for n in range(20)}),
        but(create, correlation_id=None),
        *(but(create, correlation_id=given) for given in FOREIGN_IDS),
        *(but(pay, payment_id=given) for given in FOREIGN_IDS),
        *(but(ship, carrier=given, tracking_number=given) for given in FOREIGN_IDS),
        *(but(create, actor=f"service:{given}") for given in FOREIGN_IDS),
        *(but(create, actor=f"user:{given}", user_id=given) for given in FOREIGN_IDS),
        but(cancel, note=None),
        but(cancel, note=""),
        but(cancel, note="n" * 200),
        *(but(cancel, reason=reason) for reason in CANCEL_REASONS),
    ],
)
def test_values_at_their_limits_are_accepted(command):
    assert isinstance(answer_to(command), Event)


AN_ID = "must be 1 to 255 characters of Unicode without control characters"
AN_AMOUNT = "must be 0…9007199254740992"
A_TEXT = "must be at most 200 characters"

FAULTS: list[tuple[Command, str]] = [
    *((but(create, actor=SHOP, user_id=given), f"/user_id {AN_ID}") for given in NO_IDS),
    *((with_line(sku=given), f"/lines/1/sku {AN_ID}") for given in NO_IDS),
    *((with_line(line_id=given), f"/lines/1/line_id {AN_ID}") for given in NO_IDS),
    *((but(create, shipping_address_ref=given), f"/shipping_address_ref {AN_ID}") for given in NO_IDS),
    *((but(amend, shipping_address_ref=given), f"/shipping_address_ref {AN_ID}") for given in NO_IDS),
    *((but(pay, payment_id=given), f"/payment_id {AN_ID}") for given in NO_IDS),
    *(
        (but(command, currency=currency), "/currency must be an ISO 4217 currency code")
        for command in (create, pay)
        for currency in ("", "eur", "EU", "EURO", "EUR ", "XXX", "XAU", "XTS", "ZZZ", "€")
    ),
    (with_line(name="n" * 201), f"/lines/1/name {A_TEXT}"),
    *((with_line(quantity=given), "/lines/1/quantity must be 1…1000000") for given in (0, -1, 10**6 + 1, *INT64)),
    *(
        (with_line(unit_price=given), "/lines/1/unit_price must be 0…1000000000000")
        for given in (-1, 10**12 + 1, *INT64)
    ),
    (with_lines(0), "/lines must be 1…500 lines, not 0"),
    (with_lines(501), "/lines must be 1…500 lines, not 501"),
    *(
        (but(command, **{field: given}), f"/{field} {AN_AMOUNT}")
        for command in (create, amend)
        for field in ("discount", "tax", "shipping")
        for given in (-1, 2**53 + 1, *INT64)
    ),
    (but(amend, shipping=2**53), "/lines must be at most 2^53 in total"),
    *((but(pay, amount=given), f"/amount {AN_AMOUNT}") for given in (-1, 2**53 + 1, *INT64)),
    (but(create, discount=3401), "/discount must be at most the subtotal, 3400"),
    (but(amend, discount=3401), "/discount must be at most the subtotal, 3400"),
    (but(create, metadata={f"key-{n}": "" for n in range(21)}), "/metadata must be at most 20 entries"),
    (but(create, metadata={"k" * 41: ""}), "/metadata must be a map with keys of at most 40 characters"),
    (but(amend, metadata={"k": "v" * 501}), "/metadata must be a map with values of at most 500 characters"),
    *((but(ship, carrier=given), f"/carrier {AN_ID}") for given in NO_IDS),
    *((but(ship, tracking_number=given), f"/tracking_number {AN_ID}") for given in NO_IDS),
    (but(cancel, note="n" * 201), f"/note {A_TEXT}"),
    *(
        (but(cancel, reason=given), "/reason must be one of " + ", ".join(CANCEL_REASONS))
        for given in ("", "Other", "refund", "other ")
    ),
    (
        but(amend, shipping_address_ref=None),
        "the command must be an amendment of at least one field",
    ),
]


@pytest.mark.parametrize(("command", "detail"), FAULTS)
def test_values_past_their_limits_are_refused_with_a_pointer(command, detail):
    assert fault_in(command) == detail
    assert pointer_in(command) == (detail.split()[0] if detail.startswith("/") else None)


AMENDABLE = ("lines", "discount", "tax", "shipping", "shipping_address_ref", "metadata")


@pytest.mark.parametrize(
    ("command", "detail", "field"),
    [
        (command, detail, field)
        for command, detail in FAULTS
        for field in AMENDABLE
        if isinstance(command, CreateOrder) and detail.startswith((f"/{field} ", f"/{field}/"))
    ],
)
def test_an_amendment_has_the_limits_of_a_create(command, detail, field):
    assert fault_in(but(amend, **{field: getattr(command, field)})) == detail


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param((but(mugs, line_id="a"), but(mugs, line_id="a")), id="twice the same"),
        pytest.param((but(mugs, line_id="2"), mugs), id="a given 2 before the second line"),
        pytest.param((mugs, but(mugs, line_id="1")), id="a given 1 after the first line"),
        pytest.param((mugs, mugs, but(mugs, line_id="2")), id="a given 2 after the second line"),
    ],
)
@pytest.mark.parametrize("command", [create, amend], ids=lambda command: command.command_id)
def test_no_two_lines_of_an_order_have_the_same_id(command, lines):
    assert fault_in(but(command, lines=lines)) == "/lines must be lines with different line_ids"


def test_a_given_id_may_look_like_a_place_that_is_not_taken():
    event = answer_to(but(create, lines=(but(mugs, line_id="2"), but(mugs, line_id="1"), mugs)))
    assert isinstance(event, Event)
    assert isinstance(answer_to(but(create, lines=(but(mugs, line_id="02"), mugs))), Event)


def test_a_total_goes_up_to_2_to_the_53rd_and_not_past_it():
    whole = but(create, lines=(but(mugs, quantity=9007, unit_price=10**12),), discount=0, shipping=0)
    room = 2**53 - 9007 * 10**12
    event = answer_to(but(whole, tax=room))
    assert isinstance(event, Event)
    assert getattr(event.fact, "total", None) == 2**53
    assert fault_in(but(whole, tax=room + 1)) == "/lines must be at most 2^53 in total"
    assert fault_in(but(whole, tax=room, shipping=1)) == "/lines must be at most 2^53 in total"
    assert isinstance(answer_to(but(whole, tax=room, shipping=1, discount=1)), Event)


def test_the_largest_lines_overflow_nothing_and_are_refused():
    largest = Line(sku="gold", quantity=10**6, unit_price=10**12)
    assert fault_in(but(create, lines=(largest,) * 500)) == "/lines must be at most 2^53 in total"
    assert fault_in(but(amend, lines=(largest,) * 500)) == "/lines must be at most 2^53 in total"
    assert fault_in(but(create, tax=2**53, shipping=2**53)) == "/lines must be at most 2^53 in total"


@pytest.mark.parametrize("amount", [0, 2**53])
def test_an_amount_at_its_limit_is_compared_with_the_total(amount):
    rejection = answer_to(but(pay, amount=amount))
    assert isinstance(rejection, Rejection)
    assert rejection.reason == Reason.PAYMENT_MISMATCH


@pytest.mark.parametrize("field", AMENDABLE)
def test_one_field_alone_is_a_change(field):
    nothing = but(amend, shipping_address_ref=None)
    assert isinstance(answer_to(but(nothing, **{field: getattr(create, field)})), Event)


def test_the_pointer_names_the_first_line_at_fault():
    bad = but(mugs, quantity=0)
    lines = (*(but(mugs, sku=f"sku-{n}") for n in range(499)), bad)
    assert fault_in(but(create, lines=lines)).startswith("/lines/499/quantity ")
    assert fault_in(but(create, lines=(mugs, bad, bad))).startswith("/lines/1/quantity ")


SECRET = "<script>\n4111-1111-1111-1111" * 20


@pytest.mark.parametrize(
    "command",
    [
        but(create, actor=DANA, correlation_id=SECRET, discount=3401),
        but(create, actor=SHOP, user_id=SECRET),
        but(create, currency=SECRET),
        with_line(sku=SECRET),
        with_line(line_id=SECRET),
        with_line(name=SECRET),
        but(create, shipping_address_ref=SECRET),
        but(create, metadata={SECRET: "value"}),
        but(create, metadata={"key": SECRET}),
        but(pay, payment_id=SECRET),
        but(pay, currency=SECRET),
        but(ship, carrier=SECRET),
        but(ship, tracking_number=SECRET),
        but(cancel, reason=SECRET),
        but(cancel, note=SECRET),
    ],
)
def test_a_refusal_does_not_echo_the_input(command):
    detail = fault_in(command)
    assert "4111" not in detail
    assert "script" not in detail
    assert len(detail) < 200


def test_no_number_that_was_given_is_echoed():
    for command in (with_line(quantity=-987654321), but(create, tax=-987654321), but(pay, amount=-987654321)):
        assert "987654321" not in fault_in(command)


def test_currencies_are_codes_of_three_letters():
    assert all(len(code) == 3 and code.isascii() and code.isupper() for code in CURRENCIES)
    assert {"EUR", "USD", "GBP", "JPY", "CHF", "CNY", "INR", "BHD"} <= CURRENCIES
