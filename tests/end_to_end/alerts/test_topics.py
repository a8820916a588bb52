"""The alerts about what the topics and the disk contain: each fires by its fault, and resolves after its repair."""

from functools import partial

from chaos.faults.strangers import visit_group
from order_service.domain.messages import Line
from order_service.worker.membership import LaneAssignor
from tests.support.command_line import CommandLine
from tests.support.damaged_topics import delete_all
from tests.support.deciding import creates, end
from tests.support.prometheus import fires
from tests.support.service import histories, until
from tests.support.topic_settings import run_lines

REASON = ("--reason", "a test", "--actor", "user:alice", "--yes")


def has_parked(worker, more_than):
    return len(worker.lines("Lane parked.")) > more_than


@fires("OrdersNeverRead")
def test_commands_that_are_deleted_before_a_worker_reads_them(watch):
    service, commands = watch.service, histories(8)
    watch.before()
    service.send(commands)
    delete_all(service)
    watch.target(service.start_worker()).wait_lanes(4)
    watch.fault()
    service.send(commands)  # their senders send them again
    service.wait_outcomes(len(commands))
    [found] = CommandLine(service.environment).json("why", commands[0].command_id)
    assert found["is_known"]
    watch.after()


@fires("OrdersDeadLetters", "OrdersTopicFaults", "OrdersGroupStrangers")
def test_foreign_records_a_changed_topic_and_a_stranger(watch):
    service = watch.service
    worker = watch.target(service.start_worker(TEST_TOPICS_EVERY_S="0.2")).wait_lanes(4)
    watch.before()
    service.send([("order-1", b"no command")])
    service.wait_outcomes(1)
    service.configure(service.names.events, retention_bytes=1024**3)
    until(lambda: watch.value("orders_topic_faults") == 1, "the setting is noticed")

    def is_seen():
        until(lambda: watch.value("orders_group_strangers") == 1, "the stranger is noticed")
        watch.fault()

    visit_group(service.bootstrap_servers, service.group_id, service.names.commands, is_seen, [LaneAssignor])
    cli = CommandLine(service.environment)
    [compared] = cli.json("topics", "check", code=13)
    run_lines(compared["fix"], service.directory)
    [letter] = cli.json("dead-letters", "list")
    cli("dead-letters", "discard", f"{letter['partition']}:{letter['offset']}", "--why", "a test", "--yes")
    until(lambda: not cli.json("dead-letters", "list"), "no dead letter is open")
    worker.wait_lanes(4)
    until(lambda: watch.value("orders_topic_faults") == 0, "the setting is repaired")
    cli("topics", "check")
    until(lambda: watch.value("orders_group_strangers") == 0, "the stranger has left")
    watch.after()


@fires("OrdersLaneParked", "OrdersTablesDiscarded", "OrdersTableStoreFault", ORDERS_TABLE="rocksdb")
def test_a_parked_lane_whose_table_on_disk_is_damaged_and_then_forbidden(watch, tmp_path):
    service, module = watch.service, ("tests.support.unprivileged",)
    worker = watch.target(service.start_worker(module=module)).wait_lanes(4)
    watch.before()
    service.configure(service.names.events, max_message_bytes=3000)
    lines = tuple(Line(line_id=f"{n}", sku="mug", name="n" * 100, quantity=1, unit_price=100) for n in range(200))
    service.send(creates(service, 1, 0, lines=lines, discount=0))
    tables = service.directory / f"tables of {worker.name}"
    resume = ("lanes", "resume", 0, *REASON, "--worker", f"127.0.0.1:{worker.admin_port}")
    cli = CommandLine(service.environment)
    [current] = [path for path in tables.rglob("CURRENT") if path.parent.name.endswith("-0")]
    until(lambda: worker.lanes("parked") == 1, "the lane is parked")
    watch.fault()
    for count in range(1, 5):
        current.write_text("damaged")
        cli(*resume)
        until(partial(has_parked, worker, count), "the table is thrown away, and the lane is parked again")
        assert watch.value("orders_table_stores_discarded_total") == count
        watch.fault()
    service.configure(service.names.events, max_message_bytes=4 * 1024 * 1024)
    current.parent.chmod(0)
    cli(*resume)
    until(lambda: watch.value("orders_table_store_fault") == 1, "the disk cannot be used")
    watch.fault()
    current.parent.chmod(0o755)
    worker.wait_lanes(4)
    service.wait_outcomes(1)
    end(worker)
    another_disk = str(tmp_path / "another disk")
    watch.target(service.start_worker(module=module, ORDERS_TABLE_DIR=another_disk)).wait_lanes(4)
    watch.after()
