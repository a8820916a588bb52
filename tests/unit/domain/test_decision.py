"""The answer to a command: who asks, when, for which version, whether again, and what is known of the user."""

from datetime import datetime, timedelta, timezone

import msgspec
import pytest

from order_service.domain.decision import (
    MAX_AMENDMENTS,
    AskUser,
    Repeat,
    UserCheck,
    answer,
    payment_due_at,
    payment_timeout,
    reject,
)
from order_service.domain.entry import (
    MAX_REFUSED,
    Entry,
    FullEntry,
    after_event,
    after_rejection,
    forgotten,
    short_entry,
)
from order_service.domain.identity import command_digest, event_id
from order_service.domain.messages import AmendOrder, CancelOrder, Command, CreateOrder, Event, Rejection
from order_service.domain.order import Cancelled, Created
from order_service.domain.refusals import MEANINGS, NEVER_REMEMBERED, Reason, Refusal
from order_service.errors import HistoryError
from tests.support.foreign_ids import ENCODABLE_NO_IDS
from tests.support.samples import (
    DANA,
    EARLIER,
    EVE,
    LATER,
    NOW,
    ORDER_ID,
    SHOP,
    amend,
    amended,
    but,
    cancel,
    cancelled_with_refund,
    commands,
    create,
    created,
    deliver,
    digest_of,
    entry_after,
    event_of,
    events,
    mugs,
    order_amended,
    order_created,
    pay,
    poster,
    ship,
    ship_refused,
    short_of,
    take,
    uuid_of,
)

MS = timedelta(milliseconds=1)

new_order = entry_after([create])
amended_order = entry_after([create, amend])
paid_order = entry_after([create, pay])
no_mugs = but(create, lines=(but(mugs, quantity=0),))
amend_by_nothing = but(amend, shipping_address_ref=None)


def refusal_of(command: Command, entry: Entry | None, user: UserCheck | None = UserCheck.ACTIVE) -> Rejection:
    rejection = answer(command, entry, NOW, user)
    assert isinstance(rejection, Rejection), rejection
    return rejection


def event_after(command: Command, entry: Entry | None, now: datetime = NOW) -> Event:
    event = answer(command, entry, now, UserCheck.ACTIVE)
    assert isinstance(event, Event), event
    return event


# Acceptance


def test_a_whole_life_is_five_events():
    entry = None
    life: tuple[Command, ...] = (create, amend, pay, ship, deliver)
    for command, event in zip(life, events, strict=True):
        outcome, entry = take(command, entry, event.occurred_at)
        assert outcome == event


def test_an_entry_holds_the_order_the_head_of_its_history_and_what_it_remembers():
    assert amended_order == FullEntry(
        order=Created(*msgspec.structs.astuple(amended)),
        created_at=NOW,
        changed_at=NOW,
        head=digest_of(but(order_amended, occurred_at=NOW)),
        accepted=(("create-1", command_digest(create)), ("amend-1", command_digest(amend))),
        refused=(),
    )
    assert amended_order.version == 2


def test_a_closed_order_forgets_after_its_time_and_an_open_one_never_does():
    cancelled_order = entry_after([create, cancel])
    assert forgotten(cancelled_order, NOW + timedelta(days=1) - MS, 86_400) is None
    short = forgotten(cancelled_order, NOW + timedelta(days=1), 86_400)
    assert short is not None
    assert short == short_entry(cancelled_order)
    assert (short.order, short.version, short.head) == (cancelled_order.order, 2, cancelled_order.head)
    assert (short.accepted, short.refused) == ((), ())
    assert forgotten(short, NOW + timedelta(days=2), 86_400) is None, "it has nothing more to forget"
    assert forgotten(paid_order, NOW + timedelta(days=9_999), 86_400) is None


CLOSED = (entry_after([create, cancel]), entry_after([create, pay, ship, deliver]))


