"""What is no command becomes a dead letter, whole; what is a wrong command a rejection; neither stops anything."""

import json
import random
from collections import Counter
from typing import Any

import pytest
from confluent_kafka import Producer
from msgspec import Struct

from order_service.domain.messages import Command
from order_service.kafka.topics import COMMAND_RECORD_BYTES
from order_service.wire.avro import MAX_COMMAND_BYTES, encode_command
from order_service.wire.commands import encode_json_command, partition_of
from tests.support.samples import DANA, EVE, SHOP, amend, but, cancel, create, deliver, mugs, pay, ship
from tests.support.service import header, until

MARKER = b"planted-secret"
SECRET = MARKER.decode()
KEY = b"order-1"
SHIP = but(ship, order_id="order-1", tracking_number=SECRET)


class Bad(Struct):
    """A record that is no command, and the reason that its dead letter must have."""

    id: str
    reason: str
    value: bytes | None
    key: bytes | None = KEY
    partition: int | None = None


def as_json(**changes: Any) -> bytes:
    """Change the JSON of a good command; None takes a field out."""
    fields = json.loads(encode_json_command(SHIP)) | changes
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def elsewhere(key: bytes, partitions: int = 4) -> int:
    return (partition_of(key, partitions) + 1) % partitions


AVRO = encode_command(SHIP)
JSON = encode_json_command(SHIP)
LONG = random.Random(7).randbytes(2_300_000).hex()
BAD = [
    Bad("random bytes", "unknown_format", b"\x7f" + random.Random(7).randbytes(200) + MARKER),
    Bad("random bytes after an Avro prefix", "not_avro", AVRO[:5] + b"\xff" * 30 + MARKER),
    Bad("truncated Avro", "not_avro", AVRO[:-4]),
    Bad("Avro with bytes left over", "not_avro", AVRO + MARKER),
    Bad("an unknown schema id", "unknown_schema", b"\0\0\0\0\x07" + AVRO[5:]),
    Bad("less than a schema id", "not_avro", AVRO[:4]),
    Bad("JSON that is cut short", "not_json", JSON[:-2]),
    Bad("JSON that is a list", "unknown_format", b"[" + JSON + b"]"),
    Bad("nested too deeply", "not_json", b'{"a":' * 20_000 + MARKER),
    Bad("a wrong type", "bad_shape", as_json(carrier=[SECRET])),
    Bad("a missing field", "bad_shape", as_json(carrier=None)),
    Bad("an unknown field", "bad_shape", as_json(**{SECRET: 1})),
    Bad("an unknown command", "bad_shape", as_json(type=SECRET)),
    Bad("an integer past 64 bits", "bad_shape", as_json(expected_version=2**63)),
    Bad("an empty value", "empty", b""),
    Bad("a tombstone", "empty", None),
    Bad("a null key", "key_missing", JSON, key=None),
    Bad("a null key and a null value", "empty", None, key=None),
    Bad("an empty key", "key_mismatch", JSON, key=b""),
    Bad("the key of another order", "key_mismatch", JSON, key=b"order-2"),
    Bad("a key that is no text", "key_mismatch", JSON, key=b"\xff\xfe" + MARKER),
    Bad("the wrong partition", "wrong_partition", as_json(order_id="new-1"), b"new-1", elsewhere(b"new-1")),
    Bad("a byte too large", "too_large", as_json(tracking_number=SECRET).ljust(MAX_COMMAND_BYTES + 1)),
    Bad("larger than a rejection", "too_large", as_json(actor="user:" + LONG)),
    Bad("as large as the topic takes", "too_large", MARKER.ljust(COMMAND_RECORD_BYTES - 1024)),
    Bad("JSON ids that are no UTF-8", "not_json", JSON.replace(b'"order-1"', b'"order-\xff"')),
    Bad("Avro ids that are no UTF-8", "not_avro", AVRO.replace(b"order-1", b"order-\xff")),
    Bad("an order_id that is a path", "bad_shape", as_json(order_id=".."), key=b".."),
    Bad("a command_id that is a path", "bad_shape", as_json(command_id="..")),
    Bad("an Avro order_id that is a path", "bad_shape", encode_command(but(SHIP, order_id="..")), key=b".."),
]


@pytest.fixture
def large_producer(service):
    """Make the service's producer send what the topic takes; librdkafka stops at 10⁶ bytes by default."""
    servers = {
        "log_level": 0,
        "bootstrap.servers": service.bootstrap_servers,
        "message.max.bytes": COMMAND_RECORD_BYTES,
    }
    service.producer = Producer(servers | {"partitioner": "murmur2_random", "linger.ms": 0})


