"""Each state in which a lane parks, and the way back with `order-service lanes resume`: the other lanes run on."""

import signal
import struct
import threading

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclOperation,
    AclPermissionType,
    OffsetSpec,
    ResourcePatternType,
    ResourceType,
)

from order_service.domain.messages import Line
from order_service.operations.takeover import taken_over
from order_service.wire import operations
from tests.broker.worker.test_refused import create_acls, creates, delete_acls, denying
from tests.support.command_line import CommandLine
from tests.support.damaged_topics import cut, recreate
from tests.support.deciding import FIRST, decide, end
from tests.support.kafka import WITH_ACLS, running_broker
from tests.support.samples import but, create
from tests.support.service import Service, histories, until, vars_of

LENGTH_AT = 8
TAKEN_OVER = "order_service.operations.lanes.resume.taken_over"
REASON = ("--reason", "the disk was replaced", "--actor", "user:alice")


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with running_broker(tmp_path_factory.mktemp("own-kafka"), WITH_ACLS) as own:
        yield own


@pytest.fixture
def apart(broker, tmp_path, users):
    """Provide a service on a broker that knows ACLs, and whose files a test may damage."""
    with Service(broker.bootstrap_servers, tmp_path, users) as made:
        yield made


class Operator:
    """Calls `order-service lanes` for a service with these workers."""

    def __init__(self, service, *workers):
        self._service = service
        self._call = CommandLine(service.environment)
        self._workers = [word for each in workers for word in ("--worker", f"127.0.0.1:{each.admin_port}")]

    def lane(self, partition):
        """Return the row of one partition."""
        [document] = self._call.json("lanes", *self._workers)
        return document["lanes"][partition]

    def preview(self, partition, *arguments):
        """Return what a resume would change."""
        [document] = self._call.json("lanes", "resume", partition, *arguments, *self._workers)
        return document

    def resume(self, partition, *arguments):
        """Resume a lane, and return what was recorded."""
        [document] = self._call.json("lanes", "resume", partition, *arguments, *REASON, "--yes", *self._workers)
        assert document["done"]
        return document["operation"]

    def refused(self, partition, *arguments, code=1):
        """Return the line with which a resume is refused; no operation is recorded."""
        before = recorded(self._service)  # a lane that runs and rests writes its position, so ends may grow
        result = self._call("lanes", "resume", partition, *arguments, *REASON, "--yes", *self._workers, code=code)
        assert recorded(self._service) == before
        return result.stderr

    def verify(self, code=0):
        """Return what `verify` reports."""
        [document] = self._call.json("verify", code=code)
        return document


def ends(service, partition):
    """Return the end of a partition in each topic; the lanes of the other ones may run."""
    asked = {TopicPartition(topic, partition): OffsetSpec.latest() for topic in vars_of(service.names).values()}
    return {place.topic: answer.result(30).offset for place, answer in service.kafka.list_offsets(asked).items()}


def until_parked(worker, operator, partition):
    """Wait until a lane is parked, and return its row."""
    until(lambda: worker.lanes("parked") >= 1, "a lane is parked")
    until(lambda: operator.lane(partition)["state"] == "parked", "the list shows it")
    lane = operator.lane(partition)
    assert lane["since"]
    return lane


def until_running(worker, partition):
    """Wait until the lane runs again, without a new claim of any other lane."""
    until(lambda: worker.lanes() == 4, "all lanes run")
    [claimed] = until(lambda: worker.lines("Lane claimed again."), "the log has it")
    assert claimed["partition"] == partition
    assert len(worker.lines("Lane started.")) <= 4


def recorded(service):
    """Return the operations."""
    return [operations.decode(message.value()) for message in service.read(service.names.operations)]


def large_create(service):
    lines = tuple(Line(line_id=f"{n}", sku="mug", name="n" * 100, quantity=1, unit_price=100) for n in range(200))
    return creates(service, 1, partition=0, lines=lines, discount=0)


