"""Every error this service raises. A refused command is not one: see `domain.refusals`.

* OrderServiceError
  + HistoryError            an event that cannot follow the one before it: a bug, so we stop
    - HoleError             a version of an order is missing (sdk)
    - DamagedError          a batch of records is damaged on the broker's disk
  + OvertakenError          a twin of a subscriber has applied an event first (sdk)
  + DecodeError             bytes that are no message of ours: kept as a dead letter
  + UserServiceUnavailable  no answer about a user: the order waits
  + SchemaError             a schema is not as it must be, or a schema registry refuses it
  + RegistryAwayError       the schema registry gives no answer
  + KafkaAwayError          no broker answers in time
    - LeaderAwayError         partitions have no leader
  + TopicsError             a topic is missing or keeps less than the table of topics says: we refuse to run
  + LaneParked              a lane cannot start or go on: its partition pauses, the others go on
  + TurnRefused             Kafka refused a turn; the process survives it and claims its partitions again
  + WorkerError             this worker must end; the next claim of its partitions finds out what happened
    - Fenced                another worker owns what we held
    - RunLost               records are missing between two runs of a partition
    - Stuck                 a commit, abort or stop is unresolved past its deadline
    - GroupError            Kafka refuses this worker as a member or a reader, or its fetching has ended
    - LoopHung              the event loop has run nothing for too long
    - ClockError              the clock of this machine is far from Kafka's
  + PortTakenError          we cannot listen on a port: it has another listener, or it or its host cannot be used
  + DatabaseError           the database of the views cannot be used
    - NoViewsError            it holds no views that this version reads
  + SetupError              settings that do not fit together: the message says what to set
  + Unauthorized            no token that we accept; the message is for our log, never for who sent it
  + KeysAway                the keys that check tokens cannot be had: nobody is refused for it
  + HttpError               the HTTP server does not answer the command line, or refuses what it asks
  + EmbeddedError           what `up` starts cannot start: the message says what to install or set
"""

import errno
from collections.abc import Iterable


class OrderServiceError(Exception):
    """Root of the errors of this service."""


class HistoryError(OrderServiceError):
    """An event cannot follow the one before it."""


class DamagedError(HistoryError):
    """A batch of records cannot be read: nothing from `offset` of the partition `place` on is. `__cause__` says why."""

    def __init__(self, place: tuple[str, int], offset: int) -> None:
        topic, partition = place
        super().__init__(f"a batch of {topic}-{partition} is damaged at offset {offset}")
        self.place = place
        self.offset = offset


class DecodeError(OrderServiceError):
    """Bytes are no message of ours. `reason` is a short constant, the message says more and never echoes the bytes."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class UserServiceUnavailable(OrderServiceError):
    """The User Service gave no answer about a user."""


class SchemaError(OrderServiceError):
    """A schema is not as it must be, or the schema registry refuses it; the message is one line that says why."""


class RegistryAwayError(OrderServiceError):
    """The schema registry gives no answer that we can use; the message is one line."""


class KafkaAwayError(OrderServiceError):
    """No broker answers at the given addresses in time."""


class LeaderAwayError(KafkaAwayError):
    """Partitions have no leader: Kafka cannot be asked where they begin and end."""

    def __init__(self, partitions: Iterable[tuple[str, int]]) -> None:
        names = [f"partition {partition} of {topic}" for topic, partition in sorted(partitions)]
        super().__init__(f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} no leader")


class TopicsError(OrderServiceError):
    """A topic is missing, has another partition count, or keeps less than the table of topics says."""

    exit_code = 13


class LaneParked(OrderServiceError):
    """A lane cannot start or go on; its partition pauses until a person has looked."""


class TurnRefused(OrderServiceError):
    """Kafka refused a turn, and its transaction is lost.

    `lanes` maps each partition that it named to the reason; `suspects` are those whose refusal may pass.
    """

    exit_code = 12

    def __init__(self, message: str, lanes: dict[int, str], *, suspects: dict[int, str] | None = None) -> None:
        super().__init__(message)
        self.lanes = lanes
        self.suspects = suspects or {}


class WorkerError(OrderServiceError):
    """This worker must end at once; `exit_code` tells the operator which kind it was."""

    exit_code = 1


class Fenced(WorkerError):
    """Another worker has claimed a partition of ours, or may have claimed it while this process was stopped."""

    exit_code = 10


class RunLost(WorkerError):
    """A run of records did not reach its lane: deciding on would skip commands."""

    exit_code = 11


class Stuck(WorkerError):
    """A commit, abort or stop did not resolve in time: its outcome is for the next claim to find out."""

    exit_code = 12


class GroupError(WorkerError):
    """Kafka refuses this worker as a member or a reader, or its fetching has ended; the message says what to do."""

    exit_code = 14


class LoopHung(WorkerError):
    """The event loop of this process has run nothing for too long: a worker would hold its partitions for ever."""

    exit_code = 15


class ClockError(WorkerError):
    """The clock of this machine differs from Kafka's by more than the limit; the message says by how much."""

    exit_code = 16


class PortTakenError(OrderServiceError):
    """A port of ours has another listener or cannot be used; the message names the setting that changes it."""


def cannot_listen(host: str, port: int, setting: str, error: OSError) -> PortTakenError:
    """Return why a process cannot listen on a port that comes from `setting`."""
    if error.errno == errno.EADDRINUSE:
        return PortTakenError(f"port {port} is taken: set {setting} to another")
    why = error.strerror or error
    return PortTakenError(f"port {port} of {host} cannot be used ({why}): set ORDERS_HOST or {setting} to another")


class SetupError(OrderServiceError):
    """Settings do not fit together; the message is one line that says what to set."""


class Unauthorized(OrderServiceError):
    """A request has no token that we accept; the message says why, for our log, and holds nothing of the token."""


class KeysAway(OrderServiceError):
    """The keys that check tokens cannot be had, so nobody knows whether this token is good."""


class HttpError(OrderServiceError):
    """The HTTP server does not answer the command line, or refuses what it asks; the message is one line."""


class EmbeddedError(OrderServiceError):
    """A part of the embedded run cannot start; the message is one line that says what to install or set."""


class DatabaseError(OrderServiceError):
    """The database of the views is none, or does not serve us; the message holds no value of any row."""

    exit_code = 4


class NoViewsError(DatabaseError):
    """The database holds no views that this version reads."""

    exit_code = 3
