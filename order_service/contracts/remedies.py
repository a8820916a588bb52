"""What an operator does about each reason: for why a lane parks, a process ends or is not ready, and a dead letter."""

from typing import Final

from msgspec import Struct

from order_service.errors import (
    ClockError,
    DatabaseError,
    Fenced,
    GroupError,
    LoopHung,
    NoViewsError,
    ParkingReason,
    RunLost,
    Stuck,
    TopicsError,
    WorkerError,
)
from order_service.runtime.readiness import NotReady
from order_service.wire.dead_letters import DeadLetterReason

USAGE: Final = 2
"""The exit code for a wrong call or an invalid setting, which are no exceptions of this service."""

_RESUME: Final = "`order-service lanes resume PARTITION`"
_RESUME_FROM: Final = "`order-service lanes resume PARTITION --from OFFSET`"
_ACCEPT_LOSS: Final = "`order-service lanes resume PARTITION --accept-loss`"
_REBUILD: Final = "`order-service rebuild PARTITION --yes`"
_RUNS: Final = "`order-service lanes` shows that the partition runs, and `orders_lane_parked` is 0."
_INTACT: Final = f"{_RUNS} `order-service verify` has no findings."
_READY: Final = "`/health/ready` returns 200."
_DECIDED: Final = "`orders_lag_commands` of the partition falls."
_TRACEBACK: Final = "The log line has the traceback. `order-service verify` shows whether the topics are intact."
_RESTORE: Final = "Restore the records with their offsets from a mirror or a backup, then"
_RESTORE_COMMANDS: Final = (
    f"Restore the records with their offsets from a mirror or a backup, then {_RESUME_FROM} with the position that "
    "`order-service lanes` shows. Kafka gives restored commands new timestamps, so without `--from` it is refused."
)
_WAITING: Final = (
    "While commands of the previous topic wait for the User Service, an offset before the position is refused: restore "
    "the commands, or wait until the topic ends at the position, then name an offset from it on, and let senders send "
    "again what is before it."
)
_BUG: Final = "Report the traceback. Start a version that has the fix: it claims the partition again."
_SKIP: Final = (
    f"To go on before that, {_RESUME_FROM}, with the offset after it. The commands from the position to it have no "
    "outcome then: without `--yes`, the command prints their orders."
)
_RESTARTED: Final = "The worker runs again, and `orders_lanes` counts its lanes as running."


class Remedy(Struct, frozen=True):
    """What a reason means, how to find its cause, how to remove it, and how to see that it is gone."""

    meaning: str
    check: str
    fix: str
    verify: str


