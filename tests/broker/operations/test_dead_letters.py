"""`dead-letters` on a real Kafka: what is planned is what happens, once, or nothing is sent."""

import asyncio
import gc
import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from chaos.faults.registry import Registry, foreign
from order_service.errors import KafkaAwayError, OperationRefused
from order_service.operations.dead_letters import applying
from order_service.wire.avro import encode_command
from order_service.wire.commands import encode_json_command
from order_service.wire.operations import Act
from order_service.wire.schemas.catalogue import SCHEMAS
from tests.support.command_line import CommandLine
from tests.support.deciding import decide, end
from tests.support.kafka import WITH_ACLS, running_broker
from tests.support.samples import but, cancel, create, pay, ship
from tests.support.service import Service, StubThread

PAGE = Path(__file__).parents[3] / "docs" / "operations" / "dead-letters.md"
CREATE = but(create, order_id="order-1", actor="service:shop")
PAY = but(pay, order_id="order-1", amount=3800)
SHIP = but(ship, order_id="order-1")
HOSTILE = b"\x1b]0;owned\x07\xff no command"
WHY = ("--why", "the schema is registered now")


@pytest.fixture
def service(bootstrap_servers, tmp_path, users):
    with Service(bootstrap_servers, tmp_path, users) as made:
        yield made


@pytest.fixture
def registry(monkeypatch):
    """Provide a registry with schemas that this process did not know before, nor knows afterwards."""
    monkeypatch.setattr(SCHEMAS, "by_id", dict(SCHEMAS.by_id))
    with Registry() as running:
        yield {"SCHEMA_REGISTRY_URL": running.url}


def unknown(command):
    """Return a command under a schema id that only the registry knows."""
    return command.order_id, foreign(encode_command(command), 1)


def without_key(service, *commands):
    """Send commands without a key: the partition of each is any, and it becomes a dead letter."""
    for command in commands:
        service.send([(None, encode_json_command(command))])


def planned(cli, *selected, code=0):
    [document] = cli.json("dead-letters", "plan", *selected, *WHY, code=code)
    return document["plan"], [(each.get("command_id"), each["result"]) for each in document["decisions"]]


def applied(cli, plan, *options, code=0):
    outcomes = cli.json("dead-letters", "apply", plan, *WHY, "--yes", "--wait", 120, *options, code=code)
    return [(each["command_id"], each["outcome"]) for each in outcomes]


def commands_of(service, order_id="order-1"):
    return [each for each in service.read(service.names.commands) if each.key() == order_id.encode()]


def versions(service, order_id="order-1"):
    events = [event for event in service.events() if event.order_id == order_id]
    return [(event.version, type(event.fact).__name__) for event in events]


def run_apply(service, plan, **changes):
    """Apply a plan in this process; return the coroutine."""
    act = Act(id="act", at=datetime.now(UTC), actor="user:dana", reason="test")
    terms = applying.Terms(max_age=timedelta(hours=1), per_second=1, wait_s=0)
    return applying.apply(service.settings(), act, plan, terms, lambda _applied: None, **changes)


