"""`doctor` on a real Kafka: nothing is wrong with a running service, and each damage is found by its check."""

import asyncio
import re
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)
from pydantic import SecretStr

from chaos.faults.strangers import visit_group
from order_service.local.broker import free_port
from order_service.operations.doctor.checks.group import check_lag
from order_service.operations.doctor.checks.views import check_projector
from order_service.operations.doctor.checks.waiting import check_waiting
from order_service.users.stub import Mode
from order_service.worker.membership import LaneAssignor
from tests.support.claiming import open_transaction
from tests.support.command_line import CommandLine
from tests.support.deciding import decide
from tests.support.kafka import WITH_ACLS, running_broker
from tests.support.samples import but, create
from tests.support.service import Service, StubThread, histories, until
from tests.support.shop import running_shop
from tests.support.users import hanging

PAGE = Path(__file__).parents[3] / "docs" / "operations" / "doctor.md"


@pytest.fixture(scope="module")
def users():
    """Provide a User Service that these tests may break."""
    with StubThread() as stub:
        yield stub


@pytest.fixture(scope="module")
def shop(bootstrap_servers, tmp_path_factory, users):
    """Provide a running service, which has decided some commands."""
    with running_shop(bootstrap_servers, tmp_path_factory.mktemp("doctor"), users) as made:
        commands = histories(3)
        made.service.send(commands)
        made.service.wait_outcomes(len(commands))
        yield made


def environment(shop, **changes):
    """Return the settings of the worker of a shop, with changes."""
    return shop.service.environment | {"ORDERS_ADMIN_PORT": str(shop.worker.admin_port)} | changes


def examined(shop, *, code, **changes):
    [document] = CommandLine(environment(shop, **changes)).json("doctor", code=code)
    assert document["ok"] == (code == 0)
    return document["results"]


def findings(results):
    return [
        (each["check"], each["status"], each["text"]) for each in results if each["status"] in {"warning", "problem"}
    ]


def of_check(results, name):
    return [(each["status"], each["text"]) for each in results if each["check"] == name]


def test_a_running_service_has_no_findings(shop):
    until(shop.projector.is_ready, "the views are built")
    results = examined(shop, code=0)
    assert findings(results) == []
    not_checked = {each["check"] for each in results if each["status"] == "not_checked"}
    assert not_checked == {"schema_registry", "token_keys"}
    [(_, kafka)] = of_check(results, "kafka")
    assert re.fullmatch(r"1 broker at 127\.0\.0\.1:\d+, Kafka 4\.2\.", kafka)
    [(_, clock)] = of_check(results, "clock")
    assert "by 0 s from the User Service" in clock
    assert "from Kafka, as a worker measured" in clock


def test_a_wrong_topic_setting_has_the_line_that_corrects_it(shop):
    topic = shop.service.names.events
    shop.service.configure(topic, retention_ms="1000")
    try:
        [result] = [each for each in examined(shop, code=1) if each["status"] == "problem"]
    finally:
        shop.service.configure(topic, retention_ms="-1")
    assert (result["check"], result["text"]) == ("topics", f"The topic {topic} has retention.ms=1000, expected -1.")
    assert result["fix"].startswith("kafka-configs --bootstrap-server ")
    assert result["fix"].endswith(f"--entity-name {topic} --add-config retention.ms=-1")


def test_a_stranger_in_the_group_is_named_with_what_it_holds(bootstrap_servers, tmp_path, users):
    with Service(bootstrap_servers, tmp_path, users) as service:
        found = []

        def look():
            settings = service.environment | {"ORDERS_ADMIN_PORT": str(free_port())}
            found.extend(CommandLine(settings).json("doctor", code=1)[0]["results"])

        held = visit_group(service.bootstrap_servers, service.group_id, service.names.commands, look, [LaneAssignor])
        assert len(held) == 4
        [(status, text)] = of_check(found, "group")
        assert status == "problem"
        assert f"in the group {service.group_id}: stranger at 127.0.0.1 (holds {service.names.commands}-0, " in text


def test_a_group_without_workers_is_a_problem(bootstrap_servers, tmp_path, users):
    with Service(bootstrap_servers, tmp_path, users) as service:
        [document] = CommandLine(service.environment | {"ORDERS_ADMIN_PORT": str(free_port())}).json("doctor", code=1)
        assert findings(document["results"]) == [
            ("group", "problem", f"No worker is in the group {service.group_id}: commands are not decided.")
        ]


