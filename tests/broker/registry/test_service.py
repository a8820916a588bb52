"""The service with a real registry: turned on later, silent at the wrong time, and asked about what is not ours."""

import json
import re
import signal
import subprocess
import sys

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from sqlalchemy import create_engine, text

from order_service.local.broker import free_port
from order_service.sdk import OrderEvents, UnknownEvent
from order_service.sdk.testing import order_delivered
from order_service.sdk.testing.samples import as_unknown
from order_service.wire.avro import decode_event, digest
from order_service.wire.schemas.catalogue import EVERY_EVENT, SCHEMAS, prefix_of
from order_service.wire.schemas.files import FIRST_ID
from tests.broker.registry.foreign_schemas import LIST
from tests.support import samples
from tests.support.samples import but
from tests.support.service import until
from tests.support.shop import Http

CREATE = SCHEMAS.of_file("CreateOrder.v1.avsc")


@pytest.fixture
def with_registry(apicurio):
    return {"SCHEMA_REGISTRY_URL": apicurio.url, "ORDERS_LOG": "json"}


@pytest.fixture
def foreign(apicurio):
    with SchemaRegistryClient({"url": apicurio.url}) as client:
        yield client


@pytest.fixture
def views(tmp_path):
    return {"ORDERS_DATABASE_URL": f"sqlite:///{tmp_path}/views.db"}


def created(numbers):
    return [but(samples.create, order_id=f"order-{number}", command_id=f"create-{number}") for number in numbers]


def cancelled(numbers):
    return [but(samples.cancel, order_id=f"order-{number}", command_id=f"cancel-{number}") for number in numbers]


def schema_id_of(message):
    return int.from_bytes(message.value()[1:5], "big")


def test_a_registry_that_is_turned_on_later_leaves_the_old_log_readable(service, with_registry, foreign, views):
    """The files' ids first, then the registry's: our processes read both, and so do foreign ones."""
    first = service.start_worker().wait_ready()
    service.send(created(range(5)))
    service.wait_outcomes(5)
    first.send(signal.SIGTERM)
    assert first.wait_ended() == 0
    projector = ("order_service.cli", "projector")
    service.start_worker(module=projector, **views, **with_registry).wait_ready()
    service.start_worker(**with_registry).wait_ready()
    service.send(created(range(5, 10)) + cancelled(range(10)))
    service.wait_outcomes(20)
    service.send([but(samples.pay, order_id="order-0", command_id="late")])
    service.wait_outcomes(21)
    events = service.read(service.names.events)
    assert {schema_id_of(event) >= FIRST_ID for event in events} == {True, False}
    for number in (0, 9):
        lines = order_service(service, with_registry, "timeline", f"order-{number}", "--json").stdout.splitlines()
        assert [json.loads(line)["type"] for line in lines[:2]] == ["OrderCreated", "OrderCancelled"]
    until(lambda: events_in(views) == 20, "the views hold all of both kinds")
    read = AvroDeserializer(foreign)
    for event in events:
        if schema_id_of(event) < FIRST_ID:
            value = read(event.value(), SerializationContext(event.topic(), MessageField.VALUE))
            assert value["order_id"] == event.key().decode()
    assert {schema_id_of(one) < FIRST_ID for one in service.read(service.names.rejections)} == {True}


def test_a_silent_registry_delays_only_the_partitions_that_need_it(service, foreign, apicurio, with_registry):
    """A command by an id that the worker never met waits for the registry, and so does garbage that looks like one."""
    worker = service.start_worker(**with_registry).wait_ready()
    service.send(created(range(3)))
    service.wait_outcomes(3)
    value = create_by_a_foreign_id(service, foreign, command_id="foreign", order_id="foreign")
    held = service.partition_of("foreign")
    others = [command for command in created(range(3, 40)) if service.partition_of(command.order_id) != held]
    with apicurio.silent():
        garbage = [("foreign", prefix_of(5_000 + number) + b"?") for number in range(50)]
        service.send([("foreign", value), *garbage, *others])
        service.wait_outcomes(3 + len(others))
        until(lambda: f"partition {held} waits for the schema registry" in worker.faults(), "readiness names it")
        assert service.outcome_count() == 3 + len(others)
    service.wait_outcomes(3 + len(others) + 51)
    assert b"foreign" in {event.key() for event in service.read(service.names.events)}
    assert {dict(letter.headers())["dl_reason"] for letter in service.dead_letters()} == {b"unknown_schema"}
    until(worker.is_ready, "it is ready again")