def test_a_record_that_was_too_large_is_decided_after_the_topic_accepts_it(service):
    worker = service.start_worker().wait_lanes(4)
    service.configure(service.names.events, max_message_bytes=3000)
    service.send([*large_create(service), *creates(service, 6)])
    operator = Operator(service, worker)
    assert "MessageSizeTooLarge" in until_parked(worker, operator, 0)["reason"]
    service.wait_outcomes(6)
    service.configure(service.names.events, max_message_bytes=4 * 1024 * 1024)
    before = ends(service, 0)
    assert operator.preview(0)["faults"] == []
    assert ends(service, 0) == before, "without --yes it only reads"
    operator.resume(0)
    until(lambda: worker.lanes() == 4, "all lanes run")
    service.wait_outcomes(7)
    assert operator.lane(0)["state"] == "running"
    assert "it is not parked" in operator.refused(0)
    assert operator.verify()["ok"]
    [operation] = recorded(service)
    assert (operation.actor, operation.reason, operation.position) == ("user:alice", "the disk was replaced", None)


def test_a_lane_that_may_not_write_runs_again_after_the_right_is_granted(apart):
    worker = apart.start_worker().wait_lanes(4)
    acls = denying(apart.names.rejections, AclOperation.WRITE)
    create_acls(apart, acls)
    [accepted] = creates(apart, 1, partition=0)
    apart.send([accepted, but(accepted, command_id="again")])
    operator = Operator(apart, worker)
    assert "TopicAuthorizationFailed" in until_parked(worker, operator, 0)["reason"]
    operator.resume(0)  # the right is still missing
    until(lambda: len(worker.lines("Lane parked.")) >= 2, "the lane is parked again")
    delete_acls(apart, acls)
    until(lambda: operator.lane(0)["state"] == "parked", "the lane is parked")
    operator.resume(0)
    apart.wait_outcomes(2)
    until(lambda: worker.lanes() == 4, "all lanes run")


def damage(broker, topic, partition, *, batches_before=0):
    """Damage a batch of a partition on the disk of the broker, and return its base offset."""
    path = broker.directory / "data" / f"{topic}-{partition}" / "00000000000000000000.log"
    with path.open("r+b") as file:  # the broker has it open, and reads it for each fetch
        log = bytearray(file.read())
        start = 0
        for _ in range(batches_before):
            start += 12 + struct.unpack_from(">i", log, start + LENGTH_AT)[0]
        [offset] = struct.unpack_from(">q", log, start)
        log[start + 70] ^= 1  # the checksum does not fit
        file.seek(0)
        file.write(log)
    return offset


def test_a_damaged_batch_is_skipped_and_the_orders_behind_it_are_decided(broker, apart):
    commands = [but(create, order_id=f"order-{n}", command_id=f"create-{n}") for n in range(40)]
    for start in range(0, len(commands), 10):
        apart.send(commands[start : start + 10])
    partition = apart.partition_of("order-0")
    mine = [command for command in commands if apart.partition_of(command.order_id) == partition]
    batches = [[each for each in commands[start : start + 10] if each in mine] for start in range(0, 40, 10)]
    damaged = damage(broker, apart.names.commands, partition, batches_before=1)
    assert damaged == len(batches[0])
    behind = damaged + len(batches[1])
    worker = apart.start_worker()
    operator = Operator(apart, worker)
    lane = until_parked(worker, operator, partition)
    assert "is damaged" in lane["reason"]
    until(lambda: apart.outcome_count() == len(commands) - len(mine) + operator.lane(partition)["position"], "others")
    document = operator.preview(partition, "--from", behind)
    assert document["skipped"]["offsets"] == behind - lane["position"]
    assert f"from {damaged} on cannot be read" in document["skipped"]["unreadable"]
    other = operator.lane((partition + 1) % 4)["owner"]
    operator.resume(partition, "--from", behind)
    until(lambda: worker.lanes() == 4, "all lanes run")
    skipped = behind - lane["position"]
    apart.wait_outcomes(len(commands) - skipped)
    assert operator.lane((partition + 1) % 4)["owner"] == other, "the other lanes run on under their owner"
    assert len(worker.lines("Lane claimed again.")) == 1


