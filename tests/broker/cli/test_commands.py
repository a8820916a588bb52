"""The six commands, `tail` and `timeline`, on a real Kafka with a worker."""

import json
import signal
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from order_service.kafka.topics import topic_configs, topic_names
from order_service.users.stub import Mode
from order_service.wire import avro
from tests.support.command_line import CommandLine
from tests.support.samples import but, order_created
from tests.support.service import PATIENCE_S, until

PAY = ["--payment-id", "payment-1", "--amount", "2500", "--currency", "EUR"]


@pytest.fixture
def order_id():
    return f"order-{uuid4().hex[:8]}"


@pytest.fixture
def created(cli, order_id):
    create(cli, order_id)
    return order_id


def create(cli, order_id, *more, user="dana", code=0):
    [told] = cli.json(
        "create", order_id, "--user", user, "--currency", "EUR", "--line", "mug-blue:2:1250", *more, code=code
    )
    return told


def forge(service, order_id):
    """Put a second event behind the first that does not name its digest."""
    forged = avro.encode_event(but(order_created, order_id=order_id, version=2, previous_digest=bytes(16)))
    service.producer.produce(service.names.events, key=order_id, value=forged)
    assert service.producer.flush(30) == 0


def test_an_order_goes_its_way_and_the_timeline_tells_it(cli, created):
    cli("amend", created, "--metadata", "channel=phone")
    cli("ship", created, "--carrier", "DHL", "--tracking-number", "JD0146", code=1)
    cli("pay", created, *PAY)
    cli("ship", created, "--carrier", "DHL", "--tracking-number", "JD0146", "--avro")
    cli("deliver", created)
    history = cli.json("timeline", created)
    assert [(step["type"], step["version"]) for step in history] == [
        ("OrderCreated", 1),
        ("OrderAmended", 2),
        ("Rejection", 2),
        ("OrderPaid", 3),
        ("OrderShipped", 4),
        ("OrderDelivered", 5),
    ]
    said = cli("timeline", created).stdout
    assert "refused ShipOrder  not_paid: The order is not paid yet." in said
    assert said.endswith(f"{created} is delivered, version 5; the digest chain is intact\n")


def test_ids_of_other_systems_go_all_the_way(cli, service, order_id):
    user, actor = "gid://shopify/Customer/7 (50%)", ("--actor", "service:system:serviceaccount:shop:web")
    line, visit = ("--line", "MUSIC/CD:1234578/{Größe-L}:2:1250:At 10:30"), ("--correlation-id", " e\u0301 ")
    cli("create", order_id, "--user", user, "--currency", "EUR", *line, "--actor", f"user:{user}", *visit)
    cli("pay", order_id, "--payment-id", "cGF5XzEyMw==", *PAY[2:], *actor, *visit)
    cli("ship", order_id, "--carrier", "Größe & Söhne", "--tracking-number", "٣|4", *actor, *visit, "--avro")
    created, paid, shipped = cli.json("timeline", order_id)
    assert created["actor"] == f"user:{created['user_id']}" == f"user:{user}"
    assert (created["lines"][0]["sku"], created["lines"][0]["name"]) == ("MUSIC/CD:1234578/{Größe-L}", "At 10:30")
    assert (paid["payment_id"], paid["actor"]) == ("cGF5XzEyMw==", actor[1])
    assert (shipped["carrier"], shipped["tracking_number"]) == ("Größe & Söhne", "٣|4")
    assert {step["correlation_id"] for step in (created, paid, shipped)} == {visit[1]}
    assert user in service.users.stub.requests
    assert cli.json("why", "٣|4", "--all-partitions")[0]["orders"][0]["order_id"] == order_id


BODY = '{"user_id": "dana", "currency": "EUR", "lines": [{"sku": "a", "quantity": 1, "unit_price": 5}]}'


def test_standard_input_makes_an_order(cli, order_id):
    assert "total 5 EUR" in cli("create", order_id, "--body", "-", stdin=BODY).stdout