@pytest.mark.timeout(300)  # with the start of the shared broker, on a busy machine
def test_commands_with_a_schema_that_is_known_later_are_planned_and_applied_once(service, registry):
    stranger = but(CREATE, order_id="order-2", command_id="create-2", user_id="unknown-1")
    last = but(SHIP, expected_version=2)
    letters = [unknown(PAY), unknown(last), unknown(PAY), unknown(stranger), ("order-1", HOSTILE)]
    decide(service, [CREATE, *letters])
    cli = CommandLine(service.environment | registry)
    listed = cli.json("dead-letters", "list")
    assert sorted(each["reason"] for each in listed) == ["unknown_format", *["unknown_schema"] * 4]
    assert {each["state"] for each in listed} == {"open"}
    plan, results = planned(cli)
    assert sorted(results, key=str) == sorted(
        [
            ("pay-1", "OrderPaid -> version 2"),
            ("ship-1", "OrderShipped -> version 3"),
            ("pay-1", "repeat"),
            ("create-2", "rejected: user_not_found"),
            (None, "still cannot be decoded (unknown_format): discard it"),
        ],
        key=str,
    )
    worker = service.start_worker(**registry).wait_lanes(4)
    assert sorted(applied(cli, plan)) == sorted(
        [
            ("pay-1", "OrderPaid -> version 2"),
            ("ship-1", "OrderShipped -> version 3"),
            ("pay-1", "repeat"),
            ("create-2", "rejected: user_not_found"),
        ]
    )
    assert versions(service) == [(1, "OrderCreated"), (2, "OrderPaid"), (3, "OrderShipped")]
    sent = len(service.read(service.names.commands))
    refused = cli("dead-letters", "apply", plan, *WHY, "--yes", code=1)
    assert refused.stderr == f"order-service: plan {plan} was applied before: nothing is left to send\n"
    assert len(service.read(service.names.commands)) == sent
    end(worker)
    [left] = cli.json("dead-letters", "list")
    assert left["reason"] == "unknown_format"
    assert {each["state"] for each in cli.json("dead-letters", "list", "--all")} == {
        f"applied by plan {plan}",
        "open",
    }
    name = f"{left['partition']}:{left['offset']}"
    text = cli("dead-letters", "show", name).stdout
    assert "00000000  1b 5d 30 3b 6f 77 6e 65 64 07 ff 20" in text
    assert "\x1b" not in text
    assert "\x07" not in text
    cli("dead-letters", "discard", name, "--why", "bytes of another program", "--yes")
    assert cli("dead-letters", "list").stdout == "no dead letters\n"
    assert "discarded" in cli("dead-letters", "show", name).stdout
    assert CommandLine(service.environment | registry).json("verify")[0]["findings"] == []


def test_commands_without_a_key_reach_their_order_in_the_sequence_in_which_they_were_sent(service):
    worker = service.start_worker().wait_lanes(4)
    without_key(service, CREATE, PAY, SHIP)
    service.wait_outcomes(3)
    cli = CommandLine(service.environment)
    plan, results = planned(cli, "--reason", "key_missing")
    steps = ["OrderCreated -> version 1", "OrderPaid -> version 2", "OrderShipped -> version 3"]
    assert [result for _, result in results] == steps
    assert [outcome for _, outcome in applied(cli, plan, "--per-second", 2)] == steps
    end(worker)
    assert [name for _, name in versions(service)] == ["OrderCreated", "OrderPaid", "OrderShipped"]
    operations = service.read(service.names.operations)
    assert {each.value().count(b"dead_letters_applied") for each in operations} == {0, 1}
    assert cli.json("verify")[0]["findings"] == []


def test_a_plan_is_refused_as_a_whole_if_an_order_has_changed_since(service):
    worker = service.start_worker().wait_lanes(4)
    other = but(CREATE, order_id="order-2", command_id="create-2")
    service.send([CREATE])
    without_key(service, other, PAY)
    service.wait_outcomes(3)
    cli = CommandLine(service.environment)
    plan, _ = planned(cli)
    service.send([but(cancel, order_id="order-1", actor="service:shop")])
    service.wait_outcomes(4)
    sent = len(service.read(service.names.commands))
    refused = cli("dead-letters", "apply", plan, *WHY, "--yes", code=1)
    assert "nothing was sent: order order-1 is at version 2, the plan expects 1" in refused.stderr
    assert len(service.read(service.names.commands)) == sent
    end(worker)