PARKING: Final[dict[ParkingReason, Remedy]] = {
    ParkingReason.COMMANDS_DELETED: Remedy(
        "Kafka deleted commands that no worker had decided. They have no outcome, and never will.",
        "The text has the offsets. `order-service topics check` shows the retention. `orders_lag_commands` shows since "
        "when the partition was behind.",
        f"{_RESTORE_COMMANDS} If they are lost, let their senders send them again, then {_RESUME_FROM} with the first "
        "offset that is left.",
        f"{_RUNS} {_DECIDED}",
    ),
    ParkingReason.COMMANDS_TRUNCATED: Remedy(
        "The commands end before the position: the topic was created again, or a broker lost its last records.",
        "Compare the end in the text with `kafka-get-offsets`. Look for a deleted topic, and for an unclean leader "
        "election in the log of the brokers.",
        f"{_RESTORE_COMMANDS} If they are lost, {_RESUME_FROM} with the end of the partition, where new commands come, "
        f"or with the first command of a topic that was created again. {_WAITING}",
        f"{_RUNS} A new command gets an outcome.",
    ),
    ParkingReason.COMMANDS_RECREATED: Remedy(
        "The last decided command has another timestamp: the topic was restored, or created again with other commands.",
        "Read the command at the offset in the text, and compare it with the outcome that has its `command_offset`.",
        f"If it is the same command, the topic was restored: {_RESUME_FROM} with the position, which is in the text. "
        f"Otherwise restore it, or, if the new topic stays, {_RESUME_FROM} with the first of the new commands. Those "
        f"that repeat a command of their order have no second outcome. {_WAITING}",
        f"{_RUNS} A new command gets an outcome.",
    ),
    ParkingReason.COMMANDS_OUT_OF_RANGE: Remedy(
        "While the lane ran, the next command to fetch was no longer in the topic.",
        "Kafka deleted it, or the topic was created again: compare the offset in the text with `kafka-get-offsets`.",
        f"{_RESUME}. If records are lost, it is refused, and the text says what is lost: go on as for that reason.",
        f"{_RUNS} {_DECIDED}",
    ),
    ParkingReason.TABLE_LOST: Remedy(
        "The partition has outcomes, but its changelog `orders.table.v1` has no position: it is lost.",
        "Was the topic deleted, or compacted with another policy? `order-service topics check` shows its settings.",
        f"{_REBUILD} writes it again from the events, rejections and commands. If the commands topic was recreated "
        "too, the lane then parks as `commands_recreated` or `commands_truncated`.",
        _INTACT,
    ),
    ParkingReason.TABLE_LOST_TAIL: Remedy(
        "An outcome is not in the changelog `orders.table.v1`: it has lost its last records.",
        "The text has the first such outcome. Look for an unclean leader election in the log of the brokers.",
        f"{_REBUILD} writes it again from the events, rejections and commands.",
        _INTACT,
    ),
    ParkingReason.WAITING_LOST: Remedy(
        "The changelog `orders.waiting.v1` is empty, although the partition has a position: it is lost.",
        "Was the topic deleted? `order-service topics check` shows its settings.",
        f"{_REBUILD} writes it again from the commands that have no outcome.",
        _INTACT,
    ),
    ParkingReason.WAITING_LOST_TAIL: Remedy(
        "The changelog `orders.waiting.v1` ends before the end that the position recorded: its last records are lost.",
        "Compare the end in the text with `kafka-get-offsets`. Look for an unclean leader election.",
        f"{_REBUILD} writes it again from the commands that have no outcome.",
        _INTACT,
    ),
    ParkingReason.WAITING_DIFFERS: Remedy(
        "The waiting room has another number of commands than the position counts: one changelog lost its last "
        "records.",
        "`order-service verify` has a finding `table` or `waiting` for what differs.",
        f"{_REBUILD} writes both changelogs again.",
        _INTACT,
    ),
    ParkingReason.REBUILD_UNFINISHED: Remedy(
        "`order-service rebuild` was interrupted: the changelogs are only partly written.",
        "`order-service rebuild PARTITION` prints what is still missing.",
        f"{_REBUILD} continues where it stopped.",
        _INTACT,
    ),
    ParkingReason.OUTCOMES_LOST_TAIL: Remedy(
        "Events, rejections or dead letters end before the end that the position recorded: their last records are "
        "lost.",
        "The text has the topic and both ends. Look for an unclean leader election in the log of the brokers.",
        f"{_RESTORE} {_RESUME}. If rejections or dead letters are lost, {_ACCEPT_LOSS} takes the present ends as the "
        f"truth. If events are lost, {_REBUILD} with `--accept-loss` sets their orders back: "
        "docs/operations/rebuild.md says what consumers must do.",
        f"{_RUNS} After an accepted loss, `order-service verify` has findings for commands that lost their outcome.",
    ),
    ParkingReason.CHANGELOG_UNREADABLE: Remedy(
        "A record of a changelog is damaged, or has a form that this version does not know.",
        "The text has topic, offset and form. Did a later version run before, or does another program write there?",
        f"Start the version that wrote it: it claims the partition. If the record is damaged, {_REBUILD}.",
        _INTACT,
    ),
    ParkingReason.DAMAGED_BATCH: Remedy(
        "A batch on the disk of a broker is damaged, in the commands or in a topic that the claim reads.",
        "The text has topic and offset. `kafka-dump-log --deep-iteration` on each replica shows which are damaged.",
        "Make an intact replica the leader, and let Kafka copy it over the damaged one. Without one, restore the topic "
        f"from a mirror. Then {_RESUME}. If that is impossible, it depends on the topic in the text. Commands: "
        f"{_RESUME_FROM}, behind the batch. A changelog: {_REBUILD}. Rejections or dead letters: {_ACCEPT_LOSS}. "
        "Events: nothing else helps, because consumers and a rebuild need them.",
        f"{_INTACT} A damaged batch that was skipped or accepted stays a finding as long as Kafka has it.",
    ),
    ParkingReason.REFUSED_BY_KAFKA: Remedy(
        "Kafka refused a record of the partition, such as one that is too large or not permitted.",
        "The text has the topic and the error. `order-service topics check` shows `max.message.bytes`, "
        "`kafka-acls --list` the rights.",
        f"Correct the setting or grant the right, then {_RESUME}.",
        f"{_RUNS} {_DECIDED}",
    ),
    ParkingReason.CANNOT_CLAIM: Remedy(
        "An error stopped the claim that no other reason covers: a bug, or a state of the topics that must not occur.",
        _TRACEBACK,
        f"{_BUG} If `verify` has findings of the changelogs, {_REBUILD}.",
        _INTACT,
    ),
    ParkingReason.CANNOT_FETCH: Remedy(
        "An error stopped the start of fetching: a bug.",
        _TRACEBACK,
        _BUG,
        f"{_RUNS} {_DECIDED}",
    ),
    ParkingReason.CANNOT_DECODE: Remedy(
        "A record of the commands raised an error that makes no dead letter: a bug.",
        "The text has the offset of the record. The log line has the traceback.",
        f"{_BUG} {_SKIP}",
        f"{_RUNS} {_DECIDED}",
    ),
    ParkingReason.CANNOT_DECIDE: Remedy(
        "A command raised an error: a bug, or the table of its order is wrong.",
        "The text has the offset of the command, or the unpaid order. `order-service verify` shows whether the table is"
        " intact.",
        f"If `verify` has findings of the table, {_REBUILD}. Otherwise start a version that has the fix. {_SKIP} A"
        " waiting command and an unpaid order cannot be skipped.",
        f"{_RUNS} {_DECIDED}",
    ),
}

