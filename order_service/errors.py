"""All exceptions of this service, as one tree. A refused command is a value, not an exception: see `domain.refusals`.

Each class stands below its base. An HTTP problem response is raised, too, but stands with the other parts of a
response: `web.http.problems.Problem`.
"""

import errno
from collections.abc import Iterable
from enum import StrEnum


class OrderServiceError(Exception):
    """The root of all exceptions of this service."""


class HistoryError(OrderServiceError):
    """An event that cannot follow the one before it in the history of its order: a bug, so the process stops."""


class HoleError(HistoryError):
    """A version of an order is missing: a result that is built from its events would be wrong."""


class DamagedError(HistoryError):
    """A damaged batch: records of `topic_partition` from `offset` on cannot be read. `__cause__` says why."""

    def __init__(self, topic_partition: tuple[str, int], offset: int) -> None:
        topic, partition = topic_partition
        super().__init__(f"a batch of {topic}-{partition} is damaged at offset {offset}")
        self.topic_partition = topic_partition
        self.offset = offset


class OvertakenError(OrderServiceError):
    """Another process has moved a position in a database first; the transaction of this process was rolled back."""


class DecodeError(OrderServiceError):
    """A record that cannot be decoded: it becomes a dead letter.

    `reason` is a short constant; `detail` explains it without the bytes.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class SchemaError(OrderServiceError):
    """A schema that is not as expected, or that the schema registry refuses; the message is one line that says why."""


class NotAvro(SchemaError):
    """A value that is not an Avro schema, or not of a kind that we use."""


class NotThere(OrderServiceError):
    """Our schema registry does not have a resource; code and message are those of a schema registry."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Unavailable(OrderServiceError):
    """Something that this service needs is away: a retry may succeed.

    The message is one line without secrets and without values of rows.
    """


class KafkaAwayError(Unavailable):
    """No broker answers at the given addresses in time."""


class LeaderAwayError(KafkaAwayError):
    """Partitions without a leader: Kafka cannot return their first and end offsets."""

    def __init__(self, partitions: Iterable[tuple[str, int]]) -> None:
        names = [f"partition {partition} of {topic}" for topic, partition in sorted(partitions)]
        super().__init__(f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} no leader")


class DatabaseError(Unavailable):
    """The views database is unavailable or its URL is invalid; the message holds no value of any row."""

    exit_code = 4


class NoViewsError(DatabaseError):
    """The database has no views that this version reads."""

    exit_code = 3


class UserServiceUnavailable(Unavailable):
    """The User Service gave no answer about a user: the order waits.

    `again` is whether a retry may help, or the seconds until then. With `is_of_user` the service works, but its answer
    is unusable: lookups of other users may succeed.
    """

    def __init__(self, why: str, *, again: float | bool = False, status: int = 0, is_of_user: bool = False) -> None:
        super().__init__(why)
        self.again = again
        self.status = status
        self.is_of_user = is_of_user


class RegistryAwayError(Unavailable):
    """The schema registry gives no usable answer; the message is one line."""


class RegistryDeniedError(RegistryAwayError):
    """The schema registry does not let this account do something."""


class KeysAway(Unavailable):
    """The keys that check tokens are unavailable, so the token can be neither accepted nor refused."""


class NoResponse(Unavailable):
    """A call over HTTP without a usable response: the connection failed."""


class NoResponseInTime(NoResponse):
    """A call over HTTP that took too long."""


class ResponseTooLong(NoResponse):
    """A response with a body that is longer than the limit."""


class NoToken(NoResponse):
    """A call over HTTP that lacks the access token that it needs; the message says why, and holds no secret."""


class TopicsError(OrderServiceError):
    """A topic is missing or falls short of the table of topics: the process refuses to run."""

    exit_code = 13


class StoreError(OrderServiceError):
    """The table of a lane on disk cannot be used. The changelog has everything that was in it."""


class StoreDamaged(StoreError):
    """A store on disk is damaged: it is thrown away, and the table is restored from its changelog."""


class StoreUnavailable(StoreError):
    """The disk of a store is full, read-only or broken: its lane waits until it can be used."""


