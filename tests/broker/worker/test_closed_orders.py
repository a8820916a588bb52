"""Closed orders on a real broker: they forget their commands, and neither a kill nor a claim creates one again."""

import signal

import pytest

from order_service.domain.entry import ShortEntry
from order_service.domain.messages import CreateOrder
from tests.support.command_line import CommandLine
from tests.support.deciding import end
from tests.support.samples import but
from tests.support.service import histories, until

ORDERS = 30
FORGETTING = {"ORDERS_REMEMBER_CLOSED_DAYS": "0.00001"}  # 0.9 s
ON_DISK = {"ORDERS_TABLE": "rocksdb", "ORDERS_TABLE_CACHE_MB": "16"}


def are_all_short(service, count):
    table = service.table()
    return len(table) == count and all(type(entry) is ShortEntry for entry in table.values())


def assert_intact(service):
    """Check that `verify` finds nothing, and that `rebuild` has nothing to write."""
    service.wait_visible()
    line = CommandLine(service.environment)
    [document] = line.json("verify")
    assert document["findings"] == []
    [document] = line.json("rebuild", "--all")
    assert all(each["is_intact"] for each in document["partitions"])


def decided_count(service):
    return sum(position.next_offset for position in service.positions().values())


@pytest.mark.parametrize("settings", [{}, ON_DISK], ids=["in memory", "on disk"])
def test_closed_orders_forget_their_commands_and_are_never_created_again(service, tmp_path, settings):
    settings = {**settings, "ORDERS_TABLE_DIR": str(tmp_path / "tables"), "ORDERS_INSTANCE_ID": "one"}
    commands = histories(ORDERS)
    creates = [command for command in commands if isinstance(command, CreateOrder)]
    remembering = service.start_worker(**settings).wait_lanes(4)
    service.send([*commands, *creates])
    until(lambda: decided_count(service) == len(commands) + ORDERS, "all are decided, also the repeats")
    end(remembering)
    assert service.outcome_count() == len(commands)

    killed = service.start_worker(**settings, **FORGETTING)
    until(lambda: are_all_short(service, ORDERS), "all orders have forgotten their commands")
    killed.send(signal.SIGKILL)
    killed.wait_ended()
    heir = service.start_worker(**settings, **FORGETTING).wait_lanes(4)
    again = [*creates, *(but(command, command_id=f"again-{command.command_id}") for command in commands)]
    service.send(again)
    service.wait_outcomes(len(commands) + len(again))
    end(heir)

    assert len(service.events()) == len(commands)
    refused = {rejection.command_id: (rejection.reason, rejection.version) for rejection in service.rejections()}
    assert refused.keys() == {command.command_id for command in again}
    assert set(refused.values()) == {("order_exists", 5), ("already_delivered", 5), ("already_paid", 5)}
    assert are_all_short(service, ORDERS)
    assert_intact(service)

    remembering = service.start_worker(**settings).wait_lanes(4)  # what is forgotten stays forgotten
    service.send([but(creates[0], command_id="for-ever")])
    service.wait_outcomes(len(commands) + len(again) + 1)
    end(remembering)
    assert {each.command_id: each.reason for each in service.rejections()}["for-ever"] == "order_exists"
