"""`rebuild` on a real Kafka: lost and damaged changelogs are written again, and the lanes go on as if nothing was."""

import asyncio
import re
import shlex
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from order_service.kafka import reader
from order_service.kafka.connection import connection
from order_service.kafka.reader import Reader
from order_service.operations import takeover
from order_service.operations.rebuild import rebuild as rebuilding
from order_service.operations.rebuild.rebuild import SETTLED_S, Wanted, rebuild
from order_service.operations.rebuild.rebuild_plan import Progress
from order_service.wire import operations
from order_service.wire.changelog import POSITION_KEY
from order_service.worker.transactions import fence
from tests.support.command_line import CommandLine
from tests.support.damaged_topics import cut, recreate, write
from tests.support.deciding import FIRST, decide, end
from tests.support.kafka import WITH_ACLS, running_broker
from tests.support.samples import but, cancel, create
from tests.support.service import ROOT, Service, histories, until, vars_of
from tests.support.users import hanging

PAGE = Path(__file__).parents[3] / "docs" / "operations" / "rebuild.md"
pytestmark = pytest.mark.timeout(400)
YES = ("--reason", "a test", "--yes")
ORDERS = 40
REFUSED = [but(cancel, order_id=f"order-{n}", command_id=f"late-{n}") for n in range(1, ORDERS + 1)]
SENT = [*histories(ORDERS), *REFUSED]


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with running_broker(tmp_path_factory.mktemp("own-kafka"), WITH_ACLS) as own:
        yield own


@pytest.fixture
def apart(broker, tmp_path, users):
    """Provide a service on a broker that knows ACLs, and that a test may stop or damage."""
    with Service(broker.bootstrap_servers, tmp_path, users) as made:
        yield made


def rebuilt(service, *arguments, code=0):
    [document] = CommandLine(service.environment).json("rebuild", *arguments, code=code)
    return {each["partition"]: each for each in document["partitions"]}


def ends(service):
    """Return the end of every partition of every topic."""
    topics = vars_of(service.names).values()
    return {(topic, n): service.end_of(topic, n) for topic in topics for n in range(service.partitions)}


def total(found, name):
    return sum(each[name] for each in found.values())


def assert_goes_on(service, sent=SENT, dead=0, worker=None):
    """Check that all lanes of a worker run, that commands are decided, and that nothing was lost or doubled."""
    worker = (worker or service.start_worker()).wait_lanes(4)
    more = histories(20, first=1000)
    service.send(more)
    service.wait_outcomes(len(sent) + len(more) + dead)
    end(worker)
    service.check([*sent, *more], dead=dead)
    [document] = CommandLine(service.environment).json("verify")
    assert document["findings"] == []


