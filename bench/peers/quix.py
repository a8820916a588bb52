"""The order service on Quix Streams, exactly-once, state in RocksDB: `python -m bench.peers.quix --app-id …`.

It runs in a virtual environment of its own (`make peers-setup`). The service's own code decodes, decides and encodes.
"""

import argparse
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct
from quixstreams import Application, State, message_context
from quixstreams.models import Serializer, TopicConfig

from order_service.domain.decision import UserCheck, answer
from order_service.domain.entry import Entry, after_event, after_rejection
from order_service.domain.messages import Event, Rejection
from order_service.errors import DecodeError
from order_service.wire import avro, changelog
from order_service.wire.commands import check_key, decode_command
from order_service.wire.headers import Headers, event_headers, rejection_headers
from order_service.wire.trace_context import trace_context_of

ENTRY = "entry"
OUTPUTS = ("events", "rejections", "dead_letters")


class Outcome(Struct, frozen=True):
    """A record to write, and to which of OUTPUTS."""

    output: str
    value: bytes | None
    headers: Headers


class ValueSerializer(Serializer):  # type: ignore[misc] # Quix Streams is in another virtual environment
    """Takes the value of an outcome as it is."""

    def __call__(self, value: Outcome, ctx: Any) -> bytes | None:  # noqa: ARG002, the name is that of the base class
        return value.value


def decide(value: bytes, key: bytes, _timestamp: int, headers: Any, state: State, partitions: int) -> Outcome | None:
    """Decide one command, whose users are all known; return None for a repeat."""
    place = message_context()
    try:
        command = decode_command(value)
        check_key(key, command.order_id, place.partition, partitions)
    except DecodeError as error:
        why = [("dl_reason", error.reason.encode()), ("dl_detail", error.detail.encode())]
        return Outcome("dead_letters", value, why)
    kept = state.get_bytes(ENTRY)
    entry = None if kept is None else changelog.decode_entry(kept)
    now = datetime.now(UTC)
    outcome = answer(command, entry, now.replace(microsecond=now.microsecond // 1000 * 1000), UserCheck.ACTIVE)
    trace = trace_context_of(headers or ())
    if isinstance(outcome, Event):
        data = avro.encode_event(outcome)
        _keep(state, entry, after_event(entry, outcome, avro.digest(data)))
        return Outcome("events", data, event_headers(outcome, trace, place.offset))
    if isinstance(outcome, Rejection):
        _keep(state, entry, after_rejection(entry, outcome))
        return Outcome("rejections", avro.encode_rejection(outcome), rejection_headers(outcome, trace, place.offset))
    return None


def _keep(state: State, before: Entry | None, after: Entry | None) -> None:
    if after is not None and after is not before:
        state.set_bytes(ENTRY, changelog.encode(after))


def main() -> None:
    """Run until told to end."""
    parser = argparse.ArgumentParser()
    for name in ("app-id", "bootstrap-servers", "commands", "events", "rejections", "dead-letters", "state-dir"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--commit-ms", type=int, required=True)
    settings = parser.parse_args()
    app = Application(
        broker_address=settings.bootstrap_servers,
        consumer_group=settings.app_id,
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        commit_interval=settings.commit_ms / 1000,
        state_dir=settings.state_dir,
        loglevel="WARNING",
    )
    config = TopicConfig(num_partitions=settings.partitions, replication_factor=1)
    commands = app.topic(settings.commands, key_deserializer="bytes", value_deserializer="bytes", config=config)
    outputs = {
        name: app.topic(
            getattr(settings, name), key_serializer="bytes", value_serializer=ValueSerializer(), config=config
        )
        for name in OUTPUTS
    }
    outcomes = app.dataframe(commands).apply(
        lambda value, key, timestamp, headers, state: decide(
            value, key, timestamp, headers, state, settings.partitions
        ),
        stateful=True,
        metadata=True,
    )
    outcomes = outcomes.filter(lambda outcome: outcome is not None)
    outcomes = outcomes.set_headers(lambda outcome, *_: outcome.headers)
    outcomes.to_topic(lambda outcome, *_: outputs[outcome.output])
    app.run()


if __name__ == "__main__":
    main()
