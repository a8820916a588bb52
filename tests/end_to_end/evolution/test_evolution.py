"""The next version of a schema, for real: old and new programs write and read one log."""

import ast
import json
import shutil
import subprocess
import sys
from io import BytesIO
from typing import Any

import fastavro
import msgspec
import pytest
from fastavro.utils import generate_many

from order_service.domain.messages import COMMAND_TYPES, Rejection
from order_service.errors import DecodeError
from order_service.wire import avro
from order_service.wire.schemas.catalogue import SCHEMAS, prefix_of
from order_service.wire.schemas.files import faults
from tests.support import later, samples
from tests.support.apicurio import Apicurio
from tests.support.samples import but

NOTE = {"name": "note_of_v2", "type": ["null", "string"], "default": None}
LATER_ID = 1_999_999_999
MESSAGES = [*samples.events, samples.order_cancelled, samples.ship_refused]
CODECS: Any = {True: (avro.encode_rejection, avro.decode_rejection), False: (avro.encode_event, avro.decode_event)}
OUTPUT = [schema for schema in SCHEMAS.newest.values() if schema.message not in COMMAND_TYPES]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return later.make(tmp_path_factory.mktemp("later"))


def with_note(schema):
    """Return the next version of a schema."""
    return schema.avro | {"fields": [*schema.avro["fields"], NOTE]}


def write(schema, value):
    data = BytesIO()
    fastavro.schemaless_writer(data, schema, value)
    return data.getvalue()


@pytest.mark.parametrize("schema", SCHEMAS.released, ids=lambda schema: schema.file)
def test_every_reader_reads_every_writer(schema):
    """As any Avro library does it, by both schemas: the new field is null, or left out."""
    old, new = fastavro.parse_schema(schema.avro), fastavro.parse_schema(with_note(schema))
    for value in generate_many(new, 5):
        bare = {name: each for name, each in value.items() if name != NOTE["name"]}
        assert fastavro.schemaless_reader(BytesIO(write(new, value)), new, old) == _read(old, bare)
        assert fastavro.schemaless_reader(BytesIO(write(old, bare)), old, new) == _read(old, bare) | {
            NOTE["name"]: None
        }


def _read(schema, value):
    return fastavro.schemaless_reader(BytesIO(write(schema, value)), schema, None)


@pytest.mark.parametrize("schema", OUTPUT, ids=lambda schema: schema.file)
def test_an_old_program_that_looks_an_id_up_reads_what_a_new_one_wrote(schema):
    [message] = [one for one in MESSAGES if schema.message in {type(one), type(getattr(one, "fact", None))}]
    encode, decode = CODECS[schema.message is Rejection]
    value = prefix_of(LATER_ID) + encode(message)[5:] + b"\2\x0ca note"
    with pytest.raises(DecodeError, match=f"the schema id {LATER_ID} is unknown"):
        decode(value)
    assert SCHEMAS.learn(LATER_ID, json.dumps(with_note(schema)))
    assert decode(value) == message
    for end in range(len(value)):
        with pytest.raises(DecodeError):
            decode(value[:end])


def test_a_new_program_reads_what_old_ones_wrote(place):
    """All sample events, written here, and read there: what is new is null."""
    values = [avro.encode_event(event).hex() for event in samples.events]
    script = (
        "import sys, msgspec; from order_service.wire.avro import decode_event\n"
        "for line in sys.stdin: print(msgspec.json.encode(decode_event(bytes.fromhex(line))).decode())"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=place, input="\n".join(values), capture_output=True, text=True, timeout=60, check=True
    )
    read = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["fact"].pop("service_level", "not there") for event in read] == [
        None if event["fact"]["type"] == "OrderShipped" else "not there" for event in read
    ]
    assert read == [json.loads(msgspec.json.encode(event)) for event in samples.events]


