"""Parity: one topic of good and bad commands, decided by every peer; all outcomes must be those of our worker."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import structs

from bench.load import LIFE, Shop, produce
from bench.peers import peer
from bench.peers.backlog import other_outputs
from bench.watching import WrongResult
from bench.world import World
from order_service.domain.messages import AmendOrder, CancelOrder, Command, CreateOrder, Line
from order_service.wire import avro
from order_service.wire.commands import encode_json_command
from tests.support.service import Service, until

SEED = 1
ORDERS = 400
DEFAULT = ("ours", "streams-20ms", "streams-rocksdb-100ms", "quix-1000ms")
WITHIN_S = 120.0
TIME = "ce_time"
"""The one header that differs, because peers decide at different times."""
LAST = CancelOrder(command_id="last", order_id="last", actor="service:parity", reason="other")
"""It is refused, because its order does not exist. One per partition, behind all others."""

Outcomes = dict[str, Counter[str]]
"""The outcomes of each kind as texts."""


def check(world: World, names: Sequence[str]) -> None:
    """Have each peer decide the same topic. Raises WrongResult if an outcome differs from ours, or is missing."""
    with world.service() as service:
        records = [*mixed(SEED), *_last_ones(service)]
        lasts = {order_id for order_id, _ in records[-service.partitions :]}
        with peer.Ours().running(service) as running:
            _produce(service, records[:1])
            until(service.events, "our worker knows the user of the first order, so that no later command must wait")
            _produce(service, records[1:])
            expected = _outcomes(service, "ours", running, lasts)
        for name in names:
            if name != "ours":
                with other_outputs(world, service) as view, peer.named(name).running(view) as running:
                    compare(name, _outcomes(view, name, running, lasts), expected)
        counts = ", ".join(f"{found.total():,} {kind}" for kind, found in expected.items())
        world.say(f"parity: {len(records):,} commands, {counts}; the same from {', '.join(names)}")


def _produce(service: Service, records: Sequence[tuple[str, bytes]]) -> None:
    produce(service.bootstrap_servers, service.names.commands, records)


def mixed(seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield keys and values: the lives of orders, some shuffled, with faults, repeats and bytes that are no command.

    The first one creates an order. All users are known and active.
    """
    draw = random.Random(seed)
    shop = Shop("parity")
    long_life = _long_life(shop, ORDERS)
    yield next(long_life)
    for number in range(ORDERS):
        commands = [step(shop, number) for step in LIFE] + [_cancel(draw, shop, number)]
        if draw.random() < 0.2:
            draw.shuffle(commands)
        for command in commands:
            for sent in _variants(draw, command):
                encode = draw.choice([encode_json_command, avro.encode_command])
                yield sent.order_id, encode(sent)
        if draw.random() < 0.1:
            yield shop.order_id(number), draw.choice(NOT_COMMANDS)
    yield from long_life
    yield "another-key", encode_json_command(LIFE[0](shop, ORDERS + 1))


NOT_COMMANDS = (
    b"",
    b"\x00",
    b"\x00\x00\x00\x00\x01",
    b"nonsense",
    b"[]",
    b"{nonsense",
    b'{"type":"NoSuchCommand"}',
    b'{"type":"DeliverOrder","command_id":"c","order_id":"o"}',
    b'{"type":"DeliverOrder","command_id":"c","order_id":"o","actor":"service:x","amount":1}',
    b'{"type":"DeliverOrder","command_id":"c","order_id":"not an id","actor":"service:x"}',
    b'{"type":"PayOrder","command_id":"c","order_id":"o","actor":"x","payment_id":"p","amount":"1","currency":"EUR"}',
)


def _cancel(draw: random.Random, shop: Shop, number: int) -> Command:
    actor = draw.choice(["service:support", "user:eve", f"user:{shop.user(number)}"])
    reason = draw.choice(["fraud", "other", "nonsense"])
    return CancelOrder(
        **shop.head(number, 7), actor=actor, reason=reason, note=draw.choice([None, "a note", "é" * 201])
    )


def _variants(draw: random.Random, command: Command) -> Iterator[Command]:
    """Yield the command, perhaps with a fault, and perhaps again."""
    if draw.random() < (0.15 if isinstance(command, CreateOrder) else 0.3):
        command = draw.choice(FAULTS)(draw, command)
    yield command
    if draw.random() < 0.15:
        yield command
    if draw.random() < 0.05:
        yield structs.replace(command, correlation_id="again")
    if draw.random() < 0.05:
        yield structs.replace(command, actor="service:another")
    if draw.random() < 0.15:
        yield structs.replace(command, command_id=f"{command.command_id}-again")


def _with(**changes: Any) -> Callable[[random.Random, Command], Command]:
    """Return a change to those of the fields that a command has."""

    def changed(_draw: random.Random, command: Command) -> Command:
        fields = {name: value for name, value in changes.items() if name in command.__struct_fields__}
        return structs.replace(command, **fields)

    return changed


def _other_version(draw: random.Random, command: Command) -> Command:
    return structs.replace(command, expected_version=draw.randrange(5))


def _other_lines(draw: random.Random, command: Command) -> Command:
    if not isinstance(command, CreateOrder | AmendOrder):
        return command
    return structs.replace(command, lines=draw.choice(LINES))


