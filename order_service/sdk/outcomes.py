"""The outcomes of a command, and how to find them in the records of its partition.

A command that its order remembers produces no new record. That it was decided is read from the position of its
partition; its first outcome is read from the history.
"""

from typing import Final

from aiokafka.structs import ConsumerRecord
from msgspec import Struct

from order_service.domain.identity import command_digest
from order_service.domain.messages import Command, Event, Rejection
from order_service.domain.refusals import Reason
from order_service.errors import HistoryError
from order_service.kafka.reader import OutcomeRecord
from order_service.kafka.topics import TopicNames
from order_service.sdk.later import decode_outcome
from order_service.wire.changelog import POSITION_KEY, decode_position, waiting_key
from order_service.wire.headers import command_offset_of
from order_service.wire.later_versions import UnknownEvent

GRACE_S: Final = 0.5
"""The delay between the position and the outcome of one transaction: each partition gets its marker separately."""


class Accepted(Struct, frozen=True, tag="accepted"):
    """The command led to an event. `repeated` is true if an earlier copy of the command did."""

    record: OutcomeRecord
    repeated: bool = False

    @property
    def event(self) -> Event:
        """The event that the command led to."""
        assert isinstance(self.record.message, Event)
        return self.record.message


class Refused(Struct, frozen=True, tag="refused"):
    """The command was refused. `repeated` is true if an earlier copy of the command was."""

    record: OutcomeRecord
    repeated: bool = False

    @property
    def rejection(self) -> Rejection:
        """The rejection: `detail` is a description for humans, `pointer` is the JSON pointer of the invalid field."""
        assert isinstance(self.record.message, Rejection)
        return self.record.message

    @property
    def reason(self) -> Reason:
        """The reason; `MEANINGS[reason]` says what to do. Raises ValueError for a reason of a newer service."""
        return Reason(self.rejection.reason)


class Unreadable(Struct, frozen=True, tag="dead_letter"):
    """The worker could not decode the command; it is in the dead-letter topic."""

    reason: str
    detail: str


class AwaitingUser(Struct, frozen=True, tag="waiting"):
    """The command is waiting for the User Service. The service will decide it later."""


class Undecided(Struct, frozen=True, tag="undecided"):
    """The command is in Kafka, and its outcome is not known yet."""


class Repeated(Struct, frozen=True, tag="repeated"):
    """The command was decided before, and its outcome is no longer stored."""


Outcome = Accepted | Refused | Unreadable | AwaitingUser | Undecided | Repeated


class Watch:
    """The state of one sent command, as observed in the records of its partition in the other topics."""

    def __init__(self, names: TopicNames, command: Command, partition: int, offset: int) -> None:
        self.waits = False
        self._names = names
        self._waiting_key = waiting_key(command.order_id, offset)
        self._partition = partition
        self._key = command.order_id.encode()
        self._known = (command.command_id, command_digest(command))
        self._offset = offset
        self._passed = False

    @property
    def is_decided(self) -> bool:
        """Return whether a worker has decided the command, regardless of whether its outcome was observed."""
        return self._passed and not self.waits

    def observe(self, record: ConsumerRecord) -> Accepted | Refused | Unreadable | None:
        """Return the outcome if the record has it. Raises HistoryError for an undecodable record of the order."""
        names = self._names
        if record.partition != self._partition:  # in other partitions, our offset is another command's
            return None
        if record.topic == names.table and record.key == POSITION_KEY:
            self._passed |= _next_offset(record) > self._offset
        elif record.topic == names.waiting and record.key == self._waiting_key:
            self.waits = record.value is not None
        elif record.topic == names.dead_letters and command_offset_of(record.headers) == self._offset:
            headers = dict(record.headers)
            return Unreadable(headers["dl_reason"].decode(), headers["dl_detail"].decode())
        elif record.topic in (names.events, names.rejections) and record.key == self._key:
            outcome = self.outcome_in(record)
            # The refusal of an earlier copy may not be ours: an order that did not exist remembers nothing.
            return None if isinstance(outcome, Refused) and outcome.repeated else outcome
        return None

    def outcome_in(self, record: ConsumerRecord) -> Accepted | Refused | None:
        """Return the outcome of this command or an earlier copy in an event or rejection, or None for other commands.

        The outcome of a later copy does not count: this copy was refused before, and its order did not remember that.
        """
        outcome = decode_outcome(record, self._names)
        if isinstance(outcome, UnknownEvent):
            if (outcome.command_id, outcome.command_digest) != self._known:
                return None
            raise HistoryError(f"the command led to an event of the unknown type {outcome.type}: install a newer SDK")
        if (outcome.message.command_id, outcome.message.command_digest) != self._known:
            return None
        if outcome.command_offset is not None and outcome.command_offset > self._offset:
            return None
        repeated = outcome.command_offset != self._offset
        return Accepted(outcome, repeated) if isinstance(outcome.message, Event) else Refused(outcome, repeated)


def _next_offset(record: ConsumerRecord) -> int:
    """Return the next offset of a position, or 0 for an unknown format, which a newer service may write."""
    try:
        return decode_position(record.value or b"").next_offset
    except HistoryError:
        return 0
