"""A changelog is cut inside a transaction: it stays open until an operator aborts it with Kafka's own tool.

The transaction coordinator has no such transaction any more, so neither a timeout nor a fence ends it.
"""

import re
import subprocess

import pytest

from chaos.faults.broker_data import cut_marker
from tests.support.claiming import open_transaction
from tests.support.deciding import decide, end
from tests.support.service import Service, histories, until

PARTITION = 1


@pytest.fixture
def service(broker, tmp_path, users):
    with Service(broker.bootstrap_servers, tmp_path, users) as made:
        yield made


def transactions(broker, *arguments):
    """Run kafka-transactions.sh, without the script around it, and return what it prints."""
    tool = [*broker.command[:3], "org.apache.kafka.tools.TransactionsCommand"]
    command = [*tool, "--bootstrap-server", broker.bootstrap_servers, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def cut_inside_a_transaction(broker, topic, *, records=1):
    """Cut a partition before the marker of its last transaction of so many records; return where that one begins."""
    broker.stop()
    offset = cut_marker(broker.directory, topic, PARTITION, records=records)
    broker.start()
    return offset


def hanging(broker, topic):
    """Return the lines of find-hanging for the partition."""
    where = ("--topic", topic, "--partition", str(PARTITION), "--max-transaction-timeout", "0")
    return transactions(broker, "find-hanging", *where).splitlines()[1:]


def abort(broker, topic, offset):
    where = ("--topic", topic, "--partition", str(PARTITION))
    transactions(broker, "abort", *where, "--start-offset", str(offset))


def open_s(worker, topic):
    """Return the metric of the open transaction, None without one."""
    found = re.search(
        rf'^orders_foreign_transaction_seconds{{partition="{PARTITION}",topic="{re.escape(topic)}"}} (\S+)$',
        worker.admin("/metrics")[1],
        re.MULTILINE,
    )
    return float(found[1]) if found else None


def wait_reported(worker, topic, offset):
    """Wait until readiness, metric and log name the transaction."""
    until(lambda: worker.lanes() == 3, "the other lanes run")
    where = rf"a transaction that is open on {re.escape(topic)} partition {PARTITION} from offset {offset}"
    until(lambda: re.search(rf"it has waited \d+ s for {where}", worker.faults()), "readiness names it")
    until(lambda: (open_s(worker, topic) or 0) > 5.0, "the metric has its age")
    until(
        lambda: any(re.search(where, line["waits_for"]) for line in worker.lines("A claim takes long.")),
        "the log names it",
    )


def test_a_hanging_transaction_in_a_changelog_is_reported_until_it_is_aborted(broker, service):
    commands = histories(20)
    decide(service, commands[:50])
    topic = service.names.waiting
    with open_transaction(service, topic, PARTITION) as stranger:
        stranger.commit_transaction(30)
    offset = cut_inside_a_transaction(broker, topic)
    worker = service.start_worker()
    wait_reported(worker, topic, offset)
    assert [line.split()[:2] for line in hanging(broker, topic)] == [[topic, str(PARTITION)]]
    abort(broker, topic, offset)
    worker.wait_lanes(4)
    until(lambda: open_s(worker, topic) is None, "the metric forgets it")
    service.send(commands[50:])
    service.wait_outcomes(len(commands))
    service.check(commands)
    end(worker)


def test_an_abort_of_a_turn_whose_other_half_was_committed_parks_the_lane(broker, service):
    commands = histories(20)
    decide(service, commands)
    topic = service.names.table
    offset = cut_inside_a_transaction(broker, topic, records=2)  # an order and the position
    worker = service.start_worker()
    wait_reported(worker, topic, offset)
    abort(broker, topic, offset)
    until(lambda: worker.lanes("parked") == 1, "the lane is parked")
    assert f"the changelog {topic} partition {PARTITION} has lost its last records" in worker.faults()
    assert service.outcome_count() == len(commands)
