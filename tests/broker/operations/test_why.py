"""`why` on a real Kafka: it finds an order by every kind of id, on the command line and over HTTP."""

import re
import signal
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import pytest
from confluent_kafka import OFFSET_END, TopicPartition

from order_service.domain.identity import keyed_id
from order_service.domain.messages import Command
from order_service.web.access.caller import Scope
from tests.support import tokens
from tests.support.command_line import CommandLine
from tests.support.deciding import end
from tests.support.samples import DANA, SHOP, but, cancel, create, deliver, pay, ship
from tests.support.service import Service, StubThread, until
from tests.support.shop import PAYMENT, Http
from tests.support.users import hanging

PAGE = Path(__file__).parents[3] / "docs" / "operations" / "why.md"
KEY = "basket-1"
BY_KEY = keyed_id(DANA, "order", KEY)
TRACKING = "JD 0146/\u00e9\u202e%2F"

create_1 = but(create, order_id="order-1", actor=SHOP, discount=0, tax=0, shipping=0)
create_2 = but(create_1, order_id="order-2", command_id="create-2")
pay_1 = but(pay, order_id="order-1", amount=3400, payment_id="order-2")
DECIDED = [
    create_1,
    create_2,
    but(create, order_id=BY_KEY, command_id=keyed_id(DANA, "command", KEY)),
    pay_1,
    pay_1,
    but(ship, order_id="order-1", tracking_number=TRACKING),
    but(cancel, order_id="order-1", actor=SHOP),
    ("order-1", b"no command"),
    (None, b"no command either"),
]
WAITING = but(create_1, order_id="order-3", command_id="create-3", user_id="late")
UNDECIDED: list[Command] = [
    but(cancel, order_id="order-2", command_id="cancel-2", actor=SHOP),
    but(deliver, order_id="order-1"),
]


def take(service, commands):
    """Send commands, and wait until a worker has taken all of them."""
    before = sum(position.next_offset for position in service.positions().values())
    service.send(commands)
    until(
        lambda: sum(position.next_offset for position in service.positions().values()) == before + len(commands),
        "all commands are taken",
    )
    service.wait_visible()


@pytest.fixture(scope="module")
def service(bootstrap_servers, tmp_path_factory):
    """Provide topics with every kind of outcome, a waiting command and two undecided ones, and no worker."""
    with StubThread() as users, Service(bootstrap_servers, tmp_path_factory.mktemp("why"), users) as made:
        worker = made.start_worker().wait_lanes(4)
        take(made, DECIDED)
        with hanging(users):
            take(made, [WAITING])
            worker.send(signal.SIGKILL)
            worker.wait_ended()
        made.send(UNDECIDED)
        yield made


def why(service, text, *options, code=0):
    [document] = CommandLine(service.environment).json("why", text, *options, code=code)
    return document


def order_of(document, order_id="order-1"):
    [order] = [order for order in document["orders"] if order["order_id"] == order_id]
    return order


def places(service, topic, order_id):
    """Return the partition and the offsets of the records of an order."""
    records = [record for record in service.read(topic) if record.key() == order_id.encode()]
    return service.partition_of(order_id), [record.offset() for record in records]


def matches(document):
    return {(match["kind"], match["order_id"]) for match in document["matches"]}


def test_an_order_is_shown_with_every_record_of_it(service):
    order = order_of(why(service, "order-1"))
    assert (order["status"], order["version"], order["table_version"]) == ("shipped", 3, 3)
    assert [story["state"] for story in order["commands"]] == [
        "accepted",
        "accepted",
        "repeat",
        "accepted",
        "rejected",
        "dead_letter",
        "undecided",
    ]
    partition, offsets = places(service, service.names.commands, "order-1")
    commands = [story["command"] for story in order["commands"]]
    assert [(command["partition"], command["offset"]) for command in commands] == [(partition, at) for at in offsets]
    decided = [story["outcome"] for story in order["commands"] if story["outcome"] and story["state"] != "repeat"]
    for topic in (service.names.events, service.names.rejections, service.names.dead_letters):
        outcomes = [outcome for outcome in decided if outcome["topic"] == topic]
        assert (partition, [outcome["offset"] for outcome in outcomes]) == places(service, topic, "order-1")
    assert [outcome["reason"] for outcome in decided][-2:] == ["already_shipped", "unknown_format"]
    repeat = order["commands"][2]
    assert (repeat["repeat_of"], repeat["outcome"]["version"]) == (offsets[1], 2)
    assert {story["is_before_position"] for story in order["commands"][:-1]} == {True}