@pytest.mark.parametrize("entry", CLOSED, ids=["cancelled", "delivered"])
@pytest.mark.parametrize("command", commands, ids=lambda command: type(command).__name__)
def test_an_order_that_has_forgotten_refuses_each_command_as_it_did_before(entry, command):
    short = short_of(entry)
    again, new = but(command, decide_by=None), but(command, command_id="new")
    assert refusal_of(new, short) == refusal_of(new, entry)
    assert refusal_of(again, short).reason == refusal_of(new, short).reason, "a repeat is a new command"
    if isinstance(command, CreateOrder):
        assert refusal_of(again, short).reason == Reason.ORDER_EXISTS
    if isinstance(command, AmendOrder | CancelOrder):
        eves = but(new, actor=EVE)
        assert refusal_of(eves, short) == refusal_of(eves, entry)
        assert refusal_of(eves, short).reason == Reason.ORDER_NOT_FOUND
    assert after_rejection(short, refusal_of(new, short)) is short, "it remembers no refusal"


def test_a_cancellation_of_a_paid_order_owes_a_refund():
    assert event_after(cancel, paid_order).fact == cancelled_with_refund


# Which check comes first: in each case all the named ones apply, and the first of them is the answer

_late = {"decide_by": NOW - MS}
PRECEDENCE: list[tuple[str, Command, Entry | None, Reason | type[Repeat]]] = [
    ("memory before deadline", but(create, **_late), new_order, Repeat),
    ("a reused id before deadline", but(create, tax=1, **_late), new_order, Reason.COMMAND_ID_REUSED),
    ("memory before not allowed", but(pay, command_id="create-1", actor=EVE), new_order, Reason.COMMAND_ID_REUSED),
    ("memory before existence", create, new_order, Repeat),
    ("memory before another's", but(cancel, command_id="create-1", actor=EVE), new_order, Reason.COMMAND_ID_REUSED),
    ("memory before version", but(cancel, command_id="create-1", expected_version=9), new_order,
     Reason.COMMAND_ID_REUSED),
    ("memory before content", but(no_mugs, tax=1), new_order, Reason.COMMAND_ID_REUSED),
    ("memory before the table", but(ship, command_id="create-1"), new_order, Reason.COMMAND_ID_REUSED),
    ("deadline before not allowed", but(pay, actor=DANA, **_late), new_order, Reason.DEADLINE_PASSED),
    ("deadline before absence", but(pay, **_late), None, Reason.DEADLINE_PASSED),
    ("deadline before existence", but(create, command_id="create-2", **_late), new_order, Reason.DEADLINE_PASSED),
    ("deadline before another's", but(cancel, actor=EVE, **_late), new_order, Reason.DEADLINE_PASSED),
    ("deadline before version", but(cancel, expected_version=9, **_late), new_order, Reason.DEADLINE_PASSED),
    ("deadline before content", but(no_mugs, **_late), None, Reason.DEADLINE_PASSED),
    ("deadline before the table", but(ship, **_late), new_order, Reason.DEADLINE_PASSED),
    ("not allowed before absence", but(pay, actor=DANA), None, Reason.NOT_ALLOWED),
    ("not allowed before existence", but(create, command_id="create-2", actor=EVE), new_order, Reason.NOT_ALLOWED),
    ("not allowed before another's", but(ship, actor=EVE), new_order, Reason.NOT_ALLOWED),
    ("not allowed before version", but(ship, actor=DANA, expected_version=9), new_order, Reason.NOT_ALLOWED),
    ("not allowed before content", but(no_mugs, actor=EVE), None, Reason.NOT_ALLOWED),
    ("not allowed before the table", but(ship, actor=DANA), new_order, Reason.NOT_ALLOWED),
    ("absence before version", but(cancel, expected_version=9), None, Reason.ORDER_NOT_FOUND),
    ("absence before content", amend_by_nothing, None, Reason.ORDER_NOT_FOUND),
    ("existence before version", but(create, command_id="create-2", expected_version=0), new_order,
     Reason.ORDER_EXISTS),
    ("existence before content", but(no_mugs, command_id="create-2"), new_order, Reason.ORDER_EXISTS),
    ("another's before version", but(cancel, actor=EVE, expected_version=9), new_order, Reason.ORDER_NOT_FOUND),
    ("another's before content", but(amend_by_nothing, actor=EVE), new_order, Reason.ORDER_NOT_FOUND),
    ("another's before the table", but(amend, actor=EVE), paid_order, Reason.ORDER_NOT_FOUND),
    ("version before content of a create", but(no_mugs, expected_version=1), None, Reason.VERSION_CONFLICT),
    ("version before content", but(amend_by_nothing, expected_version=9), new_order, Reason.VERSION_CONFLICT),
    ("version before the table", but(ship, expected_version=9), new_order, Reason.VERSION_CONFLICT),
    ("version before the payment", but(pay, amount=1, expected_version=9), new_order, Reason.VERSION_CONFLICT),
    ("content before the table", but(ship, carrier=""), new_order, Reason.INVALID_ORDER),
    ("content before the payment", but(pay, amount=-1), new_order, Reason.INVALID_ORDER),
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "entry", "first"), [pytest.param(*case, id=sentence) for sentence, *case in PRECEDENCE]
)
def test_which_check_comes_first(command, entry, first):
    outcome = answer(command, entry, NOW, UserCheck.ACTIVE)
    assert (outcome.reason if isinstance(outcome, Rejection) else type(outcome)) == first