def test_a_lane_goes_on_after_a_damaged_batch_of_rejections_was_accepted_as_lost(broker, apart):
    worker = apart.start_worker().wait_lanes(4)
    apart.send(FIRST["rejections"][:1])
    apart.wait_outcomes(1)
    worker.send(signal.SIGKILL)  # its last position has the ends before this turn
    worker.wait_ended()
    partition = apart.partition_of("order-0")
    damage(broker, apart.names.rejections, partition)
    worker = apart.start_worker()
    operator = Operator(apart, worker)
    assert f"in {apart.names.rejections} at 0" in until_parked(worker, operator, partition)["reason"]
    assert "accept the loss with --accept-loss" in operator.refused(partition)
    operator.resume(partition, "--accept-loss")
    until_running(worker, partition)
    apart.send(creates(apart, 1, partition))
    until(apart.events, "a new command is decided")


def deleted(service, partition):
    """Delete commands of a partition before any worker has decided them, and return the first one that is left."""
    decide(service, histories(8))
    service.send(histories(8, first=9))
    end_offset = service.end_of(service.names.commands, partition)
    left = end_offset - 2
    for future in service.kafka.delete_records([TopicPartition(service.names.commands, partition, left)]).values():
        future.result(30)
    return left


def test_a_lane_goes_on_behind_deleted_commands(service):
    left = deleted(service, 1)
    worker = service.start_worker()
    operator = Operator(service, worker)
    lane = until_parked(worker, operator, 1)
    assert "are deleted and were never decided" in lane["reason"]
    assert f"{left} to {left + 2}" in operator.refused(1), "a plain resume would park it again"
    assert "where the commands begin and end" in operator.refused(1, "--from", left - 1)
    operation = operator.resume(1, "--from", left + 1)  # with a command that is still there
    assert (operation["previous_position"], operation["position"]) == (lane["position"], left + 1)
    until_running(worker, 1)
    until(lambda: operator.lane(1)["lag"] == 0, "the last command is decided")
    document = operator.verify()
    assert "skipped the commands from offset" in document["operations"][0]
    [order_id] = operation["skipped_order_ids"]
    shown = CommandLine(service.environment)("timeline", order_id, code=1).stdout
    moved = f"position {lane['position']} to {left + 1}"
    assert f"LaneResumed by user:alice: the disk was replaced (operation {operation['id']}, {moved})" in shown


def test_a_lane_begins_with_the_first_command_of_a_recreated_topic(service):
    decide(service, histories(20))
    recreate(service, service.names.commands)
    worker = service.start_worker()
    operator = Operator(service, worker)
    until(lambda: worker.lanes("parked") == 4, "all lanes are parked")
    reused = histories(8, first=100)
    for partition in range(4):
        assert "truncated or recreated" in operator.lane(partition)["reason"]
        operator.resume(partition, "--from", 0)
    until(lambda: worker.lanes() == 4, "all lanes run")
    service.send(reused)
    service.wait_outcomes(28 * 5)
    assert operator.verify()["ok"], "outcomes of the previous topic have the same command offsets"


def test_a_lane_runs_on_after_the_loss_of_its_last_outcomes_was_accepted(service):
    decide(service, FIRST["rejections"])
    end(service.start_worker().wait_lanes(4))  # this one has seen the whole log
    topic = service.names.rejections
    cut(service, topic, lambda count: max(count - 1, 0))
    worker = service.start_worker()
    operator = Operator(service, worker)
    until(lambda: worker.lanes("parked") >= 1, "lanes are parked")
    until(lambda: worker.lanes("claiming") == 0, "all claims are done")
    parked = [partition for partition in range(4) if operator.lane(partition)["state"] == "parked"]
    for partition in parked:
        assert "--accept-loss" in operator.refused(partition)
        operation = operator.resume(partition, "--accept-loss")
        actual, known = operation["lost"][topic]
        assert actual < known
        assert operation["position"] == operation["previous_position"]
    until(lambda: worker.lanes() == 4, "all lanes run")
    service.send(creates(service, 1, parked[0]))
    until(service.events, "a new command is decided")
    end(worker)  # it would write its position
    assert "no loss" in Operator(service).refused(parked[0], "--accept-loss")


