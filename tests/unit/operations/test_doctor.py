"""`doctor` without a broker: how checks are made together, and what each result is judged to be."""

import asyncio
import re
import socket
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError
from aiokafka.structs import TopicPartition

from order_service.errors import (
    DamagedError,
    DatabaseError,
    HistoryError,
    KafkaAwayError,
    TopicsError,
    UserServiceUnavailable,
)
from order_service.kafka.connection import NO_LEADER
from order_service.kafka.rights_requests import NOT_REPORTED, OPERATIONS, Rights
from order_service.kafka.topics import Fault, topic_configs, topic_names
from order_service.local.broker import free_port
from order_service.local.kafka import Docker, Embedded, choose_kafka
from order_service.local.programs_check import check_programs
from order_service.operations.doctor import doctor
from order_service.operations.doctor.checks.backlog import Backlog
from order_service.operations.doctor.checks.brokers import fix_of, judge_brokers, judge_replicas
from order_service.operations.doctor.checks.check import Check, address_of, ok, warning
from order_service.operations.doctor.checks.clocks import judge_clock, measured_skew, skew_from
from order_service.operations.doctor.checks.group import judge_group, judge_lag
from order_service.operations.doctor.checks.readiness import Readiness, admin_address, judge_readiness
from order_service.operations.doctor.checks.rights import judge_rights
from order_service.operations.doctor.checks.transactions import still_open
from order_service.operations.doctor.checks.user_service import check_user_service, judge_no_answer
from order_service.operations.doctor.checks.views import (
    State,
    check_projector,
    check_views,
    judge_backlogs,
    judge_views,
)
from order_service.operations.doctor.checks.waiting import Waiting, count_waiting, judge_waiting
from order_service.operations.doctor.doctor import checks_of, examine
from order_service.settings import Settings
from order_service.wire.changelog import WaitingCommand
from order_service.worker.membership import CLIENT_PREFIX, Group, Member
from order_service.worker.monitoring.end_offsets import End
from tests.support.certificates import CertificateAuthority
from tests.support.command_line import CommandLine
from tests.support.samples import but, create, pay

PAGE = Path(__file__).parents[3] / "docs" / "operations" / "doctor.md"
NAMES = topic_names()
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def check(name="a", *results, error=None, **fields):
    async def run():
        if error is not None:
            raise error
        return list(results)

    return Check(name, run, "Do this.", **fields)


def shown(diagnosis):
    return [(result.check, result.status, result.text, result.fix) for result in diagnosis.results]


def statuses(results):
    return [result.status for result in results]


# All checks together


async def test_a_check_that_fails_is_a_finding_and_the_others_go_on():
    away = DatabaseError("the database is away")
    found = await examine(check("kafka", ok("Here.")), [check("views", error=away), check("clock", ok("Same."))])
    assert shown(found) == [
        ("kafka", "ok", "Here.", ""),
        ("views", "problem", "The database is away.", "Do this."),
        ("clock", "ok", "Same.", ""),
    ]
    assert (found.finding_count, found.is_kafka_reachable) == (1, True)


async def test_an_unexpected_error_of_a_check_is_a_finding_and_the_others_go_on():
    found = await examine(
        check("kafka", ok("Here.")), [check("views", error=ValueError("x")), check("clock", ok("Same."))]
    )
    assert shown(found)[1:] == [
        ("views", "problem", "The check itself failed (ValueError).", "Do this."),
        ("clock", "ok", "Same.", ""),
    ]


@pytest.mark.parametrize(
    "error", [HistoryError("a position cannot be decoded"), DamagedError(("orders.table.v1", 3), 7)]
)
async def test_damaged_data_is_looked_up_by_its_text(error):
    [_, found] = shown(await examine(check("kafka", ok("Here.")), [check("lag", error=error)]))
    assert found[1:] == ("problem", f"A{str(error)[1:]}.", doctor.SEE_REASONS)


@pytest.mark.parametrize(
    ("value", "skew_s"),
    [("0.25", 0.25), ("-3.0", -3.0), ("1.5e-05", 1.5e-05), ("NaN", None), ("+Inf", None), ("x", None), ("1.0 2", None)],
)
def test_the_skew_of_a_worker_is_a_number_or_unknown(value, skew_s):
    assert measured_skew(f"# HELP\norders_clock_skew_seconds {value}\nother 1.0\n") == skew_s