def test_an_open_transaction_is_found_with_partition_and_offset(shop):
    topic, partition = shop.service.names.events, 2
    offset = shop.service.end_of(topic, partition)
    with open_transaction(shop.service, topic, partition) as stranger:
        results = examined(shop, code=1)
        stranger.abort_transaction(30)
    where = f"A transaction is open on partition {partition} of {topic} from offset {offset}"
    assert findings(results) == [("transactions", "problem", f"{where}; what follows it waits.")]


def test_missing_topics_are_the_findings_of_one_check(shop):
    results = examined(shop, code=1, ORDERS_TOPIC_PREFIX="missing.")
    assert {(name, status) for name, status, _ in findings(results)} == {("topics", "problem")}
    assert len(findings(results)) == 7
    not_checked = {each["check"] for each in results if each["status"] == "not_checked"}
    assert {"group", "lag", "transactions", "waiting_room", "broker_clock", "projector"} <= not_checked


@contextmanager
def answering(users, mode):
    users.stub.mode = mode
    try:
        yield
    finally:
        users.stub.mode = Mode.OK


@pytest.mark.parametrize(
    ("mode", "text"),
    [(Mode.HANG, "no answer within 2 s"), (Mode.ERROR, "status 500"), (Mode.UNAUTHORIZED, "with status 401")],
)
def test_a_user_service_that_is_away_or_refuses_is_found(shop, users, mode, text):
    with answering(users, mode):
        [(name, status, found)] = findings(examined(shop, code=1))
    assert (name, status) == ("user_service", "problem")
    assert text in found


def test_a_registry_that_is_away_is_found(shop):
    url = f"http://127.0.0.1:{free_port()}"
    results = examined(shop, code=1, SCHEMA_REGISTRY_URL=url)
    assert [(name, status) for name, status, _ in findings(results)] == [("schema_registry", "problem")]
    assert f"No schema registry answers at {url}" in of_check(results, "schema_registry")[0][1]


def test_commands_that_are_not_decided_are_late_after_a_minute(bootstrap_servers, tmp_path, users):
    with Service(bootstrap_servers, tmp_path, users) as service:
        decide(service, histories(2))
        service.send([but(create, order_id="order-late", command_id="create-late")])
        partition = service.partition_of("order-late")
        [result] = asyncio.run(check_lag(service.settings()))
        assert result.status == "ok"
        [result] = asyncio.run(check_lag(service.settings(), now=lambda: time.time() + 120))
        assert result.status == "problem"
        assert result.text.startswith(f"Partition {partition} is 1 offset behind; its first undecided command is 1")


def test_decided_commands_are_never_late(shop):
    [result] = asyncio.run(check_lag(shop.service.settings(), now=lambda: time.time() + 3600))
    assert (result.status, result.text) == ("ok", "All commands are decided.")


def test_views_that_lack_events_are_late_after_a_minute(bootstrap_servers, tmp_path, users):
    with running_shop(bootstrap_servers, tmp_path, users) as made:
        url = made.service.environment["ORDERS_DATABASE_URL"]
        settings = made.service.settings().model_copy(update={"database_url": SecretStr(url)})
        made.service.send(histories(2))
        made.service.wait_outcomes(10)
        late = lambda: time.time() + 3600  # noqa: E731
        until(lambda: asyncio.run(check_projector(settings, now=late))[0].status == "ok", "the views have all events")
        made.projector.end()
        made.service.send([but(create, order_id="order-new", command_id="create-new")])
        made.service.wait_outcomes(11)
        [result] = asyncio.run(check_projector(settings, now=late))
        assert result.status == "problem"
        assert asyncio.run(check_projector(settings))[0].status == "ok"


def test_commands_that_wait_are_counted_with_what_the_user_service_answers(shop, users):
    waiting = [
        but(create, order_id=f"order-w{n}", command_id=f"create-w{n}", actor="service:shop", user_id="late")
        for n in range(2)
    ]
    with hanging(users):
        shop.service.send(waiting)
        until(lambda: len(shop.service.waiting()) == 2, "both wait")
        settings = shop.service.settings().model_copy(update={"user_service_url": users.url})
        [soon] = asyncio.run(check_waiting(settings))
        assert soon.status == "ok"
        assert soon.text.startswith("2 commands of 1 user (late) wait for the User Service, the oldest for ")
        [long] = asyncio.run(check_waiting(settings, now=lambda: time.time() + 120))
        assert long.status == "warning"
        assert "About late, it gives no answer: no answer within 2 s." in long.text
        with StubThread() as other:
            answering_now = settings.model_copy(update={"user_service_url": other.url})
            [answered] = asyncio.run(check_waiting(answering_now, now=lambda: time.time() + 120))
        assert "About late, it answers now: active." in answered.text
    until(lambda: not shop.service.waiting(), "both are decided")
    assert asyncio.run(check_waiting(settings))[0].text == "No command waits."


