"""What can become of a command, and how it is found in the records of its partition.

Nothing new comes of a command that its order remembers; that it was decided all the same is read from the position of
its partition, and what was decided the first time from the history.
"""

from typing import Final

from aiokafka.structs import ConsumerRecord
from msgspec import Struct

from order_service.domain.decision import command_digest
from order_service.domain.messages import Command, Event, Rejection
from order_service.domain.refusals import Reason
from order_service.errors import HistoryError
from order_service.kafka.reader import OutcomeRecord, decode
from order_service.kafka.topics import TopicNames
from order_service.wire.changelog import POSITION_KEY, decode_position, waiting_key
from order_service.wire.headers import command_offset_of

GRACE_S: Final = 0.5
"""Between the position and the outcome of one transaction: its marker reaches each partition at its own time."""


class Accepted(Struct, frozen=True, tag="accepted"):
    """It led to an event; `repeated` if an earlier copy of it did."""

    seen: OutcomeRecord
    repeated: bool = False

    @property
    def event(self) -> Event:
        """What happened."""
        assert isinstance(self.seen.message, Event)
        return self.seen.message


class Refused(Struct, frozen=True, tag="refused"):
    """It was refused; `repeated` if an earlier copy of it was."""

    seen: OutcomeRecord
    repeated: bool = False

    @property
    def rejection(self) -> Rejection:
        """The refusal, with a `detail` for people."""
        assert isinstance(self.seen.message, Rejection)
        return self.seen.message

    @property
    def reason(self) -> Reason:
        """Why; `MEANINGS[reason]` says what can be done. A reason of a newer service is a ValueError."""
        return Reason(self.rejection.reason)


class Unreadable(Struct, frozen=True, tag="dead_letter"):
    """The worker could not read it."""

    reason: str
    detail: str


class AwaitingUser(Struct, frozen=True, tag="waiting"):
    """It waits for the User Service, and will be decided without us."""


class Undecided(Struct, frozen=True, tag="undecided"):
    """It is in Kafka, and nothing is known of it yet."""


class Repeated(Struct, frozen=True, tag="repeated"):
    """It repeats a command whose answer is not kept any more."""


Outcome = Accepted | Refused | Unreadable | AwaitingUser | Undecided | Repeated


class Watch:
    """What is known of one sent command, from the records of its partition in the other topics."""

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
        """Tell whether a worker is done with it, whether or not its outcome was seen."""
        return self._passed and not self.waits

    def see(self, record: ConsumerRecord) -> Accepted | Refused | Unreadable | None:
        """Take one record; give the outcome if it is one. HistoryError if it is the order's and cannot be read."""
        names = self._names
        if record.partition != self._partition:  # there our offset is another command's
            return None
        if record.topic == names.table and record.key == POSITION_KEY:
            self._passed |= _next_offset(record) > self._offset
        elif record.topic == names.waiting and record.key == self._waiting_key:
            self.waits = record.value is not None
        elif record.topic == names.dead_letters and command_offset_of(record.headers) == self._offset:
            headers = dict(record.headers)
            return Unreadable(headers["dl_reason"].decode(), headers["dl_detail"].decode())
        elif record.topic in (names.events, names.rejections) and record.key == self._key:
            outcome = self.answer_in(record)
            # A refusal of an earlier copy need not be ours: an order that did not exist remembers none.
            return None if isinstance(outcome, Refused) and outcome.repeated else outcome
        return None

    def answer_in(self, record: ConsumerRecord) -> Accepted | Refused | None:
        """Return the answer of an event or a rejection to this command or an earlier copy of it, else None.

        What became of a later copy is not ours: this one was refused before, and its order did not remember that.
        """
        seen = decode(record, self._names)
        if (seen.message.command_id, seen.message.command_digest) != self._known:
            return None
        if seen.command_offset is not None and seen.command_offset > self._offset:
            return None
        repeated = seen.command_offset != self._offset
        return Accepted(seen, repeated) if isinstance(seen.message, Event) else Refused(seen, repeated)


def _next_offset(record: ConsumerRecord) -> int:
    """Read a position; one of a form that we do not know says nothing: a newer service may write it."""
    try:
        return decode_position(record.value or b"").next_offset
    except HistoryError:
        return 0