@pytest.mark.usefixtures("large_producer")
def test_what_is_no_command_becomes_a_dead_letter_between_good_commands(service):
    worker = service.start_worker().wait_lanes(4)
    pid = worker.process.pid
    good = [create, amend, pay, ship, deliver]
    good += [but(create, order_id=f"order-{n}", command_id=f"create-{n}") for n in range(2, len(BAD) - 2)]
    for number, bad in enumerate(BAD):
        headers = [("number", b"%d" % number), ("secret", MARKER), ("nothing", None)]
        where = {} if bad.partition is None else {"partition": bad.partition}
        service.send([(bad.key, bad.value)], headers=headers, **where)
        service.send(good[number : number + 1])
    service.send(good[len(BAD) :])
    service.wait_outcomes(len(good) + len(BAD))
    service.check(good, dead=len(BAD))
    assert service.rejections() == []
    letters = {int(header(letter, "orig_number") or -1): letter for letter in service.dead_letters()}
    origins = {int(header(record, "number") or -1): record for record in service.read(service.names.commands)}
    for number, bad in enumerate(BAD):
        check_letter(bad, letters[number], origins[number], service.names.commands)
    assert worker.is_ready()
    assert worker.process.pid == pid
    assert SECRET not in worker.log()
    counts = Counter(bad.reason for bad in BAD).items()
    samples = [f'orders_dead_letters_total{{reason="{reason}"}} {float(count)}' for reason, count in counts]
    until(lambda: all(sample in worker.admin("/metrics")[1] for sample in samples), "the dead letters are counted")


def check_letter(bad, letter, origin, topic):
    """Check that a dead letter holds all of its record, where it was and why."""
    assert (letter.key(), letter.value()) == (bad.key, bad.value), bad.id
    said = dict(letter.headers())
    assert said["dl_reason"] == bad.reason.encode(), bad.id
    assert said["dl_detail"], bad.id
    assert MARKER not in said["dl_detail"], bad.id
    assert said["dl_topic"] == topic.encode()
    assert (letter.partition(), int(said["dl_partition"])) == (origin.partition(), origin.partition())
    assert int(said["dl_offset"]) == int(said["command_offset"]) == origin.offset()
    assert int(said["dl_timestamp"]) == origin.timestamp()[1]
    assert (said["orig_secret"], said["orig_nothing"]) == (MARKER, b"")


NEW = but(create, actor=SHOP)
REFUSED: list[tuple[str, str, Command]] = [
    ("a negative price", "invalid_order", but(NEW, lines=(but(mugs, unit_price=-1),))),
    ("a price that is too high", "invalid_order", but(NEW, lines=(but(mugs, unit_price=10**12 + 1),))),
    ("the largest of all numbers", "invalid_order", but(NEW, tax=2**63 - 1, shipping=2**63 - 1)),
    ("a total past 2⁵³", "invalid_order", but(NEW, lines=(but(mugs, quantity=10**6, unit_price=10**12),))),
    ("a discount past the subtotal", "invalid_order", but(NEW, discount=3401)),
    ("501 lines", "invalid_order", but(NEW, lines=(but(mugs, name=None),) * 501)),
    ("no line", "invalid_order", but(NEW, lines=())),
    ("an unknown currency", "invalid_order", but(NEW, currency="EURO")),
    ("an invalid user id", "invalid_order", but(NEW, user_id="../admin\0")),
    ("a negative payment", "invalid_order", but(pay, order_id="mine", amount=-3800)),
    ("an order for another", "not_allowed", but(NEW, actor=EVE)),
    ("a payment by a user", "not_allowed", but(pay, order_id="mine", actor=DANA)),
    ("another's order", "order_not_found", but(cancel, order_id="mine", actor=EVE)),
    ("an id that is not free, and another's", "order_exists", but(create, order_id="mine", user_id="eve", actor=EVE)),
    ("a repeat with another content", "command_id_reused", but(create, order_id="mine", tax=301)),
]


def test_the_right_shape_with_a_wrong_value_is_rejected_with_its_reason(service):
    commands: list[Command] = [but(create, order_id="mine")]
    for number, (_, reason, command) in enumerate(REFUSED):
        own_id = command.command_id if reason == "command_id_reused" else f"refused-{number}"
        order_id = command.order_id if command.order_id == "mine" else f"absent-{number}"
        commands.append(but(command, command_id=own_id, order_id=order_id))
    worker = service.start_worker().wait_lanes(4)
    service.send(commands)
    service.wait_outcomes(len(commands))
    refused = {(said.command_id, said.order_id): said.reason for said in service.rejections()}
    for (name, reason, _), command in zip(REFUSED, commands[1:], strict=True):
        assert refused[command.command_id, command.order_id] == reason, name
    assert [event.order_id for event in service.events()] == ["mine"]
    assert service.dead_letters() == []
    assert "../admin" not in service.users.stub.requests
    assert worker.is_ready()


def avro(command):
    return command.order_id, encode_command(command)


def test_avro_and_json_commands_are_the_same_on_one_order(service):
    worker = service.start_worker().wait_lanes(4)
    service.send([avro(create), amend, avro(pay), ship, avro(deliver)])
    service.send([create, avro(amend), pay, avro(ship), deliver])
    service.send([avro(cancel)])
    service.wait_outcomes(6)
    service.check([create, amend, pay, ship, deliver, cancel])
    assert [rejection.reason for rejection in service.rejections()] == ["already_delivered"]
    counted = 'orders_commands_total{outcome="repeated",reason="",type="DeliverOrder"} 1.0'
    until(lambda: counted in worker.admin("/metrics")[1], "the repeats are counted")