@pytest.mark.parametrize("user", [None, *(check for check in UserCheck if check != UserCheck.ACTIVE)])
@pytest.mark.parametrize(
    ("command", "entry", "first"),
    [
        pytest.param(create, new_order, Repeat, id="memory"),
        pytest.param(but(create, **_late), None, Reason.DEADLINE_PASSED, id="deadline"),
        pytest.param(but(create, actor=EVE), None, Reason.NOT_ALLOWED, id="not allowed"),
        pytest.param(but(create, command_id="create-2"), new_order, Reason.ORDER_EXISTS, id="existence"),
        pytest.param(but(create, expected_version=1), None, Reason.VERSION_CONFLICT, id="version"),
        pytest.param(no_mugs, None, Reason.INVALID_ORDER, id="content of a line"),
        pytest.param(but(create, discount=3401), None, Reason.INVALID_ORDER, id="content of the whole"),
    ],
)
def test_the_user_comes_last_and_nobody_is_asked_in_vain(command, entry, first, user):
    outcome = answer(command, entry, NOW, user)
    assert (outcome.reason if isinstance(outcome, Rejection) else type(outcome)) == first


# The user


def test_a_create_asks_for_its_user_before_it_is_decided():
    assert answer(create, None, NOW) == AskUser("dana")
    assert answer(but(create, actor=SHOP), None, NOW) == AskUser("dana")


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        (UserCheck.NOT_FOUND, Reason.USER_NOT_FOUND),
        (UserCheck.NOT_ACTIVE, Reason.USER_NOT_ACTIVE),
        (UserCheck.TIMED_OUT, Reason.USER_CHECK_TIMED_OUT),
    ],
)
def test_a_create_for_a_user_who_may_not_order_is_refused(user, reason):
    rejection = refusal_of(create, None, user)
    assert (rejection.reason, rejection.status, rejection.version) == (reason, "absent", 0)


@pytest.mark.parametrize("command", [amend, pay, cancel], ids=lambda command: type(command).__name__)
def test_nothing_but_a_create_asks_for_a_user(command):
    assert isinstance(answer(command, new_order, NOW), Event)


# Every reason can happen

full = entry_after([create, *(but(amend, command_id=f"amend-{n}") for n in range(MAX_AMENDMENTS))])
shipped_order = entry_after([create, pay, ship])
delivered_order = entry_after([create, pay, ship, deliver])
cancelled_order = entry_after([create, cancel])