EXIT_CODES: Final[dict[int, Remedy]] = {
    WorkerError.exit_code: Remedy(
        "A command failed, was refused, or has findings. A process cannot start, or found a state that must not occur.",
        "The last line says why.",
        "Do what the line says. Report a traceback as a bug.",
        "The command ends with 0, or the process runs.",
    ),
    USAGE: Remedy(
        "The call is wrong, or a setting is invalid.",
        "There is one line for each. `order-service config` prints the settings in use.",
        "Correct it: [Settings](../reference/settings.md) has the values, `--help` the options.",
        "The command ends with 0, or the process runs.",
    ),
    NoViewsError.exit_code: Remedy(
        "The database has no views that this version reads. Only `views` ends so.",
        "`order-service config` prints `ORDERS_DATABASE_URL`.",
        "Start a projector of this version on that database.",
        "`order-service views stopped` ends with 0 or 1.",
    ),
    DatabaseError.exit_code: Remedy(
        "A dependency of an operator's command is unavailable: Kafka, the schema registry, or the database of `views`.",
        "`order-service doctor`",
        "Start what it names, and call the command again.",
        "The command ends with another status.",
    ),
    Fenced.exit_code: Remedy(
        "Another worker has claimed a partition of this one, or this one was stopped for long during a claim.",
        "Look for pauses of the machine, and for two workers with one `ORDERS_INSTANCE_ID`.",
        "Restart it. If it repeats, remove the pauses, or raise `ORDERS_SESSION_TIMEOUT_S`.",
        _RESTARTED,
    ),
    RunLost.exit_code: Remedy(
        "Fetched records did not reach their lane: to go on would skip commands.",
        "The last line has the partition and offsets.",
        "Restart it: nothing is lost. If it repeats, report it as a bug.",
        _RESTARTED,
    ),
    Stuck.exit_code: Remedy(
        "A producer failed, or the outcome of a commit is unknown. Kafka was slow, away, or refused the worker.",
        "The last line has the error. Check the brokers and the network.",
        "Restart it: the next claim finds the outcome.",
        _RESTARTED,
    ),
    TopicsError.exit_code: Remedy(
        "A topic is missing, or differs from what is required. A restart does not help.",
        "`order-service topics check`",
        "Run the lines that it prints, or correct `ORDERS_PARTITIONS` or `ORDERS_TOPIC_PREFIX`. Then start it again. "
        f"If a changelog has `cleanup.policy=compact,delete` of a killed rebuild, {_REBUILD} sets it back.",
        "`order-service topics check` ends with 0.",
    ),
    GroupError.exit_code: Remedy(
        "The group refuses the worker, it may not read the commands, or nothing fetches any more.",
        "The last line names the other member, or the missing right.",
        "End the other program, set `ORDERS_APP_ID` or `ORDERS_INSTANCE_ID`, or grant `Read` "
        "([ACLs](../../ARCHITECTURE.md#kafka-acls)). Then restart it.",
        _RESTARTED,
    ),
    LoopHung.exit_code: Remedy(
        "The event loop of the process ran no task for too long. Projectors and HTTP servers end so, too.",
        "The log has the stack. Look for a machine without memory or processor time.",
        "Restart it. Report the stack as a bug.",
        "The process runs.",
    ),
    ClockError.exit_code: Remedy(
        "The clock of the machine is far from Kafka's.",
        "The last line has the difference. `orders_clock_skew_seconds` has it on the other workers.",
        "Set the clock of the machine or of the brokers, then restart the worker.",
        _RESTARTED,
    ),
}

