"""The catalogue is complete, and its examples are true."""

import json

import msgspec
import pytest
from msgspec import structs

from order_service.contracts import asyncapi, catalogue
from order_service.contracts.fields import fields
from order_service.contracts.source import PRIVATE, Source
from order_service.domain.messages import COMMAND_TYPES, FACT_TYPES, Event, OrderShipped, Rejection
from order_service.domain.refusals import RULES, Reason
from order_service.errors import DecodeError
from order_service.kafka.topics import TopicNames, topic_names
from order_service.wire.avro import decode_event, decode_rejection, digest
from order_service.wire.commands import decode_command
from order_service.wire.dead_letters import DeadLetterReason
from order_service.wire.flat import flat
from order_service.wire.schemas.catalogue import SCHEMAS, Catalogue
from tests.support.samples import ORDER_ID
from tests.unit.contracts.written import TEXT, sections

SECTIONS = sections()
FACTS = [fact.__name__ for fact in FACT_TYPES]
COMMANDS = [command.__name__ for command in COMMAND_TYPES]
PUBLIC = [getattr(topic_names(), field) for field in TopicNames.__struct_fields__ if field not in PRIVATE]


def as_people_read_it(message):
    return json.loads(msgspec.json.encode(flat(message)))


@pytest.mark.parametrize("name", FACTS)
def test_the_bytes_of_an_event_are_its_json(name):
    event = decode_event(SECTIONS[name].data)
    assert type(event.fact).__name__ == name
    assert as_people_read_it(event) == SECTIONS[name].value


def test_the_bytes_of_the_rejection_are_its_json():
    assert as_people_read_it(decode_rejection(SECTIONS["Rejection"].data)) == SECTIONS["Rejection"].value


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_the_same_in_avro_and_in_json(name):
    command = decode_command(SECTIONS[name].data)
    assert type(command).__name__ == name
    assert command == decode_command(json.dumps(SECTIONS[name].value).encode())


def test_the_dead_letter_is_refused_for_the_reason_that_its_headers_give():
    section = SECTIONS["Dead letters"]
    with pytest.raises(DecodeError) as caught:
        decode_command(section.code["text"][0].encode())
    assert caught.value.reason == section.value["dl_reason"]


def test_the_events_of_the_first_order_are_one_chain():
    history = [SECTIONS[name] for name in FACTS if SECTIONS[name].value["order_id"] == ORDER_ID]
    assert [section.value["version"] for section in history] == [1, 2, 3, 4, 5]
    digests = [None, *(digest(section.data).hex() for section in history)]
    assert [section.value["previous_digest"] for section in history] == digests[:-1]


@pytest.mark.parametrize("message", [*FACT_TYPES, *COMMAND_TYPES, Rejection], ids=lambda message: message.__name__)
def test_a_section_names_every_field_and_the_schema_of_its_message(message):
    schema = SCHEMAS.newest[message]
    section = SECTIONS[message.__name__]
    shared = SECTIONS["Fields of every event" if message in FACT_TYPES else "Commands"].text
    for field in fields(schema.avro):
        assert f"| `{field.name}` |" in section.text + shared
    assert f"`{schema.file}` (version {schema.version}, id {schema.id})" in section.text
    assert section.data[:5] == schema.prefix


def test_every_field_of_an_event_that_the_code_knows_is_among_those_of_every_event():
    shared = SECTIONS["Fields of every event"].text
    assert [field for field in Event.__struct_fields__ if f"| `{field}` |" not in shared] == ["fact"]


@pytest.mark.parametrize("message", SCHEMAS.newest, ids=lambda message: message.__name__)
def test_every_number_has_a_unit(message):
    listed = fields(SCHEMAS.newest[message].avro)
    assert [field.name for field in listed if field.type.startswith(("long", "timestamp")) and not field.unit] == []


def test_an_event_says_which_command_makes_it_and_a_command_what_comes_of_it():
    for (command, status), outcome in RULES.items():
        text = SECTIONS[command.__name__].text
        if isinstance(outcome, Reason):
            assert f"refused, `{outcome}`" in text
        else:
            assert f"[{outcome.__name__}](#" in text
            when = next(line for line in SECTIONS[outcome.__name__].text.split("\n") if line.startswith("When: "))
            assert f"`{command.__name__}`" in when
            assert f"`{status}`" in when


@pytest.mark.parametrize("topic", PUBLIC)
def test_every_public_topic_is_listed(topic):
    assert f"| `{topic}` |" in SECTIONS["Topics"].text


def test_the_changelogs_are_named_as_private_and_not_listed():
    for field in PRIVATE:
        name = getattr(topic_names(), field)
        assert f"`{name}`" in SECTIONS["Topics"].text
        assert f"| `{name}` |" not in TEXT


def test_all_reasons_are_listed():
    assert all(f"| `{reason}` |" in SECTIONS["Rejection"].text for reason in Reason)
    assert all(f"`{reason}`" in SECTIONS["Dead letters"].text for reason in DeadLetterReason)


@pytest.fixture
def with_a_later_version():
    """Return the source after a second version of OrderShipped was released, with one more field."""
    first = SCHEMAS.newest[OrderShipped]
    weight = {"name": "weight_g", "type": ["null", "long"], "default": None, "doc": "What the parcel weighs: grams."}
    avro = first.avro | {"fields": [*first.avro["fields"], weight]}
    second = structs.replace(first, id=1_000_000_015, file="OrderShipped.v2.avsc", version=2, avro=avro)
    return Source(schemas=Catalogue([*SCHEMAS.released, second]))


def test_the_newest_version_is_shown_and_all_are_listed(with_a_later_version):
    text = catalogue.text(with_a_later_version)
    assert "| `weight_g` | long or null |" in text
    assert (
        "`OrderShipped.v2.avsc` (version 2, id 1000000015), before it `OrderShipped.v1.avsc` (version 1, id 1000000004)"
    ) in text


def test_the_document_has_the_newest_version_and_names_all(with_a_later_version):
    shipped = asyncapi.document(with_a_later_version)["components"]["messages"]["OrderShipped"]
    assert shipped["payload"]["schema"]["fields"][-1]["name"] == "weight_g"
    assert [one["version"] for one in shipped["x-wire"]["versions"]] == [2, 1]