LINES: tuple[tuple[Line, ...], ...] = (
    (),
    (Line(sku="", quantity=1, unit_price=1),),
    (Line(sku="a\tb", quantity=1, unit_price=1),),
    (Line(sku="é 1", name="n" * 201, quantity=1, unit_price=1),),
    (Line(sku="mug", quantity=0, unit_price=1),),
    (Line(sku="mug", quantity=1, unit_price=-1),),
    (Line(line_id="2", sku="mug", quantity=1, unit_price=1), Line(sku="mug", quantity=1, unit_price=1)),
    (Line(line_id="first", sku="mug blue", name="Blue 🫖", quantity=1_000_000, unit_price=1),),
    (Line(sku="gold", quantity=10**6, unit_price=10**12),) * 20,
)
FAULTS: tuple[Callable[[random.Random, Command], Command], ...] = (
    _other_version,
    _other_lines,
    _with(actor="user:eve"),
    _with(actor="service:"),
    _with(actor="nobody"),
    _with(decide_by=datetime(2020, 1, 1, tzinfo=UTC)),
    _with(decide_by=datetime(2100, 1, 1, 2, 30, 0, 500_000, tzinfo=UTC), correlation_id="trace 1"),
    _with(currency="XXX"),
    _with(amount=1),
    _with(amount=-1),
    _with(discount=100, tax=3),
    _with(discount=10**9),
    _with(tax=-1),
    _with(shipping=2**53),
    _with(shipping_address_ref=""),
    _with(metadata={"b": "2", "a": "é", "🫖": "3"}),
    _with(metadata={"k" * 41: "1"}),
    _with(metadata={"k": "v" * 501}),
    _with(metadata={str(number): "" for number in range(21)}),
    _with(payment_id="p\n", carrier="", note="n" * 200),
    _with(user_id="another user"),
)


def _long_life(shop: Shop, number: int) -> Iterator[tuple[str, bytes]]:
    """Yield one order with more amendments than are allowed, and more refused commands than it remembers."""
    first = LIFE[0](shop, number)
    yield first.order_id, encode_json_command(first)
    for step in range(60):
        amend = AmendOrder(**shop.head(number, 10 + step), actor="service:shop", shipping=step)
        refused = AmendOrder(**shop.head(number, 100 + step % 20), actor="service:shop", shipping=-1)
        for command in (amend, refused):
            yield command.order_id, encode_json_command(command)


def _last_ones(service: Service) -> Iterator[tuple[str, bytes]]:
    """Yield one command per partition, whose rejection shows that everything before it is decided."""
    for partition in range(service.partitions):
        order_id = next(f"last-{n}" for n in range(10_000) if service.partition_of(f"last-{n}") == partition)
        yield order_id, encode_json_command(structs.replace(LAST, order_id=order_id))


def _outcomes(service: Service, name: str, running: peer.Running, lasts: set[str]) -> Outcomes:
    """Wait until a peer has answered the last command of each partition, and return all its outcomes."""
    try:
        is_done = lambda: lasts <= {refused.order_id for refused in service.rejections()}  # noqa: E731
        until(is_done, f"{name} has decided all", within_s=WITHIN_S)
    except AssertionError as error:
        counts = f"{service.outcome_count():,} outcomes, {len(service.dead_letters()):,} of them dead letters"
        raise WrongResult(f"{error}, {counts}; its log ends with {running.log()}") from error
    service.wait_visible()
    events = service.read(service.names.events)
    _check_chains(name, events)
    found: Outcomes = {
        "events": Counter(_event(message) for message in events),
        "rejections": Counter(_rejection(message) for message in service.read(service.names.rejections)),
        "dead letters": Counter(_dead_letter(message) for message in service.dead_letters()),
    }
    check_not_empty(name, found)
    return found


def _check_chains(name: str, events: list[Any]) -> None:
    """Raise WrongResult unless each event has the digest of the event before it, and the next version."""
    heads: dict[str, tuple[int, bytes | None]] = {}
    for message in events:
        event = avro.decode_event(message.value())
        version, head = heads.get(event.order_id, (0, None))
        if (event.version, event.previous_digest) != (version + 1, head):
            raise WrongResult(f"{name}: version {event.version} of {event.order_id} does not follow version {version}")
        heads[event.order_id] = event.version, avro.digest(message.value())


def _event(message: Any) -> str:
    """Return all of an event but its time, and the digest of the event before it, which contains a time."""
    event = avro.decode_event(message.value())
    fields = structs.asdict(event) | {"occurred_at": None, "previous_digest": None}
    return repr((message.key(), fields, _headers(message)))


def _rejection(message: Any) -> str:
    fields = structs.asdict(avro.decode_rejection(message.value())) | {"rejected_at": None}
    return repr((message.key(), fields, _headers(message)))


def _dead_letter(message: Any) -> str:
    return repr((message.key(), message.value(), dict(message.headers())["dl_reason"]))


def _headers(message: Any) -> list[tuple[str, bytes]]:
    return sorted((name, value) for name, value in message.headers() if name != TIME)


def check_not_empty(name: str, found: Outcomes) -> None:
    """Raise WrongResult if a peer wrote nothing of a kind: two that write nothing would be equal."""
    if empty := [kind for kind, written in found.items() if not written]:
        raise WrongResult(f"{name} wrote no {' and no '.join(empty)}")


def compare(name: str, found: Outcomes, expected: Outcomes) -> None:
    """Raise WrongResult if the outcomes of a peer are not those of our worker."""
    differences = [
        f"{len(only)} {kind} {whose}, such as {next(iter(only))[:1500]}"
        for kind in expected
        for whose, only in (
            ("that our worker wrote are missing", expected[kind] - found[kind]),
            ("are not as our worker wrote them", found[kind] - expected[kind]),
        )
        if only
    ]
    if differences:
        raise WrongResult(f"{name} decides otherwise: {'; '.join(differences)}")