async def test_without_kafka_only_the_checks_that_need_it_are_left_out():
    kafka = check("kafka", error=KafkaAwayError("no Kafka answers"))
    found = await examine(kafka, [check("topics", ok("Fine."), needs_kafka=True), check("views", ok("Fine."))])
    assert [(result.check, result.status) for result in found.results] == [
        ("kafka", "problem"),
        ("topics", "not_checked"),
        ("views", "ok"),
    ]
    assert (found.finding_count, found.is_kafka_reachable) == (1, False)


async def test_a_check_that_hangs_ends_after_its_time():
    async def hang():
        await asyncio.Event().wait()
        return []

    hanging = Check("views", hang, "Restart it.", within_s=0.05)
    found = await examine(check("kafka", ok("Here.")), [hanging])
    assert shown(found)[1] == ("views", "problem", "The check had no result within 0.05 s.", "Restart it.")


async def test_checks_run_at_the_same_time_and_their_results_have_the_sequence_of_the_checks():
    both = asyncio.Barrier(2)

    async def meet():
        async with both:
            return [ok("Met.")]

    others = [Check("b", meet, ""), check("c", ok("One."), warning("Two.", "Fix.")), Check("d", meet, "")]
    found = await examine(check("kafka", ok("Here.")), others)
    assert [result.check for result in found.results] == ["kafka", "b", "c", "c", "d"]
    assert [result.text for result in found.results[2:4]] == ["One.", "Two."]


@pytest.mark.parametrize("refused", [TopicAuthorizationFailedError(), GroupAuthorizationFailedError()])
async def test_what_the_principal_may_not_see_is_not_checked(refused):
    error = KafkaAwayError("Kafka refuses the request")
    error.__cause__ = refused
    found = await examine(check("kafka", ok("Here.")), [check("lag", error=error)])
    [_, (_, status, text, fix)] = shown(found)
    assert status == "not_checked"
    assert type(refused).__name__ in text
    assert "acls" in fix
    assert found.finding_count == 0


async def test_a_missing_topic_is_the_finding_of_one_check_only():
    found = await examine(check("kafka", ok("Here.")), [check("lag", error=TopicsError("a topic is missing"))])
    assert shown(found)[1][1:3] == ("not_checked", "A topic is missing.")


def test_the_page_has_a_row_for_each_check_in_the_sequence_of_the_output():
    table = PAGE.read_text().partition("## What it checks")[2]
    rows = re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE)
    names = [each.name for each in checks_of(Settings())]
    assert rows == ["kafka", *names, "token_keys", "local_kafka"]


# The command line, while everything is away

SECRET = "secret-that-nobody-may-see"


@pytest.fixture
def away(tmp_path):
    """Return settings whose services are away, with a secret in each that can have one."""
    nobody = f"127.0.0.1:{free_port()}"
    return {
        "KAFKA_BOOTSTRAP_SERVERS": nobody,
        "ORDERS_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "ORDERS_KAFKA_SASL_USERNAME": "orders",
        "ORDERS_KAFKA_SASL_PASSWORD": SECRET,
        "USER_SERVICE_URL": f"http://shop:{SECRET}@{nobody}/users",
        "SCHEMA_REGISTRY_URL": f"http://{nobody}",
        "ORDERS_SCHEMA_REGISTRY_USERNAME": "orders",
        "ORDERS_SCHEMA_REGISTRY_PASSWORD": SECRET,
        "ORDERS_DATABASE_URL": f"postgresql://orders:{SECRET}@{nobody}/orders",
        "ORDERS_JWT_JWKS_URL": f"http://issuer:{SECRET}@{nobody}/keys?code={SECRET}",
        "ORDERS_JWT_ISSUER": "issuer",
        "ORDERS_JWT_AUDIENCE": "orders",
        "ORDERS_ADMIN_PORT": str(free_port()),
        "ORDERS_DATA_DIR": str(tmp_path),
    }


def test_without_kafka_the_other_checks_are_printed_and_the_exit_status_is_4(away):
    [document] = CommandLine(away).json("doctor", code=4)
    assert (document["ok"], document["kafka_reachable"], document["finding_count"]) == (False, False, 5)
    problems = [result["check"] for result in document["results"] if result["status"] == "problem"]
    assert problems == ["kafka", "user_service", "schema_registry", "views", "token_keys"]
    assert all(result["fix"] for result in document["results"] if result["status"] == "problem")
    assert set(document["results"][0]) == {"check", "status", "text", "fix"}


