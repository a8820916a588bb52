"""Where a lane goes on: at its own position, whatever the group says, and nowhere if the log does not go with it."""

from collections import Counter

import pytest
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.cimpl import NewPartitions

from tests.support.command_line import CommandLine
from tests.support.damaged_topics import cut, recreate
from tests.support.deciding import decide, end
from tests.support.service import histories, until


def offsets(service):
    """Return the positions, without their owners."""
    return {partition: position.next_offset for partition, position in service.positions().items()}


def group_at(service, offset):
    """Set what the group has committed, for all partitions."""
    ends = Counter(message.partition() for message in service.read(service.names.commands))
    places = [
        TopicPartition(service.names.commands, partition, ends[partition] if offset == OFFSET_END else 0)
        for partition in range(4)
    ]
    request = ConsumerGroupTopicPartitions(service.group_id, places)
    for future in service.kafka.alter_consumer_group_offsets([request]).values():
        future.result(30)


def test_a_clean_restart_at_rest_reads_nothing_again(service):
    commands = histories(20)
    decide(service, commands)
    before = offsets(service)
    again = service.start_worker().wait_lanes(4)
    until(lambda: len(again.lines("Lane started.")) == 4, "the log has all four lanes")
    assert {line["partition"]: line["offset"] for line in again.lines("Lane started.")} == before
    service.send(histories(1, first=21))
    service.wait_outcomes(len(commands) + 5)
    service.check(commands + histories(1, first=21))
    assert sum(offsets(service).values()) == sum(before.values()) + 5


@pytest.mark.parametrize("offset", [OFFSET_BEGINNING, OFFSET_END, None], ids=["beginning", "end", "deleted"])
def test_what_the_group_has_committed_does_not_matter(service, offset):
    commands = histories(30)
    decide(service, commands[:75])
    service.send(commands[75:])  # while no worker runs
    if offset is None:
        service.kafka.delete_consumer_groups([service.group_id])[service.group_id].result(30)
    else:
        group_at(service, offset)
    service.start_worker()
    service.wait_outcomes(len(commands))
    service.check(commands)


def test_a_recreated_commands_topic_parks_its_lanes(service):
    commands = histories(20)
    decide(service, commands)
    recreate(service, service.names.commands)
    worker = service.start_worker()
    until(lambda: worker.lanes("parked") == 4, "all lanes are parked")
    why = "commands_truncated: the commands end at 0"
    assert all(f"partition {n} is parked: {why}" in worker.faults() for n in range(4))
    service.send(histories(1, first=21))
    end(worker)
    service.check(commands)


def test_a_restored_commands_topic_parks_its_lanes_until_they_are_resumed_at_their_positions(service):
    commands = histories(20)
    decide(service, commands)
    cut(service, service.names.commands, lambda count: count)  # Kafka gives the restored records new timestamps
    worker = service.start_worker()
    until(lambda: worker.lanes("parked") == 4, "all lanes are parked")
    assert worker.faults().count("is parked: commands_recreated: ") == 4
    assert worker.faults().count("has a different timestamp than the decided one") == 4
    line = CommandLine(service.environment)
    for partition, position in offsets(service).items():
        call = ("lanes", "resume", partition, "--reason", "the commands were restored", "--yes")
        assert f"The position is {position}: continue there if the topic was restored." in line(*call, code=1).stderr
        line(*call, "--from", position)
    worker.wait_lanes(4)
    new = histories(1, first=21)
    service.send(new)
    service.wait_outcomes(len(commands) + len(new))
    service.check(commands + new)
    assert line.json("verify")[0]["ok"]


def test_a_commands_topic_that_is_recreated_while_a_worker_runs_parks_its_lanes(service):
    commands = histories(20)
    worker = service.start_worker().wait_lanes(4)
    service.send(commands)
    service.wait_outcomes(len(commands))
    recreate(service, service.names.commands, lambda: "commands.v1 does not exist" in worker.faults())
    until(lambda: worker.lanes("parked") == 4, "all lanes are parked")
    assert "is parked" in worker.faults()
    end(worker)
    service.check(commands)


def test_commands_that_were_deleted_undecided_park_their_lane_and_no_other(service):
    commands = histories(20)
    decide(service, commands)
    before = offsets(service)
    lost = histories(20, first=21)
    service.send(lost)
    deleted = TopicPartition(service.names.commands, 2, before[2] + 1)
    for future in service.kafka.delete_records([deleted]).values():
        future.result(30)
    worker = service.start_worker()
    until(lambda: worker.lanes("running") == 3, "three lanes run")
    fault = f"partition 2 is parked: commands_deleted: commands from {before[2]} to {before[2]} are deleted"
    until(lambda: fault in worker.faults(), "one does not")
    elsewhere = [message for message in service.read(service.names.commands) if message.partition() != 2]
    service.wait_outcomes(before[2] + len(elsewhere))
    assert offsets(service)[2] == before[2]


def test_another_partition_count_is_refused_at_the_start(service):
    worker = service.start_worker(ORDERS_PARTITIONS="5")
    assert worker.wait_ended() == 13
    assert f"{service.names.commands} has 4 partitions, ORDERS_PARTITIONS says 5" in worker.log()


def test_partitions_that_are_added_while_a_worker_runs_end_it(service):
    commands = histories(10)
    worker = service.start_worker().wait_lanes(4)
    service.send(commands)
    service.wait_outcomes(len(commands))
    for future in service.kafka.create_partitions([NewPartitions(service.names.commands, 5)]).values():
        future.result(30)
    assert worker.wait_ended() == 13
    assert "has 5 partitions now, it had 4: keys move" in worker.lines("This worker ends.")[0]["reason"]
    service.check(commands)
