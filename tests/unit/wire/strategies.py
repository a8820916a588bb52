"""Every value that a message can have on the wire, also those that the rules refuse."""

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from order_service.domain.messages import (
    COMMAND_TYPES,
    AmendOrder,
    CancelOrder,
    CreateOrder,
    DeliverOrder,
    Event,
    Line,
    OrderAmended,
    OrderCancelled,
    OrderCreated,
    OrderDelivered,
    OrderPaid,
    OrderShipped,
    PayOrder,
    Rejection,
    ShipOrder,
)

ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)
texts = st.text(max_size=80)  # of any characters but lone surrogates
correlation_ids = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=80)
numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(-200, 200)
digests = st.binary(min_size=16, max_size=16)
metadata = st.dictionaries(texts, texts, max_size=4)
times = st.integers(-62_135_596_800_000, 253_402_300_799_999).map(
    lambda ms: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
)


def _maybe(values):
    return st.none() | values


def _lines(line_ids):
    line = st.builds(Line, line_id=line_ids, sku=texts, name=_maybe(texts), quantity=numbers, unit_price=numbers)
    return st.lists(line, max_size=3).map(tuple)


def _command(kind, **fields):
    return st.builds(
        kind,
        command_id=ids,
        order_id=ids,
        actor=texts,
        expected_version=_maybe(numbers),
        decide_by=_maybe(times),
        correlation_id=_maybe(correlation_ids),
        **fields,
    )


commands = st.one_of(
    _command(
        CreateOrder,
        user_id=texts,
        currency=texts,
        lines=_lines(_maybe(texts)),
        discount=numbers,
        tax=numbers,
        shipping=numbers,
        shipping_address_ref=_maybe(texts),
        metadata=metadata,
    ),
    _command(
        AmendOrder,
        lines=_maybe(_lines(_maybe(texts))),
        discount=_maybe(numbers),
        tax=_maybe(numbers),
        shipping=_maybe(numbers),
        shipping_address_ref=_maybe(texts),
        metadata=_maybe(metadata),
    ),
    _command(PayOrder, payment_id=texts, amount=numbers, currency=texts),
    _command(ShipOrder, carrier=texts, tracking_number=texts),
    _command(DeliverOrder),
    _command(CancelOrder, reason=texts, note=_maybe(texts)),
)


def _contents(kind):
    return st.builds(
        kind,
        user_id=texts,
        currency=texts,
        lines=_lines(texts),
        discount=numbers,
        tax=numbers,
        shipping=numbers,
        total=numbers,
        shipping_address_ref=_maybe(texts),
        metadata=metadata,
    )


events = st.builds(
    Event,
    event_id=texts,
    order_id=texts,
    version=numbers,
    command_id=texts,
    command_digest=digests,
    correlation_id=_maybe(texts),
    actor=texts,
    occurred_at=times,
    previous_digest=_maybe(digests),
    fact=st.one_of(
        _contents(OrderCreated),
        _contents(OrderAmended),
        st.builds(OrderPaid, payment_id=texts, amount=numbers, currency=texts),
        st.builds(OrderShipped, carrier=texts, tracking_number=texts),
        st.builds(OrderDelivered),
        st.builds(OrderCancelled, reason=texts, note=_maybe(texts), refund_due=numbers),
    ),
)

rejections = st.builds(
    Rejection,
    rejection_id=texts,
    command_id=texts,
    command_digest=digests,
    command_type=st.sampled_from([command.__name__ for command in COMMAND_TYPES]),
    order_id=texts,
    reason=texts,
    detail=texts,
    status=texts,
    version=numbers,
    actor=texts,
    rejected_at=times,
    correlation_id=_maybe(texts),
    pointer=_maybe(texts),
)