REACHED: dict[Reason, tuple[Command, Entry | None, UserCheck]] = {
    Reason.ORDER_EXISTS: (but(create, command_id="create-2"), new_order, UserCheck.ACTIVE),
    Reason.ORDER_NOT_FOUND: (pay, None, UserCheck.ACTIVE),
    Reason.ORDER_CANCELLED: (pay, cancelled_order, UserCheck.ACTIVE),
    Reason.NOT_PAID: (ship, new_order, UserCheck.ACTIVE),
    Reason.NOT_SHIPPED: (deliver, paid_order, UserCheck.ACTIVE),
    Reason.ALREADY_PAID: (amend, paid_order, UserCheck.ACTIVE),
    Reason.ALREADY_SHIPPED: (cancel, shipped_order, UserCheck.ACTIVE),
    Reason.ALREADY_DELIVERED: (cancel, delivered_order, UserCheck.ACTIVE),
    Reason.PAYMENT_MISMATCH: (but(pay, amount=3799), new_order, UserCheck.ACTIVE),
    Reason.TOO_MANY_CHANGES: (but(amend, command_id="amend-50"), full, UserCheck.ACTIVE),
    Reason.INVALID_ORDER: (no_mugs, None, UserCheck.ACTIVE),
    Reason.VERSION_CONFLICT: (but(pay, expected_version=2), new_order, UserCheck.ACTIVE),
    Reason.NOT_ALLOWED: (but(pay, actor=DANA), new_order, UserCheck.ACTIVE),
    Reason.COMMAND_ID_REUSED: (but(create, tax=1), new_order, UserCheck.ACTIVE),
    Reason.DEADLINE_PASSED: (but(pay, **_late), new_order, UserCheck.ACTIVE),
    Reason.USER_NOT_FOUND: (create, None, UserCheck.NOT_FOUND),
    Reason.USER_NOT_ACTIVE: (create, None, UserCheck.NOT_ACTIVE),
    Reason.USER_CHECK_TIMED_OUT: (create, None, UserCheck.TIMED_OUT),
}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_the_answer_to_some_command(reason):
    if reason is Reason.TOO_MANY_WAITING:  # said by the waiting room: one more command than can wait
        rejection = reject(pay, None, NOW, Refusal(reason))
    else:
        rejection = refusal_of(*REACHED[reason])
    assert rejection.reason == reason


# Memory


@pytest.mark.parametrize("count", range(1, 6))
def test_a_repeat_of_an_accepted_command_changes_nothing(count):
    life = (create, amend, pay, ship, deliver)
    entry = entry_after(life[:count])
    for command in life[:count]:
        assert take(command, entry, LATER) == (Repeat(), entry)


def test_a_repeat_of_a_refused_command_is_not_accepted_later():
    entry = entry_after([create, ship, pay])
    assert refusal_of(ship, new_order).reason == Reason.NOT_PAID
    assert take(ship, entry) == (Repeat(), entry)
    assert isinstance(answer(but(ship, command_id="ship-2"), entry, NOW), Event)


def test_a_repeat_with_another_deadline_or_correlation_is_a_repeat():
    assert answer(but(create, decide_by=LATER, correlation_id="visit-8"), new_order, NOW) == Repeat()


@pytest.mark.parametrize(
    "command",
    [
        but(create, tax=301),
        but(create, actor=SHOP),
        but(create, expected_version=0),
        but(cancel, command_id="create-1"),
    ],
)
def test_an_id_used_with_another_content_is_refused(command):
    assert refusal_of(command, new_order).reason == Reason.COMMAND_ID_REUSED


def test_an_id_that_was_refused_is_used_up_too_and_both_its_contents_are_remembered():
    rejected = entry_after([create, ship])
    other = but(ship, carrier="UPS")
    rejection, entry = take(other, rejected)
    assert isinstance(rejection, Rejection)
    assert rejection.reason == Reason.COMMAND_ID_REUSED
    assert answer(other, entry, NOW) == answer(ship, entry, NOW) == Repeat()


def test_the_last_16_refusals_are_remembered_and_the_one_before_is_decided_anew():
    refused = [but(ship, command_id=f"ship-{n}") for n in range(MAX_REFUSED + 1)]
    entry = entry_after([create, *refused])
    assert [known_id for known_id, _ in entry.refused] == [f"ship-{n}" for n in range(1, 17)]
    for command in refused[1:]:
        assert answer(command, entry, NOW) == Repeat()
    anew = refusal_of(refused[0], entry)
    assert anew.rejection_id == refusal_of(refused[0], new_order).rejection_id