NOT_READY: Final[dict[NotReady, Remedy]] = {
    NotReady.WAITS_FOR_KAFKA: Remedy(
        "No broker has answered since the process was started.",
        "`order-service doctor`. Is `KAFKA_BOOTSTRAP_SERVERS` right?",
        "Start Kafka, or correct the address, TLS or SASL settings.",
        _READY,
    ),
    NotReady.CLOCK_COMPARED: Remedy(
        "The worker compares its clock with Kafka's before it joins.",
        "The log has an error of Kafka, if there is one.",
        "Nothing: it takes seconds.",
        _READY,
    ),
    NotReady.CLOCK_WRONG: Remedy(
        "The clock of the machine is far from Kafka's, so the worker does not join its group.",
        "The text has the difference and the limit.",
        "Set the clock of the machine or of the brokers. The worker joins by itself.",
        _READY,
    ),
    NotReady.SCHEMA_IDS_READ: Remedy(
        "The worker asks the schema registry for the ids of its schemas.",
        "If it stays, `order-service schemas check`.",
        "Nothing, or start the registry.",
        _READY,
    ),
    NotReady.REGISTRY_AWAY: Remedy(
        "The schema registry does not answer, refuses the worker, or lacks a schema.",
        "`order-service schemas check`",
        "Start the registry, correct `SCHEMA_REGISTRY_URL`, or run `order-service schemas register`.",
        _READY,
    ),
    NotReady.OF_PROCESS: Remedy(
        "One process of a worker with several (`ORDERS_WORKERS`) is not ready.",
        "The rest of the text is one of the other texts of this page. The log lines of that process have its number as "
        "`process`.",
        "What the row of that text says.",
        _READY,
    ),
    NotReady.PROCESS_DOWN: Remedy(
        "One process of a worker with several is starting, or it has ended. The text has its exit status and the pause "
        "before its next start.",
        "`This worker ends.` in the log, with this `process`, has the reason.",
        "What the [exit status](#exit-codes) says. The parent starts the process again by itself.",
        _READY,
    ),
    NotReady.PROCESS_SILENT: Remedy(
        "One process of a worker with several listens, but does not answer. The liveness of the worker fails, too.",
        "`process_cpu_seconds_total` of that process, and the load of the machine.",
        "Kill that process if it stays silent: it is started again under its name. A liveness probe restarts the "
        "worker.",
        _READY,
    ),
    NotReady.NO_ASSIGNMENT: Remedy(
        "The worker joins its group, and has no partitions yet.",
        "If it stays, compare the number of workers with `ORDERS_PARTITIONS`. Read the log for errors of the group.",
        "Nothing, or run fewer workers: more than one per partition have nothing to do.",
        _READY,
    ),
    NotReady.NO_COMMANDS_TOPIC: Remedy(
        "The commands topic does not exist: it was deleted while the worker runs.",
        "`order-service topics check`",
        "Restore the topic, or run `order-service topics create`. The lanes then park.",
        _READY,
    ),
    NotReady.LANE_PARKED: Remedy(
        "A lane is stopped until an operator acts. The others run.",
        "The text begins with the name of the reason.",
        "See [that reason](#why-a-lane-parks).",
        _RUNS,
    ),
    NotReady.LANE_CLAIMED: Remedy(
        "The worker takes the partition over. The text says how far its table is restored, what the claim waits for, "
        "or why it failed.",
        "If it names an open transaction: [A transaction that hangs](hanging-transactions.md). If it names a right: "
        "`kafka-acls --list`. If it names a disk: [Tables on disk](table-on-disk.md).",
        "Nothing, if it makes progress. Otherwise remove what it waits for: the claim goes on by itself.",
        _RUNS,
    ),
    NotReady.LANE_WAITS_FOR_KAFKA: Remedy(
        "A topic of the partition has no leader or too few in-sync replicas. The other lanes run.",
        "The text has the topic. `kafka-topics --describe --unavailable-partitions`",
        "Start the brokers that hold the partition. The lane goes on by itself.",
        f"{_READY} {_DECIDED}",
    ),
    NotReady.LANE_WAITS_FOR_REGISTRY: Remedy(
        "A command has a schema id that only the schema registry knows, and it does not answer.",
        "`order-service schemas check`",
        "Start the registry. The lane goes on by itself.",
        f"{_READY} {_DECIDED}",
    ),
    NotReady.NOT_FETCHED: Remedy(
        "Kafka reports commands of the partition, but does not return them. Their batch may be damaged.",
        "The log of the broker. `kafka-dump-log` on the segment with the offset in the text.",
        "Make an intact replica the leader, or restart the broker. Restore a damaged batch from a replica or a mirror.",
        f"{_READY} {_DECIDED}",
    ),
    NotReady.OPEN_TRANSACTION: Remedy(
        "The commands behind another program's open transaction are not visible yet.",
        "[A transaction that hangs](hanging-transactions.md#check) shows who opened it.",
        "End the transaction, or the program that holds it open: see the same page.",
        f"{_READY} {_DECIDED}",
    ),
    NotReady.ENDS_UNKNOWN: Remedy(
        "No broker has told where the commands end, so the lag is out of date.",
        "Does Kafka answer? `order-service doctor`",
        "Start the brokers. Lanes go on by themselves, or the worker ends with 12 and is started again.",
        _READY,
    ),
    NotReady.END_UNKNOWN: Remedy(
        "A partition of the commands has no leader: producers cannot write to it, and its lane waits.",
        "`kafka-topics --describe --unavailable-partitions`",
        "Start the brokers that hold the partition.",
        _READY,
    ),
    NotReady.TOPIC_WEAKENED: Remedy(
        "A setting of a topic no longer protects its records. Nothing is lost yet.",
        "`order-service topics check`",
        "Run the lines that it prints.",
        "`orders_topic_faults` is 0 within five minutes.",
    ),
    NotReady.STRANGERS: Remedy(
        "A program that is not a worker of this service is in its group. In its partitions nothing is decided.",
        "The text has its name, its partitions, and since when it was seen.",
        "End it, or give it another group. Two services need different `ORDERS_APP_ID`.",
        "`orders_group_strangers` is 0.",
    ),
    NotReady.CREDENTIAL_REFUSED: Remedy(
        "The User Service refuses the credential of this worker. New orders wait.",
        "The text has the status. Has the token ended?",
        "Correct the token or the client secret ([fit in](../guide/fit-in.md#the-user-service)), and restart the "
        "worker. A token file is read again.",
        f"{_READY} `orders_waiting_commands` falls.",
    ),
    NotReady.USERS_UNANSWERED: Remedy(
        "Three lookups in a row had no usable answer: of three users, if the service had answered before.",
        "The text has the reason. `order-service users check ID`",
        "Start the User Service, or correct its settings ([fit in](../guide/fit-in.md#the-user-service)) and restart "
        "the worker. The orders that wait are decided when it answers.",
        f"{_READY} `orders_waiting_commands` falls.",
    ),
    NotReady.DATABASE_SILENT: Remedy(
        "A query of the views has been open for longer than any may be.",
        "The database and the proxy before it: does a query of your own return?",
        "Restart what hangs. The process goes on by itself.",
        _READY,
    ),
    NotReady.DATABASE_AWAY: Remedy(
        "The database of the views refuses queries, or cannot be reached.",
        "The text, and the log: they have what the server said.",
        "Start the database, or correct `ORDERS_DATABASE_URL`.",
        _READY,
    ),
    NotReady.VIEWS_OPENED: Remedy(
        "The process opens the views.",
        "If it stays, check the database as above.",
        "Nothing.",
        _READY,
    ),
    NotReady.VIEWS_MISSING: Remedy(
        "The database has no views.",
        "Do projector and HTTP server have the same `ORDERS_DATABASE_URL` and `ORDERS_DATABASE_SCHEMA`? May the role "
        "use that schema?",
        "Start a projector.",
        _READY,
    ),
    NotReady.VIEWS_OF_ANOTHER_VERSION: Remedy(
        "The views were built by another version.",
        "`order-service --version` of projector and HTTP server.",
        "Run the same version of both. A projector of a new version builds its views again.",
        _READY,
    ),
    NotReady.VIEWS_BUILT: Remedy(
        "A projector reads the log, and has not reached its end.",
        "`/health/ready` of the projector has the offsets that are left.",
        "Wait, or start a projector.",
        _READY,
    ),
    NotReady.VIEWS_BUILT_BY_THIS_PROCESS: Remedy(
        "This projector reads the log, and has not reached its end.",
        "The number in the text falls.",
        "Wait.",
        _READY,
    ),
    NotReady.VIEWS_WAIT_FOR_KAFKA: Remedy(
        "Kafka has not answered for 10 s, so the views may be out of date.",
        "`order-service doctor`",
        "Start the brokers.",
        _READY,
    ),
    NotReady.VIEWS_STOPPED: Remedy(
        "A record of the partition does not fit, cannot be read, or is missing. The other partitions go on.",
        "The text has the reason and the offset. `order-service views stopped` lists all of them.",
        "Start a projector of the version that wrote the record, or run `order-service views skip TOPIC PARTITION "
        "OFFSET`.",
        "`orders_views_stopped` has no series, and `order-service views stopped` ends with 0.",
    ),
    NotReady.VIEWS_LEADERLESS: Remedy(
        "A partition of the events or rejections has no leader. Its views are not updated.",
        "`kafka-topics --describe --unavailable-partitions`",
        "Start the brokers that hold the partition.",
        _READY,
    ),
    NotReady.VIEWS_UNREAD: Remedy(
        "Several projectors share the partitions, and one of them does not run, or has not reached the database for "
        "20 s. Writes over HTTP to orders of its partitions get 202, and reads show their last state.",
        "Which projectors run: each has the settings `ORDERS_PROJECTORS` and `ORDERS_PROJECTOR_INDEX`.",
        "Start the missing projectors, or set `ORDERS_PROJECTORS` of all to the number that runs.",
        "`orders_views_unread_partitions` is 0.",
    ),
    NotReady.KEYS_AWAY: Remedy(
        "The HTTP server has no key that verifies tokens: it has fetched none since its start, or none for a day. "
        "Every request is answered with 503.",
        "The text says what the issuer answered. `order-service doctor` fetches the keys, too.",
        "Correct `ORDERS_JWT_JWKS_URL`, or start the issuer. The keys are fetched again every 10 s.",
        _READY,
    ),
    NotReady.NOT_LISTENING: Remedy(
        "The HTTP server is being started.",
        "If it stays, its log has the cause.",
        "Nothing.",
        _READY,
    ),
}