def test_a_table_that_lost_its_tail_needs_a_rebuild(service):
    decide(service, histories(20))
    cut(service, service.names.table, lambda count: count // 2)
    worker = service.start_worker()
    operator = Operator(service, worker)
    until(lambda: worker.lanes("parked") == 4, "all lanes are parked")
    for arguments in ((), ("--from", 0), ("--accept-loss",)):
        assert "rebuild" in operator.refused(0, *arguments)


def test_of_two_operators_one_is_refused(service, monkeypatch):
    left = deleted(service, 1)
    operator, other = Operator(service), Operator(service)
    reached, go_on = threading.Event(), threading.Event()

    def slow(*arguments):
        reached.set()
        assert go_on.wait(60)
        return taken_over(*arguments)

    monkeypatch.setattr(TAKEN_OVER, slow)
    lines = []
    slower = threading.Thread(
        target=lambda: lines.append(
            CommandLine(service.environment)("lanes", "resume", 1, "--from", left, *REASON, "--yes", code=1).stderr
        )
    )
    slower.start()
    assert reached.wait(60)
    monkeypatch.setattr(TAKEN_OVER, taken_over)
    other.resume(1, "--from", left)
    go_on.set()
    slower.join(60)
    assert "has moved since the checks: its position was not changed" in lines[0]
    assert len(recorded(service)) == 1
    assert operator.lane(1)["position"] == left


def test_a_principal_without_a_right_changes_nothing_and_reads_which_right(apart):
    left = deleted(apart, 1)
    operator = Operator(apart)
    anyone = (ResourceType.TRANSACTIONAL_ID, f"{apart.group_id}-claim-1", ResourcePatternType.LITERAL, "User:*", "*")
    acls = [(*anyone, AclOperation.WRITE, AclPermissionType.DENY)]
    create_acls(apart, acls)
    line = operator.refused(1, "--from", left)
    assert f"{apart.group_id}-claim-1" in line
    assert "grant this principal Write and Describe on that transactional id" in line
    delete_acls(apart, acls)
    acls = denying(apart.names.operations, AclOperation.WRITE)
    create_acls(apart, acls)
    result = CommandLine(apart.environment)("lanes", "resume", 1, "--from", left, *REASON, "--yes", code=1)
    assert "grant this principal Write on that topic" in result.stderr
    assert apart.names.operations in result.stderr
    assert (recorded(apart), operator.lane(1)["position"] < left) == ([], True), "nothing is half done"
    delete_acls(apart, acls)


def test_without_workers_the_list_has_what_kafka_tells(service):
    decide(service, histories(8))
    [document] = CommandLine(service.environment).json("lanes", "--worker", "127.0.0.1:1")
    assert [lane["state"] for lane in document["lanes"]] == ["not assigned"] * 4
    assert sum(lane["position"] for lane in document["lanes"]) == 40
    assert {(lane["lag"], lane["waiting"]) for lane in document["lanes"]} == {(0, 0)}
    assert any("no worker answers at 127.0.0.1:1" in note for note in document["notes"])
    worker = service.start_worker().wait_lanes(4)
    [document] = CommandLine(service.environment).json("lanes", "--worker", "127.0.0.1:1")
    assert [lane["state"] for lane in document["lanes"]] == ["unknown"] * 4
    assert all(str(worker.admin_port) in lane["worker"] for lane in document["lanes"])