def parking(service, count=4):
    """Start a worker that parks so many lanes, and return it."""
    worker = service.start_worker()
    until(lambda: worker.lanes("parked") == count, f"{count} lanes are parked")
    return worker


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Wait for less time until a difference counts: no worker runs meanwhile in most tests."""
    monkeypatch.setattr(rebuilding, "SETTLED_S", 0.1)


@pytest.fixture
def decided(service):
    """Provide a service with orders, refused commands and dead letters, and no worker."""
    decide(service, [*SENT, *FIRST["dead letters"]])
    return service


@pytest.fixture(params=["recreated", "truncated"])
def lost(request, decided):
    """Provide a service whose table has lost all or half of its records."""
    if request.param == "recreated":
        recreate(decided, decided.names.table)
    else:
        cut(decided, decided.names.table, lambda count: count // 2)
    return decided


def test_a_lost_table_is_written_again_with_all_that_it_had(lost):
    service = lost
    end(parking(service))
    before = ends(service)
    found = rebuilt(service, "--all", "--reason", "a look", code=1)
    assert total(found, "orders") == ORDERS
    assert total(found, "missing") + total(found, "different") > 0
    assert not any(each["is_written"] or each["refusal"] for each in found.values())
    assert ends(service) == before, "a dry run changes nothing"
    found = rebuilt(service, "--all", *YES)
    assert all(each["is_written"] for each in found.values())
    assert service.table() == service.fold()
    acts: list[Any] = [operations.decode(message.value()) for message in service.read(service.names.operations)]
    assert [(type(act).__name__, act.reason) for act in acts] == [("PartitionRebuilt", "a test")] * 4
    assert len({act.id for act in acts}) == 1
    assert sum(act.orders for act in acts) == ORDERS
    again = ends(service)
    assert all(each["is_intact"] for each in rebuilt(service, "--all", *YES).values())
    assert ends(service) == again
    assert_goes_on(service, dead=20)


def test_the_page_shows_what_rebuild_prints(service):
    page = re.findall(r"```console\n\$ order-service (.+)\n((?:.+\n)+)```", PAGE.read_text())
    partition = service.partition_of("order-1")
    decide(service, [*histories(3), but(cancel, order_id="order-1")])
    keys = [POSITION_KEY, b"order-1"]
    write(service, service.names.table, [(partition, key, None, None) for key in keys])
    line = CommandLine(service.environment)
    printed = [(words, line(*shlex.split(words), code="--yes" not in words).stdout) for words, _ in page]
    assert printed == page
    assert "PartitionRebuilt by user:" in line("timeline", "order-1").stdout


def test_only_the_named_partitions_are_written(decided):
    service = decided
    recreate(service, service.names.table)
    assert rebuilt(service, 2, 1, *YES).keys() == {1, 2}
    end(parking(service, 2))
    rebuilt(service, "--all", *YES)
    assert_goes_on(service, dead=20)


def test_a_lost_table_and_recreated_commands_are_a_rebuild_and_a_resume(service):
    decided, new = (
        [command for command in histories(count, first=count) if service.partition_of(command.order_id) == 1]
        for count in (20, 60)
    )
    decide(service, decided)
    for name in (service.names.table, service.names.waiting, service.names.commands):
        recreate(service, name)
    service.send(new)
    recreated, not_restored = rebuilt(service, 1, code=1)[1]["notes"]
    assert "was recreated, or restored with other records" in recreated
    assert "commands that waited" in not_restored
    rebuilt(service, 1, *YES)
    worker = service.start_worker()
    until(lambda: worker.lanes("parked") == 1, "the commands are recreated")
    assert {line["reason"] for line in worker.lines("Lane parked.")} == {"commands_recreated"}
    assert service.outcome_count() == len(decided)
    line = CommandLine(service.environment)
    line("lanes", "resume", 1, "--from", 0, *YES, "--worker", f"127.0.0.1:{worker.admin_port}")
    service.wait_outcomes(len(decided) + len(new))
    assert service.table() == service.fold()
    assert line.json("verify")[0]["findings"] == []


@pytest.mark.parametrize("lost_topics", [["waiting"], ["waiting", "table"]])
def test_commands_that_waited_wait_again(service, users, lost_topics):
    worker = service.start_worker().wait_lanes(4)
    creating = but(create, actor="service:shop", user_id="later")
    late = [
        but(command, order_id=f"late-{n}", command_id=f"{command.command_id}-{n}", actor="service:shop")
        for n in range(8)
        for command in (creating, cancel)
    ]
    service.send(SENT)
    service.wait_outcomes(len(SENT))
    with hanging(users):
        service.send(late)
        until(lambda: len(service.waiting()) == len(late), "they wait")
        service.send(histories(4, first=500))  # decided after them
        service.wait_outcomes(len(SENT) + 20)
        worker.send(signal.SIGKILL)
        worker.wait_ended()
    waited = service.waiting()
    for name in lost_topics:
        recreate(service, getattr(service.names, name))
    worker = parking(service)
    rebuilt(service, "--all", *YES)
    if "table" not in lost_topics:  # or else those after the last outcome are decided again from the commands
        keys = {message.key() for message in service.read(service.names.waiting)}
        assert {key for key in keys if not key.startswith(b"\0")} == waited.keys()
    else:
        assert worker.wait_ended() == 10, "its name was lost: all workers were fenced"
        worker = None
    [document] = CommandLine(service.environment).json("verify")
    assert document["findings"] == []
    assert_goes_on(service, [*SENT, *late, *histories(4, first=500)], worker=worker)


@pytest.mark.parametrize(
    ("log", "key", "value"),
    [
        pytest.param("table", POSITION_KEY, b"\x02newer", id="a position of a newer form"),
        pytest.param("table", b"\xff\xfe", b"\x01\x90", id="a key that is no text"),
        pytest.param("table", b"order-x", b"\x02newer", id="an entry of a newer form"),
        pytest.param("waiting", b"order-x\x003", b"\x09newer", id="a waiting command of a newer form"),
    ],
)
def test_records_that_cannot_be_read_are_deleted(decided, log, key, value):
    service, topic = decided, getattr(decided.names, log)
    write(service, topic, [(2, key, value, None)])
    worker = parking(service, 1)
    if is_owner_lost := key == POSITION_KEY:
        end(worker)  # or else it would be fenced
    found = rebuilt(service, "--all", *YES)
    assert [n for n, each in found.items() if each["is_written"]] == [2]
    assert found[2]["unreadable"].keys() == {topic}
    assert value not in {message.value() for message in service.read(topic)}
    assert service.config_of(topic)["cleanup.policy"].value == "compact"
    assert service.table() == service.fold()
    assert_goes_on(service, dead=20, worker=None if is_owner_lost else worker)
    assert len(worker.lines("Lane claimed again.")) == (not is_owner_lost)


def test_a_policy_that_a_killed_rebuild_left_is_set_back_and_workers_start_again(service):
    topic = service.names.waiting
    service.configure(topic, cleanup_policy="compact,delete", retention_ms="-1")
    assert service.start_worker().wait_ended() == 13
    [note] = rebuilt(service, 1, *YES)[1]["notes"]
    assert note.startswith(f"{topic} has cleanup.policy=compact again")
    assert service.config_of(topic)["cleanup.policy"].value == "compact"
    service.start_worker().wait_lanes(4)


@pytest.mark.parametrize(
    "step", ["rebuild.fenced", "rebuild.begun", "rebuild.batch", "rebuild.written", "rebuild.deleted"]
)
def test_a_rebuild_that_is_killed_leaves_lanes_parked_and_the_next_one_continues(decided, step):
    service = decided
    keys = {message.key() for message in service.read(service.names.table, partitions=[1])}
    write(service, service.names.table, [(1, key, None, None) for key in keys] + [(1, b"\xff\xfe", b"junk", None)])
    command = [sys.executable, "-m", "tests.support.rebuilding", step, "1", "rebuild", "1", *YES]
    with subprocess.Popen(command, cwd=ROOT, env=service.environment) as killed:
        assert killed.wait(100) == -signal.SIGKILL
    worker = parking(service, 1)
    if is_owner_lost := step == "rebuild.fenced":
        end(worker)  # or else it would be fenced
    found = rebuilt(service, 1, *YES)[1]
    assert found["is_written"]
    assert (found["missing"] == 0) == (step in {"rebuild.batch", "rebuild.written", "rebuild.deleted"})
    assert (found["unreadable"] == {}) == (step == "rebuild.deleted")
    assert service.config_of(service.names.table)["cleanup.policy"].value == "compact"
    assert_goes_on(service, dead=20, worker=None if is_owner_lost else worker)


def test_a_running_service_that_is_intact_is_not_touched(service, monkeypatch):
    monkeypatch.setattr(rebuilding, "SETTLED_S", SETTLED_S)
    worker = service.start_worker().wait_lanes(4)
    commands = histories(200)
    with service.sending(commands, per_s=200):
        until(lambda: service.outcome_count() > 50, "orders are decided")
        found = rebuilt(service, "--all", *YES)
        assert all(each["is_intact"] for each in found.values())
    service.wait_outcomes(len(commands))
    assert service.read(service.names.operations) == []
    end(worker)
    service.check(commands)


def test_a_lost_position_is_derived_and_a_worker_that_still_runs_writes_nothing_more(service):
    worker = service.start_worker().wait_lanes(4)
    service.send([*SENT, *FIRST["dead letters"]])
    service.wait_outcomes(len(SENT) + 20)
    write(service, service.names.table, [(n, POSITION_KEY, None, None) for n in range(4)])
    found = rebuilt(service, "--all", *YES)
    assert all(each["is_written"] for each in found.values())
    assert [each["previous_position"] for each in found.values()] == [None] * 4
    assert total(found, "position") == len(SENT) + 20
    service.send(histories(5, first=500))
    worker.wait_ended()
    assert service.outcome_count() == len(SENT) + 20
    assert_goes_on(service, [*SENT, *histories(5, first=500)], dead=20)


def rebuild_with(service, failpoint, **wanted):
    """Rebuild partition 1 in this process."""

    async def run():
        progress = Progress(lambda _: None, lambda _: None)
        terms = Wanted("user:test", "a test", is_confirmed=True, **wanted)
        async with Reader(service.settings()) as topics:
            return await rebuild(topics, service.settings(), [1], terms, progress, failpoint=failpoint)

    return asyncio.run(run())


def test_a_second_operator_is_told_so(decided):
    service = decided
    write(service, service.names.table, [(1, b"order-x", b"\x02newer", None)])

    def other(step):
        """Take the lock as another operator does."""
        if step == "rebuild.begun":
            taking = fence(f"{service.group_id}-claim-1", connection(service.settings()))
            thread = threading.Thread(target=asyncio.run, args=(taking,))
            thread.start()
            thread.join()

    [result] = rebuild_with(service, other)
    assert result.refusal.startswith("a worker or another operator has taken over partition 1 meanwhile; what was")
    worker = parking(service, 1)
    rebuilt(service, "--all", *YES)
    assert_goes_on(service, dead=20, worker=worker)


def test_events_that_cannot_be_folded_are_refused_with_their_offset(decided):
    service = decided
    dropped = service.partition_of("order-5")
    events = [each for each in service.read(service.names.events) if each.key() == b"order-5"]
    whole = service.read(service.names.events)
    recreate(service, service.names.events)
    kept = [each for each in whole if not (each.key() == b"order-5" and each.offset() == events[1].offset())]
    write(service, service.names.events, [(e.partition(), e.key(), e.value(), e.headers()) for e in kept])
    before = ends(service)
    found = rebuilt(service, dropped, *YES, code=1)
    assert f"{service.names.events} partition {dropped} offset " in found[dropped]["refusal"]
    assert "Restore this topic" in found[dropped]["refusal"]
    assert ends(service) == before


def test_events_that_lost_their_tail_are_refused_unless_the_loss_is_accepted(decided):
    service = decided
    whole = service.read(service.names.events)
    recreate(service, service.names.events)
    kept = [each for each in whole if each.key() != b"order-5"]
    write(service, service.names.events, [(e.partition(), e.key(), e.value(), e.headers()) for e in kept])
    partition = service.partition_of("order-5")
    found = rebuilt(service, partition, *YES, code=1)
    assert "have lost records" in found[partition]["refusal"]
    found = rebuilt(service, partition, *YES, "--accept-loss")
    assert found[partition]["superfluous"] == 1
    assert "order-5" not in service.table()
    [message] = service.read(service.names.operations)
    act: Any = operations.decode(message.value())
    assert any("order-5" in line for line in act.lost)
    service.start_worker()
    service.send([but(create, order_id="order-5", command_id="create-again", actor="service:shop")])
    until(lambda: "order-5" in service.table(), "its lane decides again")


def test_a_wrong_call_is_2_a_missing_partition_1_and_a_missing_topic_13(service):
    line = CommandLine(service.environment)
    line("rebuild", "--reason", "x", code=2)
    line("rebuild", 1, "--all", "--reason", "x", code=2)
    line("rebuild", 1, "--yes", code=2)
    line("rebuild", 1, "--actor", "nobody", code=2)
    assert "there is no partition 7" in line("rebuild", 7, "--reason", "x", code=1).stderr
    missing = CommandLine(service.environment | {"ORDERS_TOPIC_PREFIX": "missing."})
    assert len(missing("rebuild", "--all", "--reason", "x", code=13).stderr.splitlines()) == 1


def test_a_batch_that_a_disk_has_damaged_is_deleted(broker, apart):
    service = apart
    decide(service, SENT)
    partition = service.partition_of("order-5")
    broker.stop()
    for topic in (service.names.table, service.names.waiting):
        log = broker.directory / "data" / f"{topic}-{partition}" / "00000000000000000000.log"
        data = bytearray(log.read_bytes())
        data[65] ^= 1  # in the record of the first batch, whose header has 61 bytes
        log.write_bytes(data)
    broker.start()
    end(parking(service, 1))
    found = rebuilt(service, "--all", *YES)
    assert found[partition]["unreadable"].keys() == {service.names.table, service.names.waiting}
    assert [n for n, each in found.items() if each["is_written"]] == [partition]
    assert_goes_on(service)


@pytest.mark.parametrize("step", ["takeover.locked", "rebuild.begun"])
def test_a_kafka_that_goes_away_meanwhile_is_4_and_the_next_rebuild_continues(broker, apart, monkeypatch, step):
    service = apart
    decide(service, histories(8))
    write(service, service.names.table, [(1, b"order-x", b"\x02newer", None)])
    stopping = partial(rebuild, failpoint=lambda reached: broker.kill() if reached == step else None)
    monkeypatch.setattr(rebuilding, "rebuild", stopping)
    monkeypatch.setattr(reader, "SILENT_S", 2.0)
    monkeypatch.setattr(takeover, "DEADLINE_S", 2.0)
    line = CommandLine(service.environment)("rebuild", 1, *YES, code=4).stderr
    assert line.splitlines()[1:] == []
    assert "what was written is kept, if anything: run this again" in line
    monkeypatch.undo()
    broker.start()
    assert rebuilt(service, 1, *YES)[1]["is_written"]
    assert_goes_on(service, histories(8))


READ_ONLY = (AclOperation.WRITE, AclOperation.DELETE, AclOperation.ALTER_CONFIGS)


@contextmanager
def denied(service, resource, name, *denied_operations):
    """Deny operations on the resources with this prefix, and allow all others, while the block runs."""
    anyone = (resource, name, ResourcePatternType.PREFIXED, "User:*", "*")
    acls = [(*anyone, operation, AclPermissionType.DENY) for operation in denied_operations]
    acls.append((*anyone, AclOperation.ALL, AclPermissionType.ALLOW))
    for future in service.kafka.create_acls([AclBinding(*acl) for acl in acls]).values():
        future.result(30)
    yield
    for future in service.kafka.delete_acls([AclBindingFilter(*acl) for acl in acls]).values():
        future.result(30)


def test_a_principal_that_may_only_read_changes_nothing_and_is_told_what_it_needs(apart):
    names = apart.names
    decide(apart, histories(8))
    write(apart, names.table, [(1, b"order-x", b"\x02newer", None)])
    before = ends(apart)

    def is_refused(text):
        return text in rebuilt(apart, 1, *YES, code=1)[1]["refusal"]

    with denied(apart, ResourceType.TOPIC, names.table, *READ_ONLY):
        rights = f"Write on {names.table}, AlterConfigs on {names.table}, Delete on {names.table}"
        until(lambda: is_refused(f"grant this principal {rights}"), "it is told so")
    with denied(apart, ResourceType.TRANSACTIONAL_ID, f"{apart.group_id}-claim-", AclOperation.WRITE):
        until(lambda: is_refused("grant this principal Write and Describe on that transactional id"), "it is told so")
    assert ends(apart) == before


def test_a_refusal_after_the_takeover_changes_nothing(service):
    decide(service, histories(8))
    write(service, service.names.table, [(1, b"order-x", b"\x02newer", None)])
    before = service.positions()
    event = next(message for message in service.read(service.names.events) if message.partition() == 1)

    def repeat_event(step):
        if step == "rebuild.locked":
            write(service, service.names.events, [(1, event.key(), event.value(), event.headers())])

    [result] = rebuild_with(service, repeat_event)
    assert "does not follow the events before it" in result.refusal
    assert service.positions() == before
