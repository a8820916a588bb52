"""The catalogue of events, for people: what each message means, when it comes, its fields, its bytes, its promises."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final

from order_service.contracts import examples, headers, words
from order_service.contracts.blocks import Block, Bullets, Code, Heading, Table, Text, anchor, markdown
from order_service.contracts.examples import Example
from order_service.contracts.fields import Field, fields
from order_service.contracts.meanings import PROMISES, SAID, SENDERS, followers
from order_service.contracts.source import Source
from order_service.domain.messages import COMMAND_TYPES, FACT_TYPES, Command, Fact, OrderPaid, Rejection
from order_service.domain.refusals import MEANINGS, RULES, Reason, Status
from order_service.wire.dead_letters import DeadLetterReason
from order_service.wire.schemas.catalogue import Message

BYTES_A_LINE: Final = 24


def blocks(source: Source) -> list[Block]:
    """Make the catalogue."""
    sections: dict[str, list[Block]] = {
        "Topics": _topics(source),
        "How to read a record": _wire(),
        "What you may rely on": [Table(["What", "Promise"], [[promise.name, promise.text] for promise in PROMISES])],
        "Headers of events and rejections": _cloud_event(),
        "Fields of every event": [Text(words.EVERY_EVENT), _fields(_shared(source))],
        **{fact.__name__: _event(source, fact) for fact in FACT_TYPES},
        "Rejection": _rejection(source),
        "Dead letters": _dead_letters(source),
        "Commands": [Text(words.COMMANDS), _fields(_shared(source, COMMAND_TYPES))],
        **{command.__name__: _command(source, command) for command in COMMAND_TYPES},
    }
    contents = Bullets([f"[{title}](#{anchor(title)})" for title in sections])
    titled = [[Heading(2, title), *section] for title, section in sections.items()]
    return [Heading(1, words.TITLE), Text(f"{words.ABOUT} {words.MADE}"), contents, *chain.from_iterable(titled)]


def text(source: Source) -> str:
    """Write the catalogue in Markdown."""
    return f"<!-- Made by `make contracts`; the words are in order_service/contracts. -->\n\n{markdown(blocks(source))}"


# Parts


def _topics(source: Source) -> list[Block]:
    rows = [
        [f"`{topic.name}`", topic.holds, words.kept(topic), words.size(topic), words.role(topic)]
        for topic in source.topics()
    ]
    return [
        Table(["Topic", "Holds", "Kept", "Largest record", "The service"], rows),
        Text(words.NAMES.format(partitions=source.partitions)),
        Text(words.PRIVATE.format(table=source.names.table, waiting=source.names.waiting)),
    ]


def _wire() -> list[Block]:
    return [Text(words.WIRE), Text(words.LOOK_UP), Text(words.AS_JSON)]


def _cloud_event() -> list[Block]:
    given = examples.events()[OrderPaid]
    return [
        _headers(headers.CLOUD_EVENT),
        Text("Example: those of an `OrderPaid`"),
        Code("json", _json(examples.texts(given.headers))),
    ]


def _event(source: Source, fact: type[Fact]) -> list[Block]:
    given = examples.events()[fact]
    return [
        Text(f"{source.schema(fact).avro['doc']} {SAID[fact].more}"),
        Text(f"When: {words.when(fact)}"),
        Text(f"You may rely on: {SAID[fact].relies} {_next(given)}"),
        *_own_fields(source, fact, _shared(source)),
        *_versions(source, fact),
        *_example(given),
    ]


def _rejection(source: Source) -> list[Block]:
    schema, said = source.schema(Rejection), SAID[Rejection]
    reasons = [[f"`{reason}`", meaning.cause, meaning.cure] for reason, meaning in MEANINGS.items()]
    return [
        Text(f"{schema.avro['doc']} {said.more}"),
        Text(f"When: {words.when(Rejection)}"),
        Text(f"You may rely on: {said.relies}"),
        _fields(fields(schema.avro)),
        Table(["Reason", "Cause", "Cure"], reasons),
        *_versions(source, Rejection),
        *_example(examples.rejection()),
    ]


def _dead_letters(source: Source) -> list[Block]:
    given = examples.dead_letter(source.names, source.partitions)
    return [
        Text(words.DEAD_LETTER),
        Text(f"When: {words.UNREADABLE}"),
        Text(f"You may rely on: {words.DEAD_LETTER_RELIES}"),
        _headers(headers.DEAD_LETTER),
        Text("Reasons: " + ", ".join(f"`{reason}`" for reason in DeadLetterReason) + "."),
        Text(f"Example: key `{given.key}`, headers and value"),
        Code("json", _json(examples.texts(given.headers))),
        Code("text", given.value.decode()),
    ]


def _command(source: Source, command: type[Command]) -> list[Block]:
    given = examples.command(command)
    return [
        Text(source.schema(command).avro["doc"]),
        Text(f"Who may: {SENDERS[command]}"),
        Table(["Where the order stands", "What comes of it"], list(_outcomes(command))),
        *_own_fields(source, command, _shared(source, COMMAND_TYPES)),
        *_versions(source, command),
        *_example(given),
    ]


# What they are made of


def _next(given: Example) -> str:
    """Say what can follow on an event."""
    following = followers(given.status) if given.status else []
    return f"After it can come {words.one_of(following)}." if following else "It is the last event of its order."


def _outcomes(command: type[Command]) -> Iterator[list[str]]:
    """Say what comes of a command, by where the order stands; statuses with the same outcome stand together."""
    by_outcome: dict[type[Fact] | Reason, list[Status]] = {}
    for (kind, status), outcome in RULES.items():
        if kind is command:
            by_outcome.setdefault(outcome, []).append(status)
    for outcome, statuses in by_outcome.items():
        yield [", ".join(f"`{status}`" for status in statuses), _outcome(outcome)]


def _outcome(outcome: type[Fact] | Reason) -> str:
    if isinstance(outcome, Reason):
        return f"refused, `{outcome}`"
    return f"[{outcome.__name__}](#{anchor(outcome.__name__)})"


def _shared(source: Source, messages: Iterable[type[Message]] = FACT_TYPES) -> list[Field]:
    """List the fields that all of these messages have, in the same words."""
    listed = [fields(source.schema(message).avro) for message in messages]
    return [field for field in listed[0] if all(field in others for others in listed)]


def _own_fields(source: Source, message: type[Message], shared: list[Field]) -> list[Block]:
    own = [field for field in fields(source.schema(message).avro) if field not in shared]
    return [_fields(own)] if own else [Text("It has no fields of its own.")]


def _fields(listed: list[Field]) -> Table:
    rows = [[f"`{field.name}`", field.type, field.unit, field.meaning] for field in listed]
    return Table(["Field", "Type", "Unit", "Meaning"], rows)


def _headers(schema: dict[str, Any]) -> Table:
    always = schema["required"]
    begins = {f"{name.removeprefix('^')}...": one for name, one in schema.get("patternProperties", {}).items()}
    said = schema["properties"] | begins
    return Table(
        ["Header", "Always", "Meaning"],
        [[f"`{name}`", "yes" if name in always else "no", _meaning(one)] for name, one in said.items()],
    )


def _meaning(header: dict[str, Any]) -> str:
    constant = f" Always `{header['const']}`." if "const" in header else ""
    return f"{header['description']}{constant}"


def _versions(source: Source, message: type[Message]) -> list[Block]:
    """List the schemas of a message, the newest first."""
    listed = [f"`{schema.file}` (version {schema.version}, id {schema.id})" for schema in source.versions(message)]
    return [Text("Schema: " + ", before it ".join(listed) + ".")]


def _example(given: Example) -> list[Block]:
    return [
        Text(f"Example: key `{given.key}`, the value as JSON and as bytes"),
        Code("json", _json(given.json)),
        Code("text", hexadecimal(given.value)),
    ]


def hexadecimal(value: bytes) -> str:
    """Write bytes, the first five of them on a line of their own, which says what they are."""
    body = value[5:]
    lines = [body[start : start + BYTES_A_LINE].hex(" ") for start in range(0, len(body), BYTES_A_LINE)]
    return "\n".join([f"{value[:5].hex(' ')}  <- byte 0, schema id {int.from_bytes(value[1:5], 'big')}", *lines])


def _json(value: Any) -> str:
    return json.dumps(value, indent=2)
