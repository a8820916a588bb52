"""A turn that Kafka refuses: the lane that it names parks, the others go on, and no other worker ends for it."""

import signal
import struct

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from order_service.domain.messages import Line
from order_service.errors import GroupError
from order_service.wire.changelog import POSITION_KEY, decode_position
from tests.support.kafka import WITH_ACLS, running_broker
from tests.support.samples import but, create
from tests.support.service import Service, until

PROPERTIES = {
    **WITH_ACLS,
    "transaction.state.log.num.partitions": "1",
    "transactional.id.expiration.ms": "6000",
    "transaction.remove.expired.transaction.cleanup.interval.ms": "500",
}


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with running_broker(tmp_path_factory.mktemp("own-kafka"), PROPERTIES) as own:
        yield own


@pytest.fixture
def apart(broker, tmp_path, users):
    """Provide a service on a broker that knows ACLs and soon forgets a transactional id."""
    with Service(broker.bootstrap_servers, tmp_path, users) as made:
        yield made


def creates(service, count, partition=None, **fields):
    """Make creates of other orders, in one partition or in all but the first."""
    ids = (f"order-{number}" for number in range(10_000))
    wanted = {partition} if partition is not None else {1, 2, 3}
    found = [order_id for order_id in ids if service.partition_of(order_id) in wanted][:count]
    return [but(create, order_id=order_id, command_id=f"create-{order_id}", **fields) for order_id in found]


def denying(topic, operation):
    """Return the ACLs that deny one operation on a topic, and allow the others to the test and the worker."""
    anyone = (ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:*", "*")
    return [(*anyone, operation, AclPermissionType.DENY), (*anyone, AclOperation.ALL, AclPermissionType.ALLOW)]


def create_acls(service, acls):
    for future in service.kafka.create_acls([AclBinding(*acl) for acl in acls]).values():
        future.result(30)


def delete_acls(service, acls):
    for future in service.kafka.delete_acls([AclBindingFilter(*acl) for acl in acls]).values():
        future.result(30)


def restart(worker, service):
    worker.send(signal.SIGTERM)
    assert worker.wait_ended() == 0
    return service.start_worker().wait_ready()


def test_a_record_that_a_topic_refuses_parks_its_lane_on_every_worker_in_turn(service):
    workers = [service.start_worker(), service.start_worker()]
    until(lambda: sum(worker.lanes() for worker in workers) == 4, "both workers share the lanes")
    service.configure(service.names.events, max_message_bytes=3000)
    lines = tuple(Line(line_id=f"{n}", sku="mug", name="n" * 100, quantity=1, unit_price=100) for n in range(200))
    large = creates(service, 1, partition=0, lines=lines, discount=0)
    others = creates(service, 10)
    service.send([*large, *others])
    service.wait_outcomes(len(others))
    until(lambda: any("is parked" in worker.faults() for worker in workers), "a lane is parked")
    [first] = [worker for worker in workers if "is parked" in worker.faults()]
    refused = f"refused_by_kafka: Kafka refuses a record for {service.names.events}-0: MessageSizeTooLargeError"
    assert f"partition 0 is parked: {refused}" in first.faults()
    [heir] = [worker for worker in workers if worker is not first]
    assert first.process.poll() is None
    first.send(signal.SIGKILL)
    until(lambda: "partition 0 is parked" in heir.faults(), "the heir parks the lane as well")
    more = [but(command, order_id=f"{command.order_id}x", command_id=f"{command.command_id}x") for command in others]
    more = [command for command in more if service.partition_of(command.order_id) != 0]
    service.send(more)
    service.wait_outcomes(len(others) + len(more))
    assert heir.process.poll() is None
    service.configure(service.names.events, max_message_bytes=4 * 1024 * 1024)
    restart(heir, service)
    service.wait_outcomes(len(others) + len(more) + 1)
    service.check([*large, *others, *more])


def test_a_topic_that_a_worker_may_not_write_to_parks_the_lanes_that_need_it(apart):
    worker = apart.start_worker().wait_ready()
    acls = denying(apart.names.rejections, AclOperation.WRITE)
    create_acls(apart, acls)
    [accepted, *_] = refused = creates(apart, 1, partition=0)
    others = creates(apart, 10)
    apart.send([*refused, but(accepted, command_id="again"), *others])
    apart.wait_outcomes(len(others))
    reason = f"refused_by_kafka: Kafka refuses a record for {apart.names.rejections}-0: TopicAuthorizationFailedError"
    until(lambda: f"partition 0 is parked: {reason}" in worker.faults(), "the lane is parked")
    assert worker.process.poll() is None
    delete_acls(apart, acls)
    restart(worker, apart)
    apart.wait_outcomes(len(others) + 2)
    apart.check([*refused, but(accepted, command_id="again"), *others])


def test_a_worker_that_may_not_read_the_commands_names_topic_and_right_and_ends(apart):
    worker = apart.start_worker().wait_ready()
    topic = apart.names.commands
    missing = f"Kafka does not allow this worker to read the topic {topic}: grant it Read on that topic"
    acls = denying(topic, AclOperation.READ)
    create_acls(apart, acls)
    assert worker.wait_ended() == GroupError.exit_code
    [line] = worker.lines("This worker ends.")
    assert line["reason"] == missing
    assert "Traceback" not in worker.log()
    assert apart.start_worker().wait_ended() == GroupError.exit_code
    delete_acls(apart, acls)
    worker = apart.start_worker().wait_ready()
    commands = [create for partition in range(4) for create in creates(apart, 1, partition=partition)]
    apart.send(commands)
    apart.wait_outcomes(len(commands))
    apart.check(commands)
    create_acls(apart, acls)
    assert worker.wait_ended() == GroupError.exit_code
    waits = apart.start_worker()  # each of its claims reads the command that was decided last
    until(lambda: waits.faults().count(missing) == 4, "all claims wait for the right")
    delete_acls(apart, acls)
    waits.wait_ready()


def test_a_worker_decides_on_after_kafka_has_forgotten_its_transactional_id(apart):
    worker = apart.start_worker().wait_ready()
    first, second = creates(apart, 1, partition=0), creates(apart, 8)
    apart.send(first)
    apart.wait_outcomes(1)
    owner = owner_of(apart, 0)
    until(lambda: is_forgotten(apart, owner), "Kafka has forgotten the id")
    apart.send(second)
    apart.wait_outcomes(9)
    apart.check([*first, *second])
    worker.wait_ready()
    assert owner_of(apart, 0) != owner


def is_forgotten(service, transactional_id):
    """Return whether the newest record of a transactional id in Kafka's own topic is a tombstone."""
    records = {message.key(): message.value() for message in service.read("__transaction_state", partitions=[0])}
    return records.get(b"\0\0" + struct.pack(">h", len(transactional_id)) + transactional_id.encode(), b"") is None


def owner_of(service, partition):
    """Return the transactional id that may write a partition's lane."""
    values = [
        m.value() for m in service.read(service.names.table) if (m.key(), m.partition()) == (POSITION_KEY, partition)
    ]
    return decode_position(values[-1]).owner
