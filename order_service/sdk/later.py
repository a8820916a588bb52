"""Outcomes as the SDK reads them: also those that a later version of the service wrote."""

from aiokafka.structs import ConsumerRecord

from order_service.domain.messages import Event, Rejection
from order_service.errors import DecodeError, HistoryError
from order_service.kafka.reader import OutcomeRecord, decode
from order_service.kafka.topics import TopicNames
from order_service.wire import avro
from order_service.wire.dead_letters import DeadLetterReason
from order_service.wire.headers import command_offset_of
from order_service.wire.later_versions import UnknownEvent, decode_later


def decode_outcome(record: ConsumerRecord, names: TopicNames) -> OutcomeRecord | UnknownEvent:
    """Decode a record of the events or the rejections. Raises HistoryError, with its offset, if that fails."""
    try:
        return decode(record, names)
    except HistoryError as error:
        later = _later(record, error)
        if later is None or isinstance(later, Rejection) is (record.topic == names.events):
            raise
        if isinstance(later, UnknownEvent):
            return later
        return OutcomeRecord(
            later, record.partition, record.offset, avro.digest(record.value), command_offset_of(record.headers)
        )


def _later(record: ConsumerRecord, error: HistoryError) -> Event | Rejection | UnknownEvent | None:
    cause = error.__cause__
    if not isinstance(cause, DecodeError) or cause.reason != DeadLetterReason.UNKNOWN_SCHEMA:
        return None
    return decode_later(record.key, record.value or b"", record.headers)