class ParkingReason(StrEnum):
    """Every reason for which a lane parks: a closed set, for the log, readiness and the documents."""

    COMMANDS_DELETED = "commands_deleted"
    COMMANDS_TRUNCATED = "commands_truncated"
    COMMANDS_RECREATED = "commands_recreated"
    COMMANDS_OUT_OF_RANGE = "commands_out_of_range"
    TABLE_LOST = "table_lost"
    TABLE_LOST_TAIL = "table_lost_tail"
    WAITING_LOST = "waiting_lost"
    WAITING_LOST_TAIL = "waiting_lost_tail"
    WAITING_DIFFERS = "waiting_differs"
    REBUILD_UNFINISHED = "rebuild_unfinished"
    OUTCOMES_LOST_TAIL = "outcomes_lost_tail"
    CHANGELOG_UNREADABLE = "changelog_unreadable"
    DAMAGED_BATCH = "damaged_batch"
    REFUSED_BY_KAFKA = "refused_by_kafka"
    CANNOT_CLAIM = "cannot_claim"
    CANNOT_FETCH = "cannot_fetch"
    CANNOT_DECODE = "cannot_decode"
    CANNOT_DECIDE = "cannot_decide"


class LaneParked(OrderServiceError):
    """A lane cannot start or continue: its partition pauses until an operator acts, and the others continue.

    `reason` is its name in docs/operations/reasons.md; `detail` says what is wrong in this partition.
    """

    def __init__(self, reason: ParkingReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class TurnRefused(OrderServiceError):
    """Kafka refused a turn, and its transaction is lost; the process survives and claims its partitions again.

    `lanes` maps each partition that Kafka named to the reason; `suspects` are those whose refusal may be temporary.
    """

    exit_code = 12

    def __init__(self, message: str, lanes: dict[int, str], *, suspects: dict[int, str] | None = None) -> None:
        super().__init__(message)
        self.lanes = lanes
        self.suspects = suspects or {}


class WorkerError(OrderServiceError):
    """This worker must end immediately; the next claim of its partitions finds out what happened.

    `exit_code` tells the operator the kind of error.
    """

    exit_code = 1


class Fenced(WorkerError):
    """Another worker has claimed one of our partitions, or may have claimed it while this process was suspended."""

    exit_code = 10


class RunLost(WorkerError):
    """A run of records did not reach its lane: to continue would skip commands."""

    exit_code = 11


class Stuck(WorkerError):
    """A commit, abort or stop did not resolve in time: the next claim finds out its outcome."""

    exit_code = 12


class GroupError(WorkerError):
    """Kafka refuses this worker as a member or a reader, or its fetching has ended; the message says what to do."""

    exit_code = 14


class LoopHung(WorkerError):
    """The event loop of this process has run no task for too long: a worker would hold its partitions for ever."""

    exit_code = 15


class ClockError(WorkerError):
    """The clock of this machine differs from Kafka's by more than the limit; the message says by how much."""

    exit_code = 16


class OperationRefused(OrderServiceError):
    """An operator's change that is not made; the message says why, and what to do instead."""


class PortTakenError(OrderServiceError):
    """A port that has another listener or cannot be used; the message names the setting that changes it."""


def cannot_listen(host: str, port: int, setting: str, error: OSError) -> PortTakenError:
    """Return the error of a process that cannot listen on a port, which the environment variable `setting` sets."""
    if error.errno == errno.EADDRINUSE:
        return PortTakenError(f"port {port} is taken: set {setting} to another")
    cause = error.strerror or error
    address = "ORDERS_ADMIN_HOST" if setting == "ORDERS_ADMIN_PORT" else "ORDERS_HOST"
    return PortTakenError(f"port {port} of {host} cannot be used ({cause}): set {address} or {setting} to another")


class SetupError(OrderServiceError):
    """Settings do not fit together; the message is one line that says what to set."""


class Unauthorized(OrderServiceError):
    """A request without a valid token; the message says why, for our log, and holds no part of the token."""


class HttpError(OrderServiceError):
    """The HTTP server does not answer the command line, or refuses its request; the message is one line."""


class EmbeddedError(OrderServiceError):
    """A part of the embedded run cannot start; the message is one line that says what to install or set."""