def test_a_principal_with_few_rights_gets_lines_that_name_them(tmp_path, users):
    anyone = (ResourcePatternType.LITERAL, "User:*", "*")
    with (
        running_broker(tmp_path / "kafka", WITH_ACLS) as broker,
        Service(broker.bootstrap_servers, tmp_path, users, keep_topics=True) as service,
    ):
        names = service.names
        denied = [
            (ResourceType.TOPIC, names.rejections, *anyone, AclOperation.WRITE, AclPermissionType.DENY),
            (ResourceType.TOPIC, names.rejections, *anyone, AclOperation.ALL, AclPermissionType.ALLOW),
            (ResourceType.TOPIC, names.waiting, *anyone, AclOperation.DESCRIBE, AclPermissionType.DENY),
            (ResourceType.TOPIC, names.waiting, *anyone, AclOperation.ALL, AclPermissionType.ALLOW),
            (ResourceType.GROUP, service.group_id, *anyone, AclOperation.ALL, AclPermissionType.DENY),
        ]
        for future in service.kafka.create_acls([AclBinding(*acl) for acl in denied]).values():
            future.result(30)
        settings = service.environment | {"ORDERS_ADMIN_PORT": str(free_port())}
        [document] = CommandLine(settings).json("doctor", code=1)
        results = document["results"]
    anonymous = "User:ANONYMOUS lacks"
    assert findings(results) == [
        ("acls", "problem", f"{anonymous} Read on {names.waiting}; a worker needs it."),
        ("acls", "problem", f"{anonymous} Write on {names.rejections}, {names.waiting}; a worker needs it."),
        ("acls", "problem", f"{anonymous} Describe on {names.waiting}; a worker needs it."),
        ("acls", "problem", f"{anonymous} DescribeConfigs on {names.waiting}; a worker needs it."),
        ("acls", "problem", f"{anonymous} Read on the group {service.group_id}; a worker needs it."),
    ]
    fixes = [each["fix"] for each in results if each["check"] == "acls"]
    assert fixes[1].endswith(
        f"--allow-principal User:ANONYMOUS --operation Write --topic {names.rejections} --topic {names.waiting}"
    )
    not_seen = {each["check"]: each["text"] for each in results if each["status"] == "not_checked"}
    assert {"topics", "group", "lag", "transactions", "waiting_room", "broker_clock"} <= not_seen.keys()
    assert "(TopicAuthorizationFailedError)" in not_seen["topics"]
    assert "(GroupAuthorizationFailedError)" in not_seen["group"]
    assert names.waiting in not_seen["waiting_room"]


def test_the_page_shows_what_doctor_prints(shop):
    """The damaged service of the page: a topic setting, and a User Service that refuses the credential."""
    page = re.findall(r"```console\n\$ order-service doctor\n(.+?)```", PAGE.read_text(), re.DOTALL)
    assert len(page) == 2
    service = shop.service
    fine = CommandLine(environment(shop))("doctor").stdout
    service.configure(service.names.events, retention_ms="604800000")
    try:
        with answering(shop.service.users, Mode.UNAUTHORIZED):
            damaged = CommandLine(environment(shop))("doctor", code=1).stdout
    finally:
        service.configure(service.names.events, retention_ms="-1")
    assert [normal(fine, shop), normal(damaged, shop)] == [normal(text, shop) for text in page]


def normal(text, shop):
    """Return the text with the addresses, names and numbers of the page, and one space between columns."""
    prefix = shop.service.environment["ORDERS_TOPIC_PREFIX"]
    text = text.replace(shop.service.group_id, "orders").replace(prefix, "")
    text = text.replace(f"127.0.0.1:{shop.worker.admin_port}", "127.0.0.1:9100")
    text = text.replace(shop.service.users.url, "http://127.0.0.1:8090").replace(
        shop.service.bootstrap_servers, "127.0.0.1:9092"
    )
    text = re.sub(r"by \d\.\d s from Kafka", "by 0.0 s from Kafka", text)
    text = re.sub(r"in \d+\.\d s", "in 0.7 s", text)
    return re.sub(r" +", " ", text)
