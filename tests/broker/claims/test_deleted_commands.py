"""Commands that Kafka has deleted: control records behind the last command are no loss, undecided commands are."""

import signal

from aiokafka.errors import KafkaConnectionError
from confluent_kafka import Producer
from prometheus_client import REGISTRY

from order_service.wire.commands import encode_json_command
from order_service.worker.claims.changelog_reader import ChangelogState
from order_service.worker.claims.claim import claim_until_done
from order_service.worker.claims.progress import ClaimSlots, Progress
from tests.support.claiming import claimer_of
from tests.support.damaged_topics import delete_all
from tests.support.deciding import decide, end
from tests.support.service import histories, until


def send_in_transactions(service, commands, ending):
    """Send commands in one transaction for each, by librdkafka."""
    producer = Producer(
        {
            "log_level": 0,
            "bootstrap.servers": service.bootstrap_servers,
            "transactional.id": f"{service.app_id}-erp",
            "partitioner": "murmur2_random",
        }
    )
    producer.init_transactions(30)
    for command in commands:
        producer.begin_transaction()
        producer.produce(service.names.commands, key=command.order_id, value=encode_json_command(command))
        getattr(producer, ending)(30)


def ends(service):
    """Ask where the commands end, markers included."""
    return {partition: service.end_of(service.names.commands, partition) for partition in range(4)}


def resumes_at(service):
    """Return the offsets from which the next claims go on."""
    return {partition: position.resume_at for partition, position in service.positions().items()}


def test_markers_at_the_end_of_deleted_commands_are_no_loss(service):
    commands = histories(8)
    worker = service.start_worker().wait_lanes(4)
    send_in_transactions(service, commands, "commit_transaction")
    service.wait_outcomes(len(commands))
    send_in_transactions(service, histories(8, first=9), "abort_transaction")
    until(lambda: resumes_at(service) == ends(service), "the positions are past the markers")
    delete_all(service)
    worker.send(signal.SIGKILL)
    worker.wait_ended()
    later = histories(4, first=20)
    service.start_worker().wait_lanes(4)
    service.send(later)
    service.wait_outcomes(len(commands) + len(later))


def test_a_worker_that_is_told_to_end_notes_the_markers_it_has_passed(service):
    commands = histories(8)
    worker = service.start_worker().wait_lanes(4)
    send_in_transactions(service, commands, "commit_transaction")
    service.wait_outcomes(len(commands))
    until(lambda: service.group_positions() == ends(service), "it has passed the markers")
    end(worker)
    delete_all(service)
    service.start_worker().wait_lanes(4)


def test_commands_that_nobody_has_decided_are_a_loss(service):
    decide(service, histories(8))
    end(service.start_worker().wait_lanes(4))
    send_in_transactions(service, histories(8, first=9), "commit_transaction")
    delete_all(service)
    worker = service.start_worker()
    until(lambda: worker.lanes("parked") == 4, "all lanes are parked")
    assert worker.faults().count("are deleted and were never decided") == 4
    assert service.names.commands in worker.faults()


def test_a_first_claim_tells_of_commands_that_were_deleted_before_it(service):
    send_in_transactions(service, histories(8), "commit_transaction")
    deleted = {partition: end for partition, end in ends(service).items() if end}
    delete_all(service)
    worker = service.start_worker().wait_lanes(4)
    said = worker.lines("Commands were deleted before any worker read this partition; they have no outcome.")
    assert {line["partition"]: line["offsets"] for line in said} == deleted
    metrics = worker.admin("/metrics")[1]
    assert all(f'orders_never_read_offsets_total{{partition="{n}"}} {deleted[n]}.0' in metrics for n in deleted)


async def test_a_first_claim_that_is_tried_again_counts_deleted_commands_once(service):
    send_in_transactions(service, histories(8), "commit_transaction")
    partition, deleted = next((partition, end) for partition, end in ends(service).items() if end)
    delete_all(service)
    left = [KafkaConnectionError(), KafkaConnectionError()]

    def fail_before_naming(step):
        if step == "claim.checked" and left:
            raise left.pop()

    def count():
        return REGISTRY.get_sample_value("orders_never_read_offsets_total", {"partition": str(partition)}) or 0

    before = count()
    async with claimer_of(service, "first", fail_before_naming) as claimer:
        claimed = await claim_until_done(claimer, partition, ChangelogState(), Progress(ClaimSlots(1)), pause_s=0)
    assert (left, claimed.position.next_offset) == ([], deleted)
    assert count() == before + deleted