def test_the_worker_refuses_a_command_whose_order_changed_after_the_check(service):
    worker = service.start_worker().wait_lanes(4)
    service.send([CREATE])
    without_key(service, PAY)
    service.wait_outcomes(2)
    end(worker)
    cli = CommandLine(service.environment)
    plan, results = planned(cli)
    assert results == [("pay-1", "OrderPaid -> version 2")]
    service.send([but(cancel, order_id="order-1", actor="service:shop")])  # nothing decides it yet
    assert applied(cli, plan, "--wait", 0, code=1) == [("pay-1", "no outcome yet: is a worker running?")]
    worker = service.start_worker().wait_lanes(4)
    service.wait_outcomes(4)
    end(worker)
    assert versions(service) == [(1, "OrderCreated"), (2, "OrderCancelled")]
    assert [rejection.reason for rejection in service.rejections()] == ["version_conflict"]


def three_dead_letters(service):
    """Make creates of three orders that are dead letters; return the commands."""
    creates = [but(CREATE, order_id=f"order-{n}", command_id=f"create-{n}") for n in range(3)]
    worker = service.start_worker().wait_lanes(4)
    without_key(service, *creates)
    service.wait_outcomes(3)
    end(worker)
    return creates


def test_of_two_operators_one_is_refused_and_every_command_is_sent_once(service, caplog):
    creates = three_dead_letters(service)
    plan, _ = planned(CommandLine(service.environment))
    counts: list[int] = []

    async def second(seconds):
        assert 0 <= seconds <= 1, "one command a second"
        if not counts:
            counts.append(0)
            counts[0] = await run_apply(service, plan)

    with pytest.raises(OperationRefused, match="another operator has started a tool that writes"):
        asyncio.run(run_apply(service, plan, sleep=second))
    gc.collect()
    assert "never retrieved" not in caplog.text
    assert counts == [2], "the second operator sends what the first one has not sent"
    sent = [each.key().decode() for each in service.read(service.names.commands) if each.key()]
    assert sorted(sent) == [command.order_id for command in creates]
    worker = service.start_worker().wait_lanes(4)
    service.wait_outcomes(6)
    end(worker)
    assert len(service.events()) == 3


def test_a_kafka_that_goes_away_between_two_batches_leaves_a_plan_that_is_continued(tmp_path, users, monkeypatch):
    monkeypatch.setattr("order_service.operations.dead_letters.applying.DEADLINE_S", 3.0)
    with (
        running_broker(tmp_path / "kafka") as broker,
        Service(broker.bootstrap_servers, tmp_path, users, keep_topics=True) as service,
    ):
        creates = three_dead_letters(service)
        plan, _ = planned(CommandLine(service.environment))

        async def kill(_seconds):
            broker.kill()

        with pytest.raises(KafkaAwayError, match="time; commands sent before: 1; apply the plan again"):
            asyncio.run(run_apply(service, plan, sleep=kill))
        assert CommandLine(service.environment)("dead-letters", "list", code=4).stderr.count("\n") == 1
        broker.start()
        assert asyncio.run(run_apply(service, plan)) == 2
        sent = [each.key().decode() for each in service.read(service.names.commands) if each.key()]
        assert sorted(sent) == [command.order_id for command in creates]


@pytest.fixture
def guarded(tmp_path, users):
    """Provide a service on a broker that knows ACLs."""
    with (
        running_broker(tmp_path / "kafka", WITH_ACLS) as broker,
        Service(broker.bootstrap_servers, tmp_path, users, keep_topics=True) as made,
    ):
        yield made


def deny_writes(service, kind, name):
    """Deny writes to a topic or under a transactional id; return what allows them again."""
    anyone = (kind, name, ResourcePatternType.LITERAL, "User:*", "*")
    acls = [(*anyone, AclOperation.WRITE, AclPermissionType.DENY), (*anyone, AclOperation.ALL, AclPermissionType.ALLOW)]
    for future in service.kafka.create_acls([AclBinding(*acl) for acl in acls]).values():
        future.result(30)

    def allow():
        for future in service.kafka.delete_acls([AclBindingFilter(*acl) for acl in acls]).values():
            future.result(30)

    return allow