def test_a_repeat_that_is_forgotten_is_refused_for_its_deadline_or_version_first():
    entry = entry_after([create, cancel])
    late, of_version_1 = but(create, decide_by=NOW - MS), but(cancel, expected_version=1)
    assert refusal_of(late, short_of(entry)).reason == Reason.DEADLINE_PASSED
    assert refusal_of(of_version_1, short_of(entry)).reason == Reason.VERSION_CONFLICT


def test_accepted_commands_are_never_forgotten_over_refused_ones():
    entry = entry_after([create, *(but(ship, command_id=f"ship-{n}") for n in range(40))])
    assert answer(create, entry, NOW) == Repeat()


@pytest.mark.parametrize("reason", Reason)
def test_an_order_remembers_refusals_except_those_of_the_moment(reason):
    rejection = reject(ship, new_order, NOW, Refusal(reason))
    entry = after_rejection(new_order, rejection)
    assert entry is not None
    remembered = (("ship-1", command_digest(ship)),)
    assert entry == but(new_order, refused=() if reason in NEVER_REMEMBERED else remembered)


def test_a_retry_after_a_refusal_of_the_moment_is_a_new_attempt():
    entry = entry_after([create, but(cancel, **_late)])
    assert isinstance(answer(but(cancel, decide_by=LATER), entry, NOW), Event)


def test_an_order_that_does_not_exist_remembers_nothing():
    rejection, entry = take(pay, None)
    assert entry is None
    assert take(pay, entry) == (rejection, None)


def test_refusals_before_an_order_exists_do_not_count_after():
    assert entry_after([pay, create]) == new_order
    assert isinstance(answer(pay, new_order, NOW), Event)


def test_an_order_is_amended_50_times_and_not_more():
    amendments = [but(amend, command_id=f"amend-{n}") for n in range(MAX_AMENDMENTS + 1)]
    almost = entry_after([create, *amendments[:49]])
    assert isinstance(answer(amendments[49], almost, NOW), Event)
    full = entry_after([create, *amendments[:50]])
    assert full.version == 51
    assert refusal_of(amendments[50], full).reason == Reason.TOO_MANY_CHANGES
    assert [answer(command, full, NOW) for command in amendments[:50]] == [Repeat()] * 50


def test_an_order_with_all_its_amendments_is_still_paid_shipped_and_delivered():
    amendments = [but(amend, command_id=f"amend-{n}") for n in range(MAX_AMENDMENTS)]
    entry = entry_after([create, *amendments, but(amend, command_id="amend-50"), pay, ship, deliver])
    assert entry.version == 54
    assert answer(create, entry, NOW) == Repeat()


# Who may do what


@pytest.mark.parametrize("command", [pay, ship, deliver], ids=lambda command: type(command).__name__)
def test_payments_and_shipments_are_not_a_users(command):
    assert refusal_of(but(command, actor=DANA), new_order).reason == Reason.NOT_ALLOWED


def test_a_user_creates_for_itself_only_and_a_service_for_all():
    assert refusal_of(but(create, user_id="eve"), None).reason == Reason.NOT_ALLOWED
    assert event_after(but(create, actor=EVE, user_id="eve"), None).actor == EVE
    assert event_after(but(create, actor=SHOP), None).actor == SHOP


@pytest.mark.parametrize("command", [amend, cancel], ids=lambda command: type(command).__name__)
def test_a_user_amends_and_cancels_its_own_order_and_a_service_every_one(command):
    assert event_after(command, new_order).actor == DANA
    assert event_after(but(command, actor=SHOP), new_order).actor == SHOP


@pytest.mark.parametrize("command", [amend, cancel], ids=lambda command: type(command).__name__)
@pytest.mark.parametrize("entry", [new_order, paid_order])
def test_of_anothers_order_one_learns_no_more_than_of_none(entry, command):
    foreign = but(command, actor=EVE)
    assert refusal_of(foreign, entry) == refusal_of(foreign, None)
    assert refusal_of(foreign, entry).reason == Reason.ORDER_NOT_FOUND


