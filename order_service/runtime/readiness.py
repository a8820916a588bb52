"""The reasons for which a process is not ready: a closed set, for `/health/ready` and docs/operations/reasons.md."""

from enum import StrEnum
from typing import NewType

ReadinessFault = NewType("ReadinessFault", str)
"""A text of `/health/ready`. Only `NotReady` makes one, so each has a row in the document."""


class NotReady(StrEnum):
    """Every reason for which a process is not ready, as a template of its text."""

    WAITS_FOR_KAFKA = "waiting for Kafka at {servers}"
    CLOCK_COMPARED = "the clock is being compared with Kafka's"
    CLOCK_WRONG = "this worker does not join its group: {why}"
    SCHEMA_IDS_READ = "the schema ids are being read from the schema registry"
    REGISTRY_AWAY = "waiting for the schema registry: {why}"
    OF_PROCESS = "process {process}: {fault}"
    PROCESS_DOWN = "process {process} does not run: {why}"
    PROCESS_SILENT = "process {process} does not answer within {seconds} s"
    NO_ASSIGNMENT = "no partitions are assigned yet"
    NO_COMMANDS_TOPIC = "the topic {topic} does not exist"
    LANE_PARKED = "partition {partition} is parked: {why}"
    LANE_CLAIMED = "partition {partition} is being claimed{progress}"
    LANE_WAITS_FOR_KAFKA = "partition {partition} waits for Kafka: {why}"
    LANE_WAITS_FOR_REGISTRY = "partition {partition} waits for the schema registry"
    NOT_FETCHED = "partition {partition}: no command is fetched from {topic} from offset {offset} on, for {seconds} s"
    OPEN_TRANSACTION = (
        "partition {partition}: a transaction of another program is open on {topic} from offset {offset} for "
        "{seconds} s; the commands behind it wait"
    )
    ENDS_UNKNOWN = "Kafka has not reported the ends of {topic} for {seconds} s: the lag is out of date"
    END_UNKNOWN = (
        "Kafka has not reported the end of {topic} partition {partition} for {seconds} s: it has no leader, its lag is "
        "out of date"
    )
    TOPIC_WEAKENED = "a topic is below its required configuration: {fault}"
    STRANGERS = "another program is in the group: {who}"
    CREDENTIAL_REFUSED = "users are not validated: {why}"
    USERS_UNANSWERED = "the User Service gives no usable answer, and orders wait: {why}"
    DATABASE_SILENT = "the database has not answered for {seconds} s"
    DATABASE_AWAY = "the database is unavailable: {error}"
    VIEWS_OPENED = "the views are being opened"
    VIEWS_MISSING = "there are no views yet: no projector has created them"
    VIEWS_OF_ANOTHER_VERSION = "the views have schema version {actual}, this program supports {expected}"
    VIEWS_BUILT = "the views are being built"
    VIEWS_BUILT_BY_THIS_PROCESS = "the views are being built: {offsets} offsets are left"
    VIEWS_WAIT_FOR_KAFKA = "Kafka does not answer: the views are not updated"
    VIEWS_STOPPED = (
        "partition {partition} of {topic} is stopped at offset {offset}: {why} (to continue, see `order-service views "
        "--help`)"
    )
    VIEWS_LEADERLESS = "partition {partition} of {topic} has no leader: its views are not updated"
    VIEWS_UNREAD = (
        "no projector reads {count} partitions, partition {partition} of {topic} among them: start one for each "
        "ORDERS_PROJECTOR_INDEX of {indexes}"
    )
    KEYS_AWAY = "no token can be verified: {why}"
    NOT_LISTENING = "the HTTP server does not listen yet"

    def fault(self, **values: object) -> ReadinessFault:
        """Return the text with these values."""
        return ReadinessFault(self.format(**values))