def test_a_principal_that_may_only_read_gets_one_line_and_changes_nothing(guarded):
    three_dead_letters(guarded)
    cli = CommandLine(guarded.environment)
    operations, commands = guarded.names.operations, guarded.names.commands
    transactional_id = f"{guarded.group_id}-operations"

    def is_refused(*words, because):
        result = cli("dead-letters", *words, *WHY, code=1)
        assert result.stderr.count("\n") == 1
        assert because in result.stderr
        return result

    allow = deny_writes(guarded, ResourceType.TRANSACTIONAL_ID, transactional_id)
    is_refused("plan", because=f"grant Write on the transactional id {transactional_id}; nothing was changed")
    allow()
    allow = deny_writes(guarded, ResourceType.TOPIC, operations)
    is_refused("plan", because=f"has changed nothing: Kafka refuses a record for {operations}")
    is_refused("discard", "--reason", "key_missing", "--yes", because=f"Kafka refuses a record for {operations}")
    assert guarded.read(operations) == []
    planned(cli, "--dry-run")
    allow()
    plan, _ = planned(cli)
    allow = deny_writes(guarded, ResourceType.TOPIC, commands)
    is_refused("apply", plan, "--yes", because=f"has changed nothing: Kafka refuses a record for {commands}")
    assert [each for each in guarded.read(commands) if each.key()] == []
    allow()
    assert len(cli.json("dead-letters", "list")) == 3


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("show", "0:0"), 1, "there are no dead letters 0:0; they are kept for 30 days"),
        (("show", "99:0"), 1, "there are no dead letters 99:0; they are kept for 30 days"),
        (("apply", "no-plan", *WHY, "--yes"), 1, "there is no plan no-plan"),
        (("show", "first"), 2, "'first' is not PARTITION:OFFSET, as `list` prints it"),
        (("discard", *WHY), 2, "name the dead letters, or give a filter"),
        (("plan", "0:0", "--order", "o", *WHY), 2, "name the dead letters, or give filters, not both"),
        (("plan", "--why", " "), 2, "Invalid value for --why: it must not be empty"),
    ],
)
def test_a_wrong_call_is_one_line(cli, words, code, line):
    result = cli("dead-letters", *words, code=code)
    assert line in re.sub(r"\s*\n\s*", " ", result.stderr)
    assert result.stdout == ""


@pytest.fixture(scope="module")
def cli(bootstrap_servers, tmp_path_factory):
    """Provide the command line of a service without any records."""
    with StubThread() as users, Service(bootstrap_servers, tmp_path_factory.mktemp("empty"), users) as made:
        yield CommandLine(made.environment)


def test_a_missing_topic_is_one_line_and_13(cli):
    environment = cli.environment | {"ORDERS_TOPIC_PREFIX": "missing."}
    result = CommandLine(environment)("dead-letters", "list", code=13)
    assert (result.stdout, len(result.stderr.splitlines())) == ("", 1)


def test_the_page_shows_what_is_printed(service):
    page = re.findall(r"^```console\n\$ order-service ([^\n]+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    worker = service.start_worker().wait_lanes(4)
    records = [CREATE, (None, encode_json_command(PAY)), ("order-1", b"hello")]
    for count, each in enumerate(records, 1):  # one at a time: dead letters of one turn have the same time
        service.send([each], **({"partition": 0} if each is records[1] else {}))
        service.wait_outcomes(count)
    cli, prefix, plan = CommandLine(service.environment), service.environment["ORDERS_TOPIC_PREFIX"], ""
    for words, expected in page:
        printed = cli(*shlex.split(words.replace("PLAN", plan))).stdout
        plan = "".join(re.findall(r"^plan (\w+)", printed, re.MULTILINE)) or plan
        assert _normal(printed.replace(prefix, "")) == _normal(expected), words
    end(worker)


def _normal(text):
    """Return the text without times and ids, and with one space between columns."""
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME", text)
    text = re.sub(r"dl_timestamp: \d+", "dl_timestamp: MS", text)
    return re.sub(r" +", " ", re.sub(r"\b[0-9a-f]{12}\b", "ID", text))