def test_no_secret_is_printed(away):
    for arguments in ([], ["--json"]):
        result = CommandLine(away)("doctor", *arguments, code=4)
        assert SECRET not in result.output
        assert "gives no answer" in result.stdout


def test_the_text_has_a_line_for_each_result_and_then_what_to_do(away):
    lines = CommandLine(away)("doctor", code=4).stdout.splitlines()
    assert lines[0].split() == ["check", "status", "result"]
    table, fixes = lines[1 : lines.index("")], lines[lines.index("What to do:") + 1 : -2]
    assert [line.split()[0] for line in table if " problem " in line] == [line.split(":")[0] for line in fixes]
    assert lines[-1].endswith("; findings: 5")


def test_an_address_has_neither_credentials_nor_path():
    assert address_of("https://shop:secret@users.test:8443/v1?key=secret") == "https://users.test:8443"


# The brokers and the topics


@pytest.mark.parametrize(
    ("count", "version", "status", "release"),
    [
        (1, 29, "ok", "1 broker at kafka:9092, Kafka 4.2."),
        (3, 29, "ok", "3 brokers at kafka:9092, Kafka 4.2."),
        (3, 30, "ok", "Kafka 4.3 or newer."),
        (2, 30, "warning", "Kafka 4.3 or newer."),
        (1, 34, "warning", "can leave a transaction open"),
        (3, 25, "ok", "Kafka 4.0."),
        (3, 12, "ok", "Kafka 3.8 or older."),
        (3, None, "ok", "Kafka of an unknown version."),
    ],
)
def test_a_few_brokers_of_a_version_that_leaves_transactions_open_are_a_warning(count, version, status, release):
    result = judge_brokers("kafka:9092", count, version)
    assert result.status == status
    assert release in result.text


def partition(number, leader=1, replicas=(1, 2, 3), isr=(1, 2, 3)):
    return {"partition": number, "leader": leader, "replicas": list(replicas), "isr": list(isr)}


def test_partitions_without_leader_or_replicas_are_named_with_the_brokers_to_start():
    topic = {
        "topic": "orders.events.v1",
        "partitions": [
            partition(0),
            partition(1, isr=(1, 2)),
            partition(2, isr=(1,)),
            partition(3, leader=NO_LEADER, isr=(3,)),
            partition(4, leader=NO_LEADER, isr=(3,)),
        ],
    }
    results = judge_replicas([topic], {"orders.events.v1": 2})
    assert [(result.status, result.text) for result in results] == [
        ("warning", "Partition 1 of orders.events.v1 has a replica that is not in sync."),
        (
            "problem",
            "Partition 2 of orders.events.v1 has fewer than 2 replicas in sync, so nothing can be written.",
        ),
        ("problem", "Partitions 3, 4 of orders.events.v1 have no leader."),
    ]
    assert "1, 2, 3" in results[0].fix


def test_new_replicas_are_one_plan_and_a_setting_is_a_line_of_its_own():
    move = {"topic": "a", "partition": 0, "replicas": [1, 2, 3]}
    faults = [
        Fault("a", "a has 1 replica", moves=(move,)),
        Fault("b", "b has 1 replica", moves=({**move, "topic": "b"},)),
        Fault("b", "b has retention.ms=1", "retention.ms=-1"),
    ]
    first, second, third = [fix_of(fault, faults, Settings()) for fault in faults]
    assert first == second
    assert first.count("kafka-reassign-partitions") == 1
    assert '"topic":"b"' in first
    assert third.startswith("kafka-configs ")
    assert "reassign" not in third


# What the principal may do

ALL = sum(1 << bit for bit in OPERATIONS.values())
EVERY = {topic: Rights(0, ALL) for topic in topic_configs(NAMES)}


ALLOWED = Rights(0, ALL)


def judged(topics, group=ALLOWED):
    settings = Settings(
        kafka_bootstrap_servers="kafka:9092",
        kafka_security_protocol="SASL_SSL",
        kafka_sasl_username="worker",
        kafka_sasl_password=SECRET,
    )
    return judge_rights(settings, NAMES, EVERY | topics, group)


def without(operation):
    return Rights(0, ALL & ~(1 << OPERATIONS[operation]))


def test_a_principal_that_may_do_everything_is_fine():
    [result] = judged({})
    assert result.status == "ok"
    assert "transactional ids are not visible" in result.text