def test_a_file_makes_an_order_and_it_is_cancelled(cli, order_id, tmp_path):
    file = tmp_path / "order.json"
    file.write_text(BODY)
    [told] = cli.json("create", order_id, "--body", file, "--tax", "2", "--actor", "user:dana")
    assert (told["event"]["total"], told["event"]["actor"]) == (7, "user:dana")
    assert "accepted: OrderCancelled, version 2" in cli("cancel", order_id, "--reason", "other").stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        pytest.param(["pay", *PAY[:2], "--amount", "1", "--currency", "EUR"], "payment_mismatch", id="a cent short"),
        pytest.param(["deliver"], "not_paid", id="too soon"),
        pytest.param(["deliver", "--expected-version", "7"], "version_conflict", id="another version"),
        pytest.param(["deliver", "--actor", "user:dana"], "not_allowed", id="not theirs to do"),
        pytest.param(["deliver", "--decide-by", "2020-01-01T00:00:00Z"], "deadline_passed", id="too late"),
        pytest.param(["cancel", "--reason", "whim"], "invalid_order", id="a value out of range"),
    ],
)
def test_a_refusal_ends_with_1_and_its_reason(cli, created, arguments, reason):
    command, *options = arguments
    said = cli(command, created, *options, code=1).stdout
    assert said.startswith(f"refused: {reason}: ")
    assert len(said.splitlines()) == 1


def test_an_unknown_user_is_refused(cli, order_id):
    assert create(cli, order_id, user="unknown-1", code=1)["rejection"]["reason"] == "user_not_found"


def test_a_command_sent_again_is_told_its_first_answer(cli, created):
    first, again = (cli.json("pay", created, *PAY, "--command-id", "pay-1")[0] for _ in range(2))
    assert (first["outcome"], first["repeated"]) == ("accepted", False)
    assert (again["outcome"], again["repeated"], again["event"]) == ("accepted", True, first["event"])
    assert again["offset"] > first["offset"]


def test_a_refused_command_sent_again_is_told_its_first_answer(cli, created):
    first, again = (cli.json("deliver", created, "--command-id", "deliver-1", code=1)[0] for _ in range(2))
    assert (first["repeated"], again["repeated"]) == (False, True)
    assert again["rejection"] == first["rejection"]


def test_a_refusal_that_no_order_remembers_is_a_new_one_each_time(cli, order_id):
    first, again = (cli.json("deliver", order_id, "--command-id", "deliver-1", code=1)[0] for _ in range(2))
    assert (first["repeated"], again["repeated"]) == (False, False)
    assert again["rejection"]["offset"] > first["rejection"]["offset"]


def test_nobody_waits_with_wait_0(cli, created):
    assert cli("pay", created, *PAY, "--wait", "0").stdout.startswith("sent: command ")
    until(lambda: len(cli.json("timeline", created)) == 2, "the payment is decided all the same")


def test_a_create_that_waits_for_the_user_service_says_so(cli, service, order_id):
    service.users.stub.mode = Mode.HANG
    try:
        assert create(cli, order_id, "--wait", "1", user="new-1", code=1)["outcome"] == "waiting"
    finally:
        service.users.stub.mode = Mode.OK


def test_an_order_that_never_was_has_no_timeline(cli, order_id):
    assert cli("timeline", order_id, code=1).stderr == f"order-service: Kafka has no records of an order {order_id}\n"
    cli("deliver", order_id, code=1)
    assert "only refused commands" in cli("timeline", order_id, code=1).stderr


def test_a_time_before_an_order_is_told_from_an_order_that_never_was(cli, order_id):
    before = datetime.now(UTC).isoformat()
    cli("deliver", order_id, code=1)
    until(lambda: cli.json("timeline", order_id, code=1), "the refusal is there")
    between = datetime.now(UTC).isoformat()
    create(cli, order_id)
    said = cli("timeline", order_id, "--at", before, code=1).stderr
    assert f"has no records of {order_id} at that time: the first is from" in said
    said = cli("timeline", order_id, "--at", between, code=1).stderr
    assert f"there is no order {order_id} at that time, only refused commands" in said


def test_a_broken_chain_is_said_loudly(cli, service, created):
    forge(service, created)
    result = cli("timeline", created, code=1)
    assert f"THE HISTORY OF {created} IS BROKEN" in result.stderr