def test_a_worker_that_begins_without_the_registry_waits_and_says_so(service, apicurio, with_registry):
    with apicurio.silent():
        worker, told_to_end = (
            service.start_worker(**with_registry, module=("order_service.cli", "worker")) for _ in range(2)
        )
        until(
            lambda: all("does not answer in time" in one.faults() for one in (worker, told_to_end)),
            "both say why they wait",
        )
        told_to_end.send(signal.SIGTERM)
        assert told_to_end.wait_ended() == 0
        service.send(created(range(2)))
        assert service.outcome_count() == 0
    worker.wait_ready()
    service.wait_outcomes(2)
    assert len(worker.lines("Waiting for the schema registry.")) == 1


def test_views_wait_for_what_they_cannot_read_yet(service, apicurio, with_registry, views):
    projector = service.start_worker(module=("order_service.cli", "projector"), **views, **with_registry).wait_ready()
    service.start_worker(**with_registry).wait_ready()
    with apicurio.silent():
        service.send(created(range(2)))
        service.wait_outcomes(2)
        until(
            lambda: re.search("is stopped at offset 0: .*schema registry", projector.faults()),
            "it says what it waits for",
        )
    projector.wait_ready()
    until(lambda: events_in(views) == 2, "the views hold what came meanwhile")


def create_by_a_foreign_id(service, foreign, **fields):
    """Encode a create by our schema without its texts, which a registry gives an id of its own."""
    plain = [{name: value for name, value in field.items() if name != "doc"} for field in CREATE.avro["fields"]]
    theirs = json.dumps(CREATE.avro | {"fields": plain, "doc": service.app_id})
    serialize = AvroSerializer(foreign, theirs, lambda command, _: command)
    return serialize(
        {
            "command_id": "create-1",
            "order_id": "order-1",
            "actor": "user:dana",
            "user_id": "dana",
            "currency": "EUR",
            "lines": [{"sku": "mug", "quantity": 1, "unit_price": 100}],
            "metadata": {},
            **fields,
        },
        SerializationContext(service.names.commands, MessageField.VALUE),
    )


def test_a_waiting_create_is_decided_by_a_worker_that_never_met_its_schema_id(service, foreign, with_registry):
    first = service.start_worker(**with_registry).wait_ready()
    slow = {"user_id": "slow-600000-dana", "actor": "user:slow-600000-dana"}
    service.send([("order-1", create_by_a_foreign_id(service, foreign, **slow))])
    until(service.waiting, "the create waits")
    first.send(signal.SIGKILL)
    first.wait_ended()
    heir = service.start_worker(ORDERS_USER_DEADLINE_S="1").wait_ready()
    service.wait_outcomes(1)
    assert [rejection.reason for rejection in service.rejections()] == ["user_check_timed_out"]
    assert heir.process.poll() is None


def test_commands_by_ids_that_the_worker_never_met(service, foreign, with_registry):
    """One of our schemas under a subject of its producer's own is a command; a recursive one is a dead letter."""
    worker = service.start_worker(**with_registry).wait_ready()
    value = create_by_a_foreign_id(service, foreign)
    recursive = foreign.register_schema(f"{service.names.commands}-list", Schema(json.dumps(LIST), "AVRO"))
    service.send([("order-1", value), ("order-1", prefix_of(recursive) + b"\2" * 10_000 + b"\0")])
    service.wait_outcomes(2)
    [event] = service.read(service.names.events)
    assert decode_body(event).order_id == "order-1"
    [letter] = service.dead_letters()
    assert dict(letter.headers())["dl_reason"] == b"unknown_schema"
    assert letter.value()[5:] == b"\2" * 10_000 + b"\0"
    assert worker.is_ready()