@pytest.mark.timeout(240)  # it starts a registry and a dozen programs
def test_old_and_new_programs_share_one_log(service, place, tmp_path):
    """Old worker, new worker, old worker again: old and new projectors and readers find one history of each order."""
    with Apicurio(tmp_path) as registry:
        known = {"SCHEMA_REGISTRY_URL": registry.url, "ORDERS_LOG": "json"}
        ids = []
        for number, (root, settings) in enumerate([(later.ROOT, {}), (place, known), (later.ROOT, known)]):
            worker = service.start_worker(module=("order_service.cli", "worker"), root=root, **settings).wait_ready()
            service.send(life(f"order-{number}"))
            service.wait_outcomes(3 * (number + 1))
            worker.end()
            [shipped] = [one for one in service.read(service.names.events) if is_shipping(one, f"order-{number}")]
            ids.append(int.from_bytes(shipped.value()[1:5], "big"))
        assert len(set(ids)) == 3, "the file's, the registry's of version 2, the registry's of version 1"
        for name, root, level in (("old", later.ROOT, [None] * 3), ("new", place, [None, "standard", None])):
            views = {"ORDERS_DATABASE_URL": f"sqlite:///{tmp_path}/{name}.db", **known}
            service.start_worker(module=("order_service.cli", "projector"), root=root, **views).wait_ready()
            assert [level_of(service, root, known, f"order-{number}") for number in range(3)] == level
            assert subscribed(service, root, known) == [(f"order-{number}", one) for number, one in enumerate(level)]
        service.start_worker(module=("order_service.cli", "worker"), root=place, **known).wait_ready()
        service.send([but(samples.deliver, order_id=f"order-{number}", command_id=f"d{number}") for number in range(3)])
        service.wait_outcomes(12)
        delivered = [one for one in service.read(service.names.events) if type_of(one) == b"orders.v1.OrderDelivered"]
        assert {event.key().decode() for event in delivered} == {"order-0", "order-1", "order-2"}


def life(order_id):
    """Return the commands of an order up to its shipping."""
    named = {"order_id": order_id}
    pay = but(samples.pay, command_id=f"pay-{order_id}", amount=samples.created.total, **named)
    return [
        but(samples.create, command_id=f"create-{order_id}", **named),
        pay,
        but(samples.ship, command_id=f"ship-{order_id}", **named),
    ]


def is_shipping(message, order_id):
    return message.key().decode() == order_id and type_of(message) == b"orders.v1.OrderShipped"


def type_of(message):
    return dict(message.headers())["ce_type"]


SUBSCRIBER = """
import asyncio
from order_service.sdk import OrderEvents, OrderShipped

async def main():
    seen = {}
    async with OrderEvents.projection() as events:
        async for happened in events:
            event = happened.event
            if type(event.fact) is OrderShipped:
                seen[event.order_id] = getattr(event.fact, "service_level", None)
                if len(seen) == 3:
                    return print(sorted(seen.items()))

asyncio.run(main())
"""


def subscribed(service, root, settings):
    """Return what the SDK of a version makes of the log: each order, and how fast it goes."""
    environment = service.environment | settings
    command = [sys.executable, "-c", SUBSCRIBER]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


def level_of(service, root, settings, order_id):
    command = [sys.executable, "-m", "order_service.cli", "timeline", order_id, "--json"]
    environment = service.environment | settings
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [shipped] = [line for line in map(json.loads, done.stdout.splitlines()) if line.get("type") == "OrderShipped"]
    return shipped.get("service_level")


def test_the_guide_says_what_is_done_here(tmp_path):
    """Its steps are those of `later`, its refusals are those of the check."""
    guide = (later.ROOT / "docs/guide/evolving-schemas.md").read_text()
    old, new = ((root / f"OrderShipped.v{version}.avsc").read_text() for root, version in SCHEMA_FILES)
    added = [line for line in new.splitlines() if line not in old.splitlines()]
    assert all(f"+{line}" in guide for line in added)
    for before, after in later.EDITS.values():
        new_lines = [line for line in after.splitlines() if line not in before.splitlines()]
        assert new_lines
        assert all(line in guide for line in new_lines)
    for spoil in (unnamed, with_a_duty, edited, with_an_old_id):
        shutil.copytree(later.ROOT / "schemas", tmp_path / spoil.__name__)
        shutil.copy(later.ROOT / "tests/end_to_end/evolution" / later.SCHEMA, tmp_path / spoil.__name__)
        spoil(tmp_path / spoil.__name__)
        assert f"schemas: {faults(tmp_path / spoil.__name__)[0]}" in guide, spoil.__name__


SCHEMA_FILES = (later.ROOT / "schemas", 1), (later.ROOT / "tests/end_to_end/evolution", 2)


def unnamed(_place):
    """Leave it without an id."""


def with_a_duty(place):
    """Make the new field one that every record must have."""
    file = place / later.SCHEMA
    optional, duty = '"type": ["null", "string"],\n      "default": null', '"type": "string"'
    before, _, after = file.read_text().rpartition(optional)
    file.write_text(before + duty + after)
    later.give_id(place, later.SCHEMA, 1_000_000_015)


def edited(place):
    """Edit the released one."""
    file = place / "OrderShipped.v1.avsc"
    file.write_text(file.read_text().replace("Who carries it", "Who brings it"))
    (place / later.SCHEMA).unlink()


def with_an_old_id(place):
    """Return it the id of the one before."""
    later.give_id(place, later.SCHEMA, 1_000_000_004)