@contextmanager
def reading_along(service, directory, *arguments):
    """Run a command that goes on; give what it prints and what it complains of, and interrupt it afterwards."""
    shown, complaints = directory / "out", directory / "err"
    command = [sys.executable, "-m", "order_service.cli", *arguments]
    with shown.open("wb") as out, complaints.open("wb") as err:
        process = subprocess.Popen(command, env=service.environment, stdout=out, stderr=err)
    try:
        yield shown.read_text, complaints.read_text
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    finally:
        process.kill()
        process.wait()


def test_tail_shows_events_as_they_come(cli, service, created, tmp_path):
    options = ["--from-beginning", "--rejections", "--order", created]
    with reading_along(service, tmp_path, "tail", *options) as (shown, complaints):
        until(lambda: "OrderCreated" in shown(), "the past is shown")
        cli("deliver", created, code=1)
        until(lambda: "refused DeliverOrder" in shown(), "a refusal is shown")
        cli("pay", created, *PAY)
        until(lambda: "OrderPaid" in shown(), "a payment is shown")
    assert (len(shown().splitlines()), complaints()) == (3, "")


def test_a_timeline_can_be_followed_before_there_is_an_order(cli, service, order_id, tmp_path):
    with reading_along(service, tmp_path, "timeline", order_id, "--follow") as (shown, complaints):
        until(lambda: f"Kafka has no records of an order {order_id}" in complaints(), "it says that nothing is there")
        create(cli, order_id)
        until(lambda: "OrderCreated" in shown(), "the order is shown")
    assert len(complaints().splitlines()) == 1


def test_a_timeline_can_be_followed_where_all_was_refused(cli, service, order_id, tmp_path):
    cli("deliver", order_id, code=1)
    with reading_along(service, tmp_path, "timeline", order_id, "--follow") as (shown, complaints):
        until(lambda: "only refused commands" in complaints(), "it says that there is no order")
        create(cli, order_id)
        cli("amend", order_id, "--metadata", "channel=phone")
        until(lambda: "metadata {} -> {channel=phone}" in shown(), "what an event changed is shown")
    assert len(complaints().splitlines()) == 1


def test_a_chain_that_breaks_while_it_is_followed_is_said_loudly(cli, service, created, tmp_path):
    with reading_along(service, tmp_path, "timeline", created, "--follow", "--json") as (shown, complaints):
        until(lambda: "OrderCreated" in shown(), "the past is shown")
        forge(service, created)
        until(lambda: f"THE HISTORY OF {created} IS BROKEN" in complaints(), "the break is said")
        cli("deliver", created, code=1)
        until(lambda: "Rejection" in shown(), "it goes on")
    assert ["fault" in json.loads(line) for line in shown().splitlines()] == [False, True, False]


def test_topics_are_created_once_and_checked(service):
    prefix = f"t{uuid4().hex[:8]}."
    cli = CommandLine(service.environment | {"ORDERS_TOPIC_PREFIX": prefix, "ORDERS_PARTITIONS": "1"})
    cli("topics", "check", code=13)
    names = set(topic_configs(topic_names(prefix)))
    for state in ("created", "exists"):
        told = cli.json("topics", "create")
        assert {(topic["topic"], topic["state"]) for topic in told} == {(name, state) for name in names}
    assert cli.json("topics", "check") == [{"ok": True, "faults": [], "fix": [], "risks": []}]
    other = CommandLine(cli.environment | {"ORDERS_PARTITIONS": "2"})
    assert "ORDERS_PARTITIONS says 2" in other("topics", "check", code=13).stderr


def test_without_topics_there_is_one_line(service):
    cli = CommandLine(service.environment | {"ORDERS_TOPIC_PREFIX": "nowhere."})
    assert "run `order-service topics create`" in cli("deliver", "order-1", code=1).stderr


def test_without_a_worker_a_command_stays_undecided(service):
    prefix = f"t{uuid4().hex[:8]}."
    cli = CommandLine(service.environment | {"ORDERS_TOPIC_PREFIX": prefix, "ORDERS_PARTITIONS": "1"})
    cli("topics", "create")
    said = cli("deliver", "order-1", "--wait", "0.5", code=1).stdout
    assert said.startswith("undecided: no outcome within 0.5 s. The command is in Kafka and will be decided.")