@pytest.mark.parametrize("command", [ship, but(cancel, expected_version=1)], ids=lambda command: command.command_id)
def test_no_refusal_tells_another_user_the_status_or_version_of_an_order(command):
    rejection = refusal_of(but(command, actor=EVE), paid_order)
    assert (rejection.status, rejection.version) == ("absent", 0)


@pytest.mark.parametrize(
    "actor",
    ["", "dana", "user:", "USER:dana", "users:dana", "admin:dana", "service:", "service", ":dana", " user:dana", "\0",
     *(f"{kind}:{text}" for kind in ("user", "service") for text in ENCODABLE_NO_IDS.values())],
)  # fmt: skip
@pytest.mark.parametrize("command", [create, amend, pay, cancel], ids=lambda command: type(command).__name__)
def test_who_is_neither_a_user_nor_a_service_may_do_nothing(command, actor):
    entry = None if command is create else new_order
    assert refusal_of(but(command, actor=actor), entry).reason == Reason.NOT_ALLOWED


@pytest.mark.parametrize("actor", ["", "dana", "admin:dana", "user:dana2", "users:dana"])
def test_who_is_neither_its_user_nor_a_service_sees_nothing_of_an_order(actor):
    rejection = refusal_of(but(ship, actor=actor), paid_order)
    assert (rejection.status, rejection.version) == ("absent", 0)


# For which version


@pytest.mark.parametrize(
    ("command", "entry"),
    [
        pytest.param(but(create, expected_version=0), None, id="0 is a new order"),
        pytest.param(but(amend, expected_version=1), new_order, id="1 is an unchanged order"),
        pytest.param(but(pay, expected_version=2), amended_order, id="2 is an order that changed once"),
    ],
)
def test_the_expected_version_lets_pass_what_was_expected(command, entry):
    assert isinstance(answer(command, entry, NOW, UserCheck.ACTIVE), Event)


@pytest.mark.parametrize("expected", [-(2**63), -1, 0, 1, 3, 2**63 - 1])
def test_another_version_is_a_conflict_that_names_both(expected):
    rejection = refusal_of(but(pay, expected_version=expected), amended_order)
    assert (rejection.reason, rejection.version) == (Reason.VERSION_CONFLICT, 2)
    assert rejection.detail == f"expected version {expected}, the order is at version 2"


def test_a_create_that_expects_a_version_conflicts_where_there_is_none():
    assert refusal_of(but(create, expected_version=1), None).reason == Reason.VERSION_CONFLICT


# When


def test_a_command_is_decided_at_its_deadline_and_not_a_millisecond_later():
    assert isinstance(answer(but(pay, decide_by=NOW), new_order, NOW), Event)
    assert refusal_of(but(pay, decide_by=NOW - MS), new_order).reason == Reason.DEADLINE_PASSED


def test_a_deadline_is_a_point_in_time_whatever_its_zone():
    zone = timezone(timedelta(hours=5, minutes=30))
    assert isinstance(answer(but(pay, decide_by=NOW.astimezone(zone)), new_order, NOW), Event)
    assert refusal_of(but(pay, decide_by=(NOW - MS).astimezone(zone)), new_order).reason == Reason.DEADLINE_PASSED


def test_an_order_never_runs_backwards_when_the_clock_does():
    event = event_after(pay, new_order, now=EARLIER)
    assert event.occurred_at == NOW
    assert after_event(new_order, event, b"head").changed_at == NOW
    assert event_after(pay, new_order, now=LATER).occurred_at == LATER


def test_an_entry_knows_when_its_order_was_created_and_changed():
    entry = entry_after([pay], entry_after([create], now=EARLIER), now=LATER)
    assert (entry.created_at, entry.changed_at) == (EARLIER, LATER)
    assert entry_after([ship], new_order, now=LATER).changed_at == NOW


# Payment due


def test_the_payment_timeout_is_the_same_command_every_time():
    assert payment_timeout(ORDER_ID) == payment_timeout(ORDER_ID)
    assert payment_timeout(ORDER_ID).command_id == uuid_of(ORDER_ID, "payment_timeout")
    assert payment_timeout(ORDER_ID).command_id != payment_timeout("order-2").command_id