def test_a_worker_writes_neither_commands_nor_operations():
    assert statuses(judged({NAMES.commands: without("Write"), NAMES.operations: without("Write")})) == ["ok"]


def test_missing_operations_are_named_with_the_line_that_grants_them():
    results = judged({NAMES.events: without("Write"), NAMES.table: without("Write"), NAMES.waiting: without("Read")})
    assert [(result.status, result.text) for result in results] == [
        ("problem", f"User:worker lacks Read on {NAMES.waiting}; a worker needs it."),
        ("problem", f"User:worker lacks Write on {NAMES.events}, {NAMES.table}; a worker needs it."),
    ]
    assert results[1].fix == (
        "kafka-acls --bootstrap-server kafka:9092 --command-config client.properties --add"
        f" --allow-principal User:worker --operation Write --topic {NAMES.events} --topic {NAMES.table}"
    )


def test_the_principal_of_a_certificate_is_its_subject(tmp_path):
    certfile, keyfile = CertificateAuthority(tmp_path).issue("orders worker")
    settings = Settings(kafka_security_protocol="SSL", kafka_ssl_certfile=certfile, kafka_ssl_keyfile=keyfile)
    [result, *_] = judge_rights(settings, NAMES, EVERY | {NAMES.events: without("Write")}, ALLOWED)
    assert result.text.startswith("User:CN=orders worker lacks Write on ")
    assert " --allow-principal 'User:CN=orders worker' " in result.fix


def test_a_principal_whose_name_is_in_its_token_is_described(tmp_path):
    settings = Settings(
        kafka_security_protocol="SASL_SSL", kafka_sasl_mechanism="OAUTHBEARER", kafka_oauth_token_file=tmp_path
    )
    [result, *_] = judge_rights(settings, NAMES, EVERY | {NAMES.events: without("Write")}, ALLOWED)
    assert " --allow-principal 'User:<the subject of the access token>' " in result.fix


def test_a_topic_that_may_not_be_described_lacks_every_operation():
    refused = Rights(TopicAuthorizationFailedError.errno, NOT_REPORTED)
    results = judged({NAMES.commands: refused})
    assert [result.text.split()[2] for result in results] == ["Read", "Describe", "DescribeConfigs"]


def test_a_group_that_may_not_be_read_is_named():
    [result] = judged({}, Rights(GroupAuthorizationFailedError.errno, 0))
    assert result.text == "User:worker lacks Read on the group orders; a worker needs it."
    assert result.fix.endswith("--operation Read --group orders")


def test_brokers_that_do_not_report_rights_give_no_finding():
    assert statuses(judged({NAMES.events: Rights(0, NOT_REPORTED)})) == ["not_checked"]


# The group


def member(name, *held, client=f"{CLIENT_PREFIX}host-9100"):
    assignment = ConsumerProtocolMemberAssignment(0, [(NAMES.commands, list(held))], b"").encode()
    return Member(name, client, "/127.0.0.1", assignment)


STRANGERS = "Consumers of another program or version are in the group orders: reports at 127.0.0.1"
STRANGER = f"{STRANGERS} (holds orders.commands.v1-3)."
PARTITIONS = [TopicPartition(NAMES.commands, number) for number in range(4)]


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        pytest.param(
            Group("Stable", [member("a", 0, 1), member("b", 2, 3)]),
            [("ok", "All 4 partitions are held by 2 workers of the group orders.")],
            id="workers share the partitions",
        ),
        pytest.param(
            Group("Empty", []),
            [("problem", "No worker is in the group orders: commands are not decided.")],
            id="no worker runs",
        ),
        pytest.param(
            Group("Stable", [member("a", 0, 2)]),
            [("problem", "No member of the group orders holds partitions 1, 3.")],
            id="partitions are left over",
        ),
        pytest.param(
            Group("Stable", [member("a", 0, 1, 2), member("b", 3, client="reports")]),
            [
                ("problem", STRANGER),
            ],
            id="a stranger holds a partition",
        ),
        pytest.param(
            Group("PreparingRebalance", [member("a")]),
            [("warning", "The group orders rebalances (PreparingRebalance).")],
            id="a rebalance is no lack of members",
        ),
    ],
)
def test_the_members_of_the_group(group, expected):
    results = judge_group("orders", group, PARTITIONS)
    assert [(result.status, result.text) for result in results] == expected
    assert all(result.fix for result in results if result.status != "ok")


