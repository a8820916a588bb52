"""What holds for every history, including unforeseen ones."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from order_service.domain.decision import AskUser, Repeat, UserCheck, answer, reject
from order_service.domain.entry import MAX_REFUSED, Entry, FullEntry, after_event, after_rejection
from order_service.domain.identity import command_digest
from order_service.domain.messages import (
    AmendOrder,
    CancelOrder,
    Command,
    Contents,
    CreateOrder,
    DeliverOrder,
    Event,
    Fact,
    Line,
    OrderCancelled,
    OrderPaid,
    PayOrder,
    Rejection,
    ShipOrder,
)
from order_service.domain.order import ABSENT, Order, decide, evolve, fold
from order_service.domain.refusals import NEVER_REMEMBERED, Reason, Refusal
from tests.support.samples import (
    DANA,
    EVE,
    NOW,
    ORDER_ID,
    SHOP,
    cancel,
    create,
    created,
    deliver,
    digest_of,
    entry_after,
    facts,
    pay,
    ship,
    short_of,
    take,
)

# Commands that may well be accepted: few ids, so that they repeat and collide

few_ids = st.sampled_from([f"c{n}" for n in range(8)])
amounts = st.integers(0, 50)
lines = st.lists(
    st.builds(
        Line,
        line_id=st.none() | st.sampled_from("ab2"),
        sku=st.just("mug"),
        quantity=st.integers(0, 3),
        unit_price=amounts,
    ),
    max_size=3,
).map(tuple)
common: dict[str, st.SearchStrategy[Any]] = {
    "command_id": few_ids,
    "order_id": st.just(ORDER_ID),
    "actor": st.sampled_from([SHOP, SHOP, SHOP, DANA, DANA, EVE, "nobody"]),
    "expected_version": st.none() | st.integers(0, 4),
    "decide_by": st.none() | st.sampled_from([NOW, NOW + timedelta(hours=3)]),
}
likely_commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(
        CreateOrder, **common, user_id=st.just("dana"), currency=st.just("EUR"), lines=lines, discount=amounts,
        tax=amounts, shipping=amounts,
    ),
    st.builds(AmendOrder, **common, lines=st.none() | lines, discount=st.none() | amounts, tax=st.none() | amounts),
    st.builds(
        PayOrder, **common, payment_id=st.just("p"), amount=st.sampled_from([0, 3800]), currency=st.just("EUR")
    ),
    st.builds(ShipOrder, **common, carrier=st.just("DHL"), tracking_number=st.just("1")),
    st.builds(DeliverOrder, **common),
    st.builds(CancelOrder, **common, reason=st.sampled_from(["fraud", "no reason"])),
)  # fmt: skip
times = st.integers(0, 4).map(lambda hours: NOW + timedelta(hours=hours))
checks = st.sampled_from([UserCheck.ACTIVE] * 5 + [None, *UserCheck])
steps = st.lists(st.tuples(likely_commands, times, checks), max_size=40)

# Every command that the types allow, however absurd

ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)
int64s = st.sampled_from([-(2**63), -1, 0, 1, 2**53, 2**53 + 1, 2**63 - 1]) | st.integers(-(2**63), 2**63 - 1)
texts = st.text(max_size=20) | st.sampled_from(["", "\0", "x" * 100_000, DANA, SHOP, "EUR", "dana", "fraud"])
absurd_lines = st.lists(
    st.builds(Line, line_id=st.none() | texts, sku=texts, name=st.none() | texts, quantity=int64s, unit_price=int64s),
    max_size=3,
).map(tuple)
absurd_metadata = st.dictionaries(texts, texts, max_size=3)
absurd_common: dict[str, st.SearchStrategy[Any]] = {
    "command_id": ids,
    "order_id": ids,
    "actor": st.sampled_from([SHOP, DANA]) | texts,
    "expected_version": st.none() | int64s,
    "decide_by": st.none() | st.datetimes(timezones=st.timezones() | st.just(UTC)),
    "correlation_id": st.none() | texts,
}
absurd_commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(
        CreateOrder, **absurd_common, user_id=texts, currency=texts, lines=absurd_lines, discount=int64s, tax=int64s,
        shipping=int64s, shipping_address_ref=st.none() | texts, metadata=absurd_metadata,
    ),
    st.builds(
        AmendOrder, **absurd_common, lines=st.none() | absurd_lines, discount=st.none() | int64s,
        tax=st.none() | int64s, shipping=st.none() | int64s, shipping_address_ref=st.none() | texts,
        metadata=st.none() | absurd_metadata,
    ),
    st.builds(PayOrder, **absurd_common, payment_id=texts, amount=int64s, currency=texts),
    st.builds(ShipOrder, **absurd_common, carrier=texts, tracking_number=texts),
    st.builds(DeliverOrder, **absurd_common),
    st.builds(CancelOrder, **absurd_common, reason=texts, note=st.none() | texts),
)  # fmt: skip
some_orders: st.SearchStrategy[Order] = st.sampled_from(
    [ABSENT, *(fold([created, *facts[2:n]]) for n in range(2, 6)), fold([created, facts[5]])]
)


def history_of(taken: list[tuple[Command, datetime, UserCheck | None]]) -> list[tuple[Any, Entry | None]]:
    """Take commands one after another; give each answer, and the entry after it."""
    entry: Entry | None = None
    history = []
    for command, now, user in taken:
        outcome, entry = take(command, entry, now, user)
        history.append((outcome, entry))
    return history


def events_of(taken: list[tuple[Command, datetime, UserCheck | None]]) -> list[Event]:
    return [outcome for outcome, _ in history_of(taken) if isinstance(outcome, Event)]


@given(steps)
def test_versions_have_no_holes_and_each_event_names_the_one_before(taken):
    events = events_of(taken)
    assert [event.version for event in events] == list(range(1, len(events) + 1))
    assert [event.previous_digest for event in events] == [None, *map(digest_of, events)][: len(events)]
    assert len({event.event_id for event in events}) == len(events)


@given(steps)
def test_time_never_runs_backwards_within_an_order(taken):
    assert all(one.occurred_at <= next_.occurred_at for one, next_ in pairwise(events_of(taken)))


closed_orders = st.sampled_from([entry_after([create, cancel]), entry_after([create, pay, ship, deliver])])


@given(closed_orders, steps, likely_commands, times, checks)
def test_an_order_that_has_forgotten_accepts_nothing_and_refuses_new_commands_as_before(
    entry, taken, command, now, user
):
    for step, at, check in taken:
        _, entry = take(step, entry, at, check)
    assert entry is not None
    short = short_of(entry)
    outcome = answer(command, short, now, user)
    assert isinstance(outcome, Rejection)
    if command.command_id not in {known_id for known_id, _ in entry.accepted + entry.refused}:
        assert outcome == answer(command, entry, now, user)
    assert after_rejection(short, outcome) == short


@given(steps)
def test_a_command_is_accepted_once(taken):
    accepted = [event.command_id for event in events_of(taken)]
    assert len(set(accepted)) == len(accepted)


@given(steps)
def test_a_repeat_of_what_the_order_remembers_changes_nothing(taken):
    _, entry = history_of([*taken, (create, NOW, UserCheck.ACTIVE)])[-1]
    if entry is None:
        return
    for command, now, user in taken:
        if (command.command_id, command_digest(command)) in entry.accepted + entry.refused:
            assert take(command, entry, now, user) == (Repeat(), entry)


@given(steps)
def test_a_whole_history_sent_again_makes_no_event(taken):
    history = history_of(taken)
    entry = history[-1][1] if history else None
    if entry is None:
        return
    accepted = [step for step, (outcome, _) in zip(taken, history, strict=True) if isinstance(outcome, Event)]
    for command, now, user in accepted:
        assert take(command, entry, now, user) == (Repeat(), entry)


@given(steps)
def test_each_command_sent_twice_in_a_row_gives_the_same_history(taken):
    lasting = [(command, now, user) for command, now, user in taken if user is not None]
    twice = [step for step in lasting for _ in range(2)]
    assert events_of(twice) == events_of(lasting)
    assert [entry for _, entry in history_of(twice)][-1:] == [entry for _, entry in history_of(lasting)][-1:]


@given(steps)
def test_replaying_events_and_rejections_gives_the_same_entry(taken):
    history = history_of(taken)
    entry: Entry | None = None
    for outcome, decided in history:
        match outcome:
            case Event():
                entry = after_event(entry, outcome, digest_of(outcome))
            case Rejection():
                entry = after_rejection(entry, outcome)
        assert entry == decided


@given(steps)
def test_an_entry_survives_message_pack(taken):
    for _, entry in history_of(taken):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(entry), type=FullEntry | None) == entry


@given(steps)
def test_every_answer_has_a_known_kind_and_rejections_name_the_state_they_met(taken):
    before: Entry | None = None
    for (command, now, _), (outcome, after) in zip(taken, history_of(taken), strict=True):
        match outcome:
            case Rejection():
                assert outcome.reason in set(Reason)
                assert outcome.rejected_at == now
                seen = before is not None and command.actor in {DANA, SHOP}
                assert (outcome.status, outcome.version) == (
                    (before.order.status, before.version) if before is not None and seen else ("absent", 0)
                )
                remembered = before is not None and outcome.reason not in NEVER_REMEMBERED
                assert (after != before) == remembered
            case Event():
                assert outcome.command_digest == command_digest(command)
            case _:
                assert isinstance(outcome, Repeat | AskUser)
                assert after == before
        before = after


@given(steps)
def test_totals_add_up_and_what_is_paid_and_owed_is_the_total(taken):
    total, paid = 0, 0
    for event in events_of(taken):
        match event.fact:
            case Contents() as contents:
                subtotal = sum(line.quantity * line.unit_price for line in contents.lines)
                total = contents.total
                assert total == subtotal - contents.discount + contents.tax + contents.shipping
                assert 0 <= contents.discount <= subtotal
                assert 0 <= total <= 2**53
                assert len({line.line_id for line in contents.lines} - {None}) == len(contents.lines) >= 1
            case OrderPaid(amount=amount):
                paid = amount
                assert amount == total
            case OrderCancelled(refund_due=refund_due):
                assert refund_due == paid


@given(steps)
def test_the_memory_of_refusals_has_a_bound(taken):
    for _, entry in history_of(taken):
        assert entry is None or len(entry.refused) <= MAX_REFUSED


@given(absurd_commands, some_orders)
def test_deciding_never_raises_and_what_it_decides_can_follow(command, order):
    outcome = decide(command, order)
    if not isinstance(outcome, Refusal):
        assert evolve(order, outcome).status != order.status or order.status == "created"


@given(absurd_commands, st.booleans(), checks)
def test_answering_never_raises_and_a_digest_is_the_same_as_after_json(command, exists, user):
    entry = entry_after([create]) if exists else None
    outcome, after = take(command, entry, NOW, user)
    assert isinstance(outcome, Event | Rejection | Repeat | AskUser)
    assert after is None or msgspec.msgpack.decode(msgspec.msgpack.encode(after), type=FullEntry) == after
    as_json = msgspec.json.encode(command)
    assert command_digest(msgspec.json.decode(as_json, type=type(command))) == command_digest(command)


@given(absurd_commands, st.sampled_from(Reason))
def test_a_rejection_can_be_made_of_every_command(command, reason):
    assert reject(command, None, NOW, Refusal(reason)).version == 0


@given(st.lists(likely_commands, max_size=20))
def test_deciding_and_evolving_alone_follow_each_other(wished):
    order: Order = ABSENT
    made: list[Fact] = []
    for command in wished:
        outcome = decide(command, order)
        if not isinstance(outcome, Refusal):
            order = evolve(order, outcome)
            made.append(outcome)
    assert fold(made) == order
    assert answer(create, None, NOW) == AskUser("dana")