_SENT_AGAIN: Final = "The corrected command gets an outcome, and `orders_dead_letters_total` stays as it is."
_SHOW: Final = "`order-service dead-letters show` prints the record, its sender's headers and `dl_detail`."

DEAD_LETTERS: Final[dict[DeadLetterReason, Remedy]] = {
    DeadLetterReason.EMPTY: Remedy(
        "The record has no value. Commands are never deleted.",
        _SHOW,
        "Discard it. Let the producer send no tombstones.",
        _SENT_AGAIN,
    ),
    DeadLetterReason.TOO_LARGE: Remedy(
        "The value is longer than a command may be, or its contents are without the escapes of JSON.",
        f"{_SHOW} `dl_detail` has both sizes.",
        "Let the producer send fewer or shorter fields.",
        _SENT_AGAIN,
    ),
    DeadLetterReason.UNKNOWN_FORMAT: Remedy(
        "The first byte is neither 0 (Avro) nor `{` (JSON).",
        _SHOW,
        "Let the producer send Avro with a schema id, or one JSON object.",
        _SENT_AGAIN,
    ),
    DeadLetterReason.UNKNOWN_SCHEMA: Remedy(
        "No schema of a command has this id.",
        "`order-service schemas list` and `order-service schemas check`",
        "Set `SCHEMA_REGISTRY_URL` if producers use a registry. Otherwise let the producer use a listed id. Then "
        "`order-service dead-letters plan`.",
        _SENT_AGAIN,
    ),
    DeadLetterReason.NOT_AVRO: Remedy(
        "The bytes after the schema id are not those of its schema.",
        f"{_SHOW} Was it written with another schema than the one that its id names?",
        "Correct the serializer of the producer.",
        _SENT_AGAIN,
    ),
    DeadLetterReason.NOT_JSON: Remedy(
        "The value is not one JSON object in UTF-8.",
        f"{_SHOW} `dl_detail` has the position.",
        "Correct the serializer of the producer.",
        _SENT_AGAIN,
    ),
    DeadLetterReason.BAD_SHAPE: Remedy(
        "A field is missing, unknown, of another type, or out of range.",
        f"{_SHOW} `dl_detail` names the field. [Events](../events.md) lists the fields of each command.",
        "If the producer has a later version, upgrade the workers. Then `order-service dead-letters plan` and `apply`. "
        "If it has a bug, it sends a corrected command. Then `order-service dead-letters discard`.",
        _SENT_AGAIN,
    ),
    DeadLetterReason.KEY_MISSING: Remedy(
        "The record has no key. It must be the `order_id`.",
        _SHOW,
        "Let the producer set the key. Then `order-service dead-letters plan` and `apply`.",
        _SENT_AGAIN,
    ),
    DeadLetterReason.KEY_MISMATCH: Remedy(
        "The key differs from the `order_id` in the command.",
        _SHOW,
        "Let the producer use the `order_id` as the key. Then `order-service dead-letters plan` and `apply`.",
        _SENT_AGAIN,
    ),
    DeadLetterReason.WRONG_PARTITION: Remedy(
        "The record is not in the partition of its key: the producer chooses partitions in another way than Kafka's.",
        f"{_SHOW} `dl_detail` has both partitions.",
        "Set `partitioner=murmur2_random` in a producer on librdkafka. Then `order-service dead-letters plan` and "
        "`apply`.",
        _SENT_AGAIN,
    ),
}