def test_commands_are_late_only_by_their_age():
    assert statuses(judge_lag({0: Backlog(5_000, 59.0)})) == ["ok"]
    [result] = judge_lag({0: Backlog(5_000, 59.0), 1: Backlog(1, 61.0)})
    assert result.status == "problem"
    assert result.text == "Partition 1 is 1 offset behind; its first undecided command is 61 s old."


def test_views_are_late_only_by_the_age_of_what_they_lack():
    events = TopicPartition(NAMES.events, 0)
    assert statuses(judge_backlogs({events: Backlog(9, 1.0)})) == ["ok"]
    assert statuses(judge_backlogs({events: Backlog(9, 61.0)})) == ["problem"]
    [result] = judge_backlogs({}, has_stopped=True)
    assert result.text == "The views have all records, apart from the stopped partitions."


# Transactions


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        pytest.param(End(9, 9), End(9, 9), {}, id="no transaction"),
        pytest.param(End(9, 7), End(9, 7), {("t", 0): 7}, id="it stays open"),
        pytest.param(End(9, 7), End(30, 7), {("t", 0): 7}, id="it stays open while others write"),
        pytest.param(End(9, 7), End(10, 10), {}, id="it has ended"),
        pytest.param(End(9, 7), End(30, 20), {}, id="another one is open now"),
        pytest.param(End(9, 9), End(30, 9), {}, id="it was opened since"),
    ],
)
def test_a_transaction_that_stays_open(before, now, expected):
    partition = TopicPartition("t", 0)
    assert still_open({partition: before}, {partition: now}) == expected


# The waiting room


def waiting(command, seconds_ago):
    return WaitingCommand(command, 1, NOW - timedelta(seconds=seconds_ago), None)


def test_waiting_commands_are_counted_with_their_users_the_longest_waiting_first():
    commands = [
        waiting(but(create, user_id="second"), 20),
        waiting(pay, 19),
        waiting(but(create, user_id="first"), 30),
        waiting(but(create, user_id="second"), 10),
    ]
    assert count_waiting(commands) == Waiting(4, NOW - timedelta(seconds=30), ("first", "second"))
    assert count_waiting([]) == Waiting()


def test_a_long_wait_is_a_warning_that_names_a_few_users():
    room = Waiting(9, NOW, ("a", "b", "c", "d"))
    assert judge_waiting(Settings(), room, 60.0, "").status == "ok"
    result = judge_waiting(Settings(), room, 61.0, " About a, it gives no answer: status 500.")
    assert result.status == "warning"
    assert result.text == (
        "9 commands of 4 users (a, b, c, …) wait for the User Service, the oldest for 61 s."
        " About a, it gives no answer: status 500."
    )
    assert "3600 s" in result.fix


# The User Service


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (UserServiceUnavailable("status 401", status=401), "problem", "refuses the credential with status 401"),
        (UserServiceUnavailable("status 403", status=403), "problem", "refuses the credential with status 403"),
        (UserServiceUnavailable("status 422", status=422, is_of_user=True), "ok", "for an unknown id with status 422"),
        (UserServiceUnavailable("no field", status=200, is_of_user=True), "problem", "not as expected: no field"),
        (UserServiceUnavailable("status 302", status=302, is_of_user=True), "problem", "not as expected: status 302"),
        (UserServiceUnavailable("status 500", status=500), "problem", "gives no answer: status 500"),
        (UserServiceUnavailable("no answer in time"), "problem", "gives no answer: no answer in time"),
    ],
)
def test_what_a_lookup_without_an_answer_means(error, status, text):
    result = judge_no_answer("http://users.test", error)
    assert result.status == status
    assert text in result.text
    assert bool(result.fix) == (status == "problem")


async def test_a_token_that_cannot_be_sent_is_a_finding_that_does_not_show_it():
    run = partial(check_user_service, Settings(user_service_token="verschlüsselt"))
    found = await examine(check("kafka", ok("Here.")), [Check("user_service", run, "Correct it.")])
    assert shown(found)[1][1] == "problem"
    assert "verschl" not in shown(found)[1][2]


# Readiness and clocks