def test_an_order_that_is_not_paid_in_time_cancels_itself_once():
    event, entry = take(payment_timeout(ORDER_ID), new_order)
    assert isinstance(event, Event)
    assert entry is not None
    assert entry.order == Cancelled("dana")
    assert take(payment_timeout(ORDER_ID), entry) == (Repeat(), entry)


def test_a_payment_is_due_until_it_is_paid_or_cancelled():
    assert payment_due_at(new_order, 3600) == LATER
    assert payment_due_at(entry_after([amend], new_order, now=LATER), 3600) == LATER
    assert payment_due_at(new_order, 0.5) == NOW + timedelta(milliseconds=500)
    assert payment_due_at(paid_order, 3600) is None
    assert payment_due_at(entry_after([create, cancel]), 3600) is None


# Names and digests


def test_ids_are_the_uuid5_of_the_documented_names():
    assert event_id(ORDER_ID, 7) == uuid_of(ORDER_ID, "7")
    assert event_after(create, None).event_id == uuid_of(ORDER_ID, "1")
    assert event_after(pay, amended_order).event_id == uuid_of(ORDER_ID, "3")
    assert refusal_of(ship, new_order).rejection_id == uuid_of(ORDER_ID, "ship-1", command_digest(ship).hex())


def test_ids_stay_what_they_were_in_the_first_release():
    assert event_id("order-1", 1) == "179b6706-a077-5452-acd0-b5e2f04b5caf"
    assert payment_timeout("order-1").command_id == "8b54147b-5d86-5050-95fa-a0acd5f58d4e"
    assert command_digest(create).hex() == "d12ff9e46ac197380d0e96c1b07c51b3"


def test_a_rejection_says_who_wanted_what_of_which_order_and_why_not():
    assert refusal_of(ship, new_order) == ship_refused


@pytest.mark.parametrize("reason", Reason)
def test_a_rejection_without_a_detail_says_the_cause(reason):
    assert reject(pay, new_order, NOW, Refusal(reason)).detail == MEANINGS[reason].cause
    assert reject(pay, new_order, NOW, Refusal(reason, "more")).detail == "more"


def test_one_more_command_than_can_wait_is_refused_by_name():
    rejection = reject(pay, None, NOW, Refusal(Reason.TOO_MANY_WAITING))
    assert (rejection.reason, rejection.status, rejection.version) == ("too_many_waiting", "absent", 0)


def test_a_digest_is_the_digest_of_the_message_pack_without_deadline_and_correlation():
    for command in commands:
        assert command_digest(command) == digest_of(but(command, decide_by=None, correlation_id=None))
        assert len(command_digest(command)) == 16


@pytest.mark.parametrize("command", commands, ids=lambda command: type(command).__name__)
def test_a_digest_is_the_same_for_the_same_wish_sent_again(command):
    assert command_digest(but(command, decide_by=LATER, correlation_id="visit-8")) == command_digest(command)


@pytest.mark.parametrize("command", commands, ids=lambda command: type(command).__name__)
def test_a_digest_is_the_same_for_a_command_that_came_as_json(command):
    data = msgspec.json.encode(command)
    assert command_digest(msgspec.json.decode(data, type=type(command))) == command_digest(command)


def test_a_digest_does_not_depend_on_the_order_of_metadata():
    one, other = {"a": "1", "b": "2"}, {"b": "2", "a": "1"}
    assert command_digest(but(create, metadata=one)) == command_digest(but(create, metadata=other))
    assert command_digest(but(amend, metadata=one)) == command_digest(but(amend, metadata=other))


OTHER: dict[str, object] = {
    "command_id": "other", "order_id": "other", "actor": "user:other", "expected_version": 7, "user_id": "other",
    "currency": "USD", "lines": (poster,), "discount": 7, "tax": 7, "shipping": 7, "shipping_address_ref": "other",
    "metadata": {"other": "7"}, "payment_id": "other", "amount": 7, "carrier": "other", "tracking_number": "other",
    "reason": "other", "note": "other",
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "field"),
    [
        pytest.param(command, field, id=f"{type(command).__name__}.{field}")
        for command in commands
        for field in command.__struct_fields__
        if field not in {"decide_by", "correlation_id"}
    ],
)
def test_a_digest_differs_for_every_other_field(command, field):
    assert command_digest(but(command, **{field: OTHER[field]})) != command_digest(command)