def test_the_command_line_lists_checks_and_registers(service, foreign, with_registry):
    def run(*arguments, code=0):
        return order_service(service, with_registry, "schemas", *arguments, code=code)

    missing = run("check", code=1).stderr.splitlines()
    assert len(missing) == len(SCHEMAS.released)
    assert missing[0].endswith(": run `order-service schemas register`")
    assert len(run("register").stdout.splitlines()) == len(SCHEMAS.released)
    assert run("check").stdout.strip().endswith(f"{with_registry['SCHEMA_REGISTRY_URL']} has them")
    [line, *_] = [json.loads(line) for line in run("list", "--json").stdout.splitlines()]
    assert foreign.get_schema(line["registry_id"]).schema_str == SCHEMAS.of_file(line["file"]).text
    foreign.set_compatibility(line["subject"], "NONE")
    assert f"{line['subject']} has the compatibility NONE, which is weaker than FULL_TRANSITIVE" in run("check").stderr
    run("register")
    assert foreign.get_compatibility(line["subject"]) == "NONE", "a level that is set stays"


def test_a_worker_that_must_not_register_waits_until_another_account_has(service, with_registry, foreign):
    reading = {**with_registry, "ORDERS_SCHEMA_REGISTRY_REGISTER": "false"}
    worker = service.start_worker(**reading, module=("order_service.cli", "worker"))
    subject = f"{service.names.events}-orders.v1.OrderCreated"
    until(lambda: f"lacks OrderCreated.v1.avsc in the subject {subject}" in worker.faults(), "it names the subject")
    assert subject not in foreign.get_subjects()
    refused = order_service(service, reading, "schemas", "register", code=1).stderr
    assert "ORDERS_SCHEMA_REGISTRY_REGISTER=true order-service schemas register" in refused
    order_service(service, reading | {"ORDERS_SCHEMA_REGISTRY_REGISTER": "true"}, "schemas", "register")
    worker.wait_ready()
    service.send(created(range(1)))
    service.wait_outcomes(1)
    assert schema_id_of(service.read(service.names.events)[0]) < FIRST_ID


def test_commands_over_http_have_the_registry_s_ids(service, with_registry, views):
    service.start_worker(**with_registry).wait_ready()
    service.start_worker(module=("order_service.cli", "projector"), **views, **with_registry).wait_ready()
    port = free_port()
    web = {"ORDERS_HTTP_PORT": str(port), **views, **with_registry}
    service.start_worker(module=("order_service.cli", "web"), **web).wait_ready()
    http = Http(port)
    until(lambda: http.create().status == 201 and schema_id_of(newest_command(service)) < FIRST_ID, "a registry's id")


def newest_command(service):
    return max(service.read(service.names.commands), key=lambda message: message.timestamp())


def decode_body(event):
    """Decode an event whose id this process has not looked up."""
    return decode_event(SCHEMAS.of_file("OrderCreated.v1.avsc").prefix + event.value()[5:])


def order_service(service, environment, *arguments, code=0):
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "order_service.cli", *arguments]
    all_of_it = service.environment | environment
    done = subprocess.run(command, env=all_of_it, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def events_in(views):
    engine = create_engine(views["ORDERS_DATABASE_URL"])
    try:
        with engine.connect() as connection:
            return connection.scalar(text("SELECT count(*) FROM order_events"))
    finally:
        engine.dispose()


async def test_a_subscriber_goes_on_where_the_next_version_registers_a_new_type(service, foreign, with_registry):
    """Its schema is in the registry, as `schemas register` of the next version puts it there."""
    service.start_worker(**with_registry).wait_ready()
    service.send([samples.create])
    service.wait_outcomes(1)
    [created] = service.read(service.names.events)
    fields = [*EVERY_EVENT["fields"], {"name": "reason", "type": "string"}]
    returned = {"type": "record", "name": "OrderReturned", "namespace": "orders.v1", "fields": fields}
    subject = f"{service.names.events}-orders.v1.OrderReturned"
    schema_id = foreign.register_schema(subject, Schema(json.dumps(returned), "AVRO"))
    event = order_delivered(version=2, previous_digest=digest(created.value()))
    value, headers = as_unknown(event, "OrderReturned", schema_id)
    service.producer.produce(service.names.events, key=event.order_id, value=value, headers=headers)
    assert service.producer.flush(30) == 0
    settings = service.settings().model_copy(update={"schema_registry_url": with_registry["SCHEMA_REGISTRY_URL"]})
    async with OrderEvents.projection(settings=settings) as events:
        first, second = await anext(events), await anext(events)
    assert schema_id in SCHEMAS.new_types
    assert isinstance(second.event, UnknownEvent)
    assert (second.event.type, second.event.version) == ("OrderReturned", 2)
    assert second.event.previous_digest == first.digest