def test_an_undecided_command_has_the_position_and_the_lag_of_its_partition(service):
    order = order_of(why(service, "deliver-1"))
    undecided, lane = order["commands"][-1], order["lane"]
    position = service.positions()[lane["partition"]].resume_at
    assert (undecided["state"], undecided["is_before_position"]) == ("undecided", False)
    assert undecided["offsets_before"] == undecided["command"]["offset"] - position
    assert (lane["position"], lane["lag"]) == (position, lane["end"] - position)
    [table] = [
        each
        for each in service.read(service.names.table)
        if each.offset() == lane["position_offset"] and each.partition() == lane["partition"]
    ]
    assert table.key() == b"\0position"


def test_a_waiting_command_has_the_user_and_the_time(service):
    order = order_of(why(service, "create-3"), "order-3")
    [story] = order["commands"]
    assert (story["state"], story["waiting"]["user_id"], story["outcome"]) == ("waiting", "late", None)
    assert story["waiting"]["topic"] == service.names.waiting
    assert story["waiting"]["since"] >= story["command"]["at"][:19]
    said = CommandLine(service.environment)("why", "create-3").stdout
    assert "waits      for the User Service: order-service users check late\n" in said


@pytest.mark.parametrize(
    ("text", "options", "found"),
    [
        ("order-1", (), {("order_id", "order-1")}),
        ("pay-1", (), {("command_id", "order-1")}),
        ("order-2", (), {("order_id", "order-2")}),
        ("order-2", ("--all-partitions",), {("order_id", "order-2"), ("payment_id", "order-1")}),
        (TRACKING, (), {("tracking_number", "order-1")}),
        (KEY, (), {("idempotency_key", BY_KEY)}),
    ],
)
def test_an_order_is_found_by_every_kind_of_id(service, text, options, found):
    document = why(service, text, *options)
    assert matches(document) == found
    assert {order["order_id"] for order in document["orders"]} == {order_id for _, order_id in found}
    if text.startswith("order-"):
        assert document["all_partitions"] == bool(options), "an order is in one partition"


def test_a_record_is_found_by_its_partition_and_offset(service):
    for order_id in ("order-1", "order-2", BY_KEY, "order-3"):
        partition, offsets = places(service, service.names.commands, order_id)
        for offset in offsets:
            assert matches(why(service, f"{partition}:{offset}")) == {("command_offset", order_id)}
    [letter] = [each for each in service.read(service.names.commands) if each.key() is None]
    order = order_of(why(service, f"{letter.partition()}:{letter.offset()}"), "")
    [story] = order["commands"]
    assert (story["state"], story["outcome"]["reason"]) == ("dead_letter", "unknown_format")


def test_what_is_unknown_is_one_line_for_each_topic_and_1(service):
    document = why(service, "order-9", code=1)
    assert (document["is_known"], document["all_partitions"]) == (False, True)
    names = service.names
    topics = (names.commands, names.waiting, names.events, names.rejections, names.dead_letters)
    searched = {topic["topic"]: (topic["partitions"], topic["since"]) for topic in document["searched"]}
    assert searched == dict.fromkeys(topics, (4, None))
    lines = CommandLine(service.environment)("why", "order-9", code=1).stdout.splitlines()
    assert lines[0] == "Nothing is known about order-9. These topics were searched:"
    assert lines[1] == f"  {service.names.commands}: 4 partitions; no record is deleted"


def test_no_control_character_of_an_id_reaches_a_terminal(service):
    result = CommandLine(service.environment)("why", "\x1b[31mred\u202e", code=1)
    assert result.stdout.startswith("Nothing is known about \\x1b[31mred\\u202e.")
    assert "\u202e" not in CommandLine(service.environment)("why", TRACKING).stdout


@pytest.mark.parametrize("text", ["", "x" * 256])
def test_a_text_that_no_id_can_be_is_a_wrong_call(service, text):
    assert "must be an id" in CommandLine(service.environment)("why", text, code=2).stderr


def test_a_missing_topic_is_one_line_and_13(service):
    missing = CommandLine(service.environment | {"ORDERS_TOPIC_PREFIX": "none."})("why", "order-1", code=13)
    assert "a topic is missing" in missing.stderr
    assert missing.stderr.count("\n") == 1