@pytest.mark.parametrize(
    "other",
    [
        but(create, lines=(poster, mugs)),
        but(create, lines=(but(mugs, line_id="1"), poster)),
        but(create, lines=(but(mugs, name=None), poster)),
        but(create, lines=(but(mugs, quantity=3), poster)),
        but(create, metadata={"web": "channel"}),
        but(create, shipping_address_ref=None),
    ],
)
def test_a_digest_differs_for_every_part_of_a_field(other):
    assert command_digest(other) != command_digest(create)


def test_a_digest_differs_between_nothing_given_and_a_default_given():
    nothing = command_digest(amend)
    defaults: list[dict[str, object]] = [{"discount": 0}, {"tax": 0}, {"shipping": 0}, {"metadata": {}}, {"lines": ()}]
    for given in defaults:
        assert command_digest(but(amend, **given)) != nothing


def test_a_digest_differs_between_kinds_of_commands_with_the_same_fields():
    ids = {"command_id": "c", "order_id": ORDER_ID, "actor": SHOP}
    empty_amend = msgspec.convert({"type": "AmendOrder", **ids}, type=type(amend))
    empty_deliver = msgspec.convert({"type": "DeliverOrder", **ids}, type=type(deliver))
    assert command_digest(empty_amend) != command_digest(empty_deliver)


# Folding


@pytest.mark.parametrize(
    ("entry", "event"),
    [
        pytest.param(None, but(order_created, version=0), id="a history starts at 1"),
        pytest.param(None, but(order_created, version=2), id="a history has its first event"),
        pytest.param(None, but(order_created, previous_digest=b"x"), id="nothing is before the first event"),
        pytest.param(new_order, order_created, id="an event comes once"),
        pytest.param(new_order, but(order_amended, version=3), id="a version is missing"),
        pytest.param(new_order, but(order_amended, previous_digest=b"x"), id="another event was before"),
        pytest.param(new_order, but(order_amended, previous_digest=None), id="something was before"),
        pytest.param(None, but(order_amended, version=1, previous_digest=None), id="an amendment of nothing"),
        pytest.param(new_order, but(order_amended, fact=created, previous_digest=new_order.head), id="created twice"),
    ],
)
def test_an_event_that_cannot_follow_stops_the_fold(entry, event):
    with pytest.raises(HistoryError):
        after_event(entry, event, b"head")


def test_folding_events_and_rejections_gives_the_entry_that_deciding_gave():
    entry: Entry | None = None
    for outcome in (order_created, ship_refused, order_amended):
        entry = (
            after_event(entry, outcome, digest_of(outcome))
            if isinstance(outcome, Event)
            else after_rejection(entry, outcome)
        )
    assert entry == entry_after([amend], entry_after([create, ship]), now=LATER)


def test_an_event_is_made_of_the_command_that_led_to_it():
    assert event_after(amend, new_order, now=LATER) == order_amended
    assert event_of(amend, amended, order_created) == order_amended


# On disk


LIVES: list[tuple[Command, ...]] = [
    (create,),
    (create, ship),
    (create, amend),
    (create, pay),
    (create, pay, ship),
    (create, pay, ship, deliver),
    (create, cancel),
    (but(create, shipping_address_ref=None, metadata={}, correlation_id=None),),
]


@pytest.mark.parametrize("life", LIVES, ids=lambda life: " ".join(command.command_id for command in life))
def test_an_entry_survives_message_pack(life):
    entry = entry_after(life)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(entry), type=FullEntry)
    assert again == entry
    assert type(again.order) is type(entry.order)
    for command in commands:
        assert answer(command, again, NOW, UserCheck.ACTIVE) == answer(command, entry, NOW, UserCheck.ACTIVE)