def test_each_fault_of_a_process_is_a_result():
    address = "http://127.0.0.1:9100"
    parked = Readiness(ready=False, starting=False, faults=["partition 1 is parked: damaged", "no leader"])
    assert [(result.status, result.text) for result in judge_readiness(address, parked)] == [
        ("problem", f"The process at {address} is not ready: partition 1 is parked: damaged."),
        ("problem", f"The process at {address} is not ready: no leader."),
    ]
    assert statuses(judge_readiness(address, Readiness(ready=False, starting=True, faults=["joining"]))) == ["warning"]
    assert statuses(judge_readiness(address, Readiness(ready=True, starting=False, faults=[]))) == ["ok"]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:9100"),
        ("0.0.0.0", "http://127.0.0.1:9100"),
        ("::", "http://[::1]:9100"),
        ("worker-1", "http://worker-1:9100"),
    ],
)
def test_the_address_of_the_health_of_a_process(host, address):
    assert admin_address(Settings(host=host)) == address
    assert admin_address(Settings(host="192.0.2.1", admin_host=host)) == address


@pytest.mark.parametrize(
    ("served", "asked", "answered", "skew"),
    [
        pytest.param(100, 100.2, 100.3, 0.0, id="the same second"),
        pytest.param(100, 100.9, 101.4, 0.0, id="a Date has whole seconds"),
        pytest.param(100, 111.0, 111.2, 10.0, id="ahead"),
        pytest.param(100, 89.0, 90.0, -10.0, id="behind"),
    ],
)
def test_the_difference_from_the_date_of_a_response(served, asked, answered, skew):
    assert skew_from(served, asked, answered) == pytest.approx(skew)


def test_a_clock_is_a_finding_beyond_the_limit_of_the_workers():
    assert statuses(judge_clock({"the User Service": 60.0}, None, 60.0)) == ["ok"]
    [ahead, behind] = judge_clock({"the User Service": 61.0}, -75.0, 60.0)
    assert ahead.text == "The clock of this machine is 61 s ahead of that of the User Service."
    assert behind.text == "The clock of the worker's machine is 75 s behind Kafka's."
    assert statuses(judge_clock({}, None, 60.0)) == ["not_checked"]
    assert "0.1 s from Kafka" in judge_clock({}, 0.1, 60.0)[0].text


# The views


def test_views_that_are_built_or_stopped():
    assert statuses(judge_views(State([], [], {}))) == ["ok"]
    stopped = [(NAMES.events, 1, 7, "version 3 follows version 1")]
    results = judge_views(State(["the views are being built"], stopped, {}))
    assert [(result.status, result.text) for result in results] == [
        ("warning", "The views are being built."),
        (
            "problem",
            f"The views of partition 1 of {NAMES.events} are stopped at offset 7: version 3 follows version 1.",
        ),
    ]


async def test_without_a_database_the_views_are_not_checked(tmp_path):
    assert statuses(await check_views(Settings(data_dir=tmp_path))) == ["not_checked"]
    run = partial(check_views, Settings(database_url=f"sqlite:///{tmp_path}/other.db"))
    found = await examine(check("kafka", ok("Here.")), [Check("views", run, "Start it.")])
    assert shown(found)[1][1:3] == ("problem", "There are no views here yet: no projector has created them.")
    assert not list(tmp_path.iterdir()), "nothing is created"


async def test_a_database_that_accepts_connections_and_never_answers_is_a_finding_of_one_check():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        settings = Settings(database_url=f"postgresql://orders:{SECRET}@{host}/orders")
        checks = [
            Check(name, partial(run, settings, within_s=0.2), "Start it.")
            for name, run in (("views", check_views), ("projector", check_projector))
        ]
        found = await examine(check("kafka", ok("Here.")), checks)
    assert shown(found)[1:] == [
        ("views", "problem", "The database of ORDERS_DATABASE_URL does not answer within 0.2 s.", "Start it."),
        ("projector", "not_checked", "The views cannot be read.", "Fix what `views` reports first."),
    ]


# A local Kafka


@pytest.mark.parametrize(
    ("choice", "text"),
    [(Embedded("java", "mvn"), "Java 17"), (Docker("docker"), "The Docker engine")],
)
async def test_the_program_that_runs_a_local_kafka(choice, text):
    [result] = await check_programs(Settings(kafka_bootstrap_servers="kafka:9092"), lambda _: choice)
    assert result.status == "ok"
    assert text in result.text


async def test_without_java_and_docker_the_finding_says_what_to_install():
    choose = partial(choose_kafka, which=lambda _: None)
    [result] = await check_programs(Settings(kafka_bootstrap_servers="kafka:9092"), choose)
    assert (result.status, result.fix) == ("problem", "Install Java 17 and Maven, or start Docker.")
    assert "install Java 17 or newer" in result.text