def test_without_kafka_it_is_one_line_and_4(service):
    away = CommandLine(service.environment | {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"})("why", "order-1", code=4)
    assert away.stderr.startswith("order-service: no Kafka answers at 127.0.0.1:1")


def test_deleted_commands_are_known_by_their_outcomes(bootstrap_servers, tmp_path, users):
    with Service(bootstrap_servers, tmp_path, users) as made:
        worker = made.start_worker().wait_lanes(4)
        take(made, [create_1, but(pay_1, payment_id="payment-1"), but(ship, order_id="order-2")])
        end(worker)
        partition, [first, _] = places(made, made.names.commands, "order-1")
        ends = [TopicPartition(made.names.commands, number, OFFSET_END) for number in range(4)]
        for future in made.kafka.delete_records(ends).values():
            future.result(30)
        for text in ("order-1", "payment-1", f"{partition}:{first}", "pay-1"):
            order = order_of(why(made, text))
            assert [(story["state"], story["command"]) for story in order["commands"]] == [("accepted", None)] * 2
            assert order["lane"]["start"] == order["lane"]["end"] > first
        text = CommandLine(made.environment)("why", "payment-1").stdout
        assert f"version 1; command {first} is deleted" in text
        unknown = why(made, "order-9", code=1)
        [commands] = [topic for topic in unknown["searched"] if topic["topic"] == made.names.commands]
        assert commands["since"] is not None


def test_the_page_shows_what_why_prints(bootstrap_servers, tmp_path, users):
    page = re.findall(r"```console\n\$ order-service (.+)\n((?:.*\n)+?)```", PAGE.read_text())
    assert [words for words, _ in page] == ["why payment-1", "why cancel-2", "why order-9"]
    with Service(bootstrap_servers, tmp_path, users) as made:
        worker = made.start_worker().wait_lanes(4)
        first = but(pay_1, payment_id="payment-1")
        take(made, [create_1, first, but(first, command_id="pay-2", payment_id="payment-2"), first, create_2])
        end(worker)
        made.send([but(cancel, order_id="order-1", actor=SHOP), UNDECIDED[0]])
        line = CommandLine(made.environment)
        resume = f"lanes resume {made.partition_of('order-2')} --from 2 --reason INC-17 --actor user:dana --yes"
        line(*resume.split())
        for words, expected in page:
            printed = line(*words.split(), code=int(words == "why order-9")).stdout
            assert _normal(printed.replace(made.environment["ORDERS_TOPIC_PREFIX"], "")) == _normal(expected)


def _normal(text):
    """Return the text without ids, times and offsets of the table, which differ, and with one space between columns."""
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", text)
    text = re.sub(r"(?<=orders\.table\.v1 partition \d offset )\d+|(?<=at offset )\d+(?= of the table)", "N", text)
    return re.sub(r" +", " ", re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)).strip()


def test_over_http_a_service_with_the_admin_scope_gets_the_same(shop):
    http, _ = shop.serve(**tokens.settings(shop.service.directory))
    admin = Http(http.port, Authorization=tokens.bearer("desk", Scope.ADMIN))
    key = str(uuid4())
    order_id = admin.create(key).body["order_id"]
    for text in (order_id, key, keyed_id("service:desk", "command", key)):
        answer = admin.get(f"/v1/operations/why/{quote(text, safe='')}")
        assert (answer.status, matches(answer.body)) == (200, matches(why(shop.service, text)))
        [order], [same] = answer.body["orders"], why(shop.service, text)["orders"]
        assert (order["order_id"], order["commands"]) == (order_id, same["commands"])
    history = f"/v1/orders/{order_id}/events"
    assert admin.get(history).headers["link"] == f'</v1/operations/why/{order_id}>; rel="related"'
    reads = admin.ask("GET", history, Authorization=tokens.bearer("desk", Scope.READ))
    assert (reads.status, "link" in reads.headers) == (200, False)
    paid = admin.ask("POST", f"/v1/orders/{order_id}/pay", PAYMENT)
    assert paid.status == 200
    shipped = admin.ask("POST", f"/v1/orders/{order_id}/ship", {"carrier": "DHL", "tracking_number": TRACKING})
    assert shipped.status == 200
    assert matches(admin.get(f"/v1/operations/why/{quote(TRACKING, safe='')}").body) == {("tracking_number", order_id)}


def test_over_http_what_is_unknown_is_404_and_other_scopes_get_403(shop):
    http, _ = shop.serve(**tokens.settings(shop.service.directory))
    path = "/v1/operations/why/order-9"
    unknown = http.ask("GET", path, Authorization=tokens.bearer("desk", Scope.ADMIN))
    assert (unknown.status, unknown.body["type"]) == (404, "/problems/not_found")
    assert unknown.body["detail"].startswith(
        f"Nothing is known about this id in any partition of {shop.service.names.commands}"
    )
    for scopes in ((), (Scope.READ, Scope.PAY, Scope.SHIP)):
        refused = http.ask("GET", path, Authorization=tokens.bearer("desk", *scopes))
        assert (refused.status, refused.body["type"]) == (403, "/problems/not_allowed")
    assert http.ask("GET", path).status == 401
    wrong = http.ask("GET", f"{path}{'x' * 256}", Authorization=tokens.bearer("desk", Scope.ADMIN))
    assert (wrong.status, wrong.body["errors"][0]["pointer"]) == (400, "/id")
