"""`verify` on a real Kafka: it finds nothing in real topics, and damage in a copy of them where it is."""

import asyncio
import re
import signal
from pathlib import Path

import pytest

from order_service.errors import KafkaAwayError
from order_service.kafka.reader import Reader
from order_service.operations.verify.verify import Progress, Wanted, verify
from tests.support.command_line import CommandLine
from tests.support.damaged_topics import write
from tests.support.deciding import FIRST, decide
from tests.support.kafka import running_broker
from tests.support.samples import but, cancel, create, pay, ship
from tests.support.service import Service, StubThread, histories, until, vars_of
from tests.support.users import hanging

PAGE = Path(__file__).parents[3] / "docs" / "operations" / "verify.md"
ORDERS = 12
COMMANDS = 5 * ORDERS + ORDERS + 20 + 2
WAITING = but(create, order_id="order-late", command_id="create-late", actor="service:shop", user_id="late")


@pytest.fixture(scope="module")
def service(bootstrap_servers, tmp_path_factory):
    """Provide topics with every kind of outcome, a repeat and a waiting command, and no worker."""
    with StubThread() as users, Service(bootstrap_servers, tmp_path_factory.mktemp("verify"), users) as made:
        refused = [but(cancel, order_id=f"order-{n}", command_id=f"late-{n}") for n in range(1, ORDERS + 1)]
        decide(made, [*histories(ORDERS), *refused, *FIRST["dead letters"]])
        worker = made.start_worker().wait_lanes(4)
        with hanging(users):
            made.send([histories(1)[0], WAITING])
            until(lambda: sum(each.next_offset for each in made.positions().values()) == COMMANDS, "all were taken")
            worker.send(signal.SIGKILL)
            worker.wait_ended()
        yield made


@pytest.fixture
def copy(service, bootstrap_servers, tmp_path, users):
    """Provide empty topics under another prefix."""
    with Service(bootstrap_servers, tmp_path, users) as made:
        yield made


def copy_topics(service, copy, topic, change):
    """Copy all topics; `change` returns the records (partition, key, value, headers) of one of them."""
    for name, source in vars_of(service.names).items():
        records = [(each.partition(), each.key(), each.value(), each.headers()) for each in service.read(source)]
        write(copy, getattr(copy.names, name), change(records) if name == topic else records)


def verified(service, *arguments, code):
    [document] = CommandLine(service.environment).json("verify", *arguments, code=code)
    return document


def of_order(records, order_id):
    return [index for index, (_, key, _, _) in enumerate(records) if key == order_id.encode()]


def places(document):
    return [(found["kind"], found["topic"], found["partition"], found["offset"]) for found in document["findings"]]


def test_real_orders_have_no_findings(service):
    document = verified(service, code=0)
    assert (document["ok"], document["findings"], document["not_checked"]) == (True, [], [])
    assert document["partitions"] == 4
    totals = document["totals"]
    assert totals["orders"] == {"delivered": ORDERS}
    assert (totals["events"], totals["rejections"], totals["dead_letters"]) == (5 * ORDERS, ORDERS, 20)
    assert (totals["waiting"], totals["repeats"], totals["commands"]) == (1, 1, COMMANDS)
    assert totals["paid"] == {"EUR": ORDERS * 3800}


def test_empty_topics_have_no_findings(copy):
    assert verified(copy, code=0)["totals"]["orders"] == {}


def test_the_text_for_people_has_the_same_totals_and_no_progress_bar(service):
    result = CommandLine(service.environment)("verify")
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == f"orders        {ORDERS} delivered"
    assert f"paid          {ORDERS * 3800} EUR" in lines
    assert lines[-1].startswith("4 partitions verified in ")
    assert lines[-1].endswith(" s; findings: 0")


def test_a_copy_with_other_offsets_has_no_findings_as_a_mirror(service, copy):
    copy_topics(service, copy, "", None)
    assert verified(copy, "--mirrored", code=0)["ok"]
    findings = verified(copy, code=1)["finding_counts"]
    assert "lost_tail" in findings, "markers of transactions are not copied, so the copy is shorter"


def test_a_dropped_event_is_found_where_the_next_one_is(service, copy):
    dropped = []

    def drop(records):
        dropped.append(of_order(records, "order-3")[2])
        return records[: dropped[0]] + records[dropped[0] + 1 :]

    copy_topics(service, copy, "events", drop)
    document = verified(copy, "--mirrored", code=1)
    partition = copy.partition_of("order-3")
    events = [each for each in copy.read(copy.names.events) if each.key() == b"order-3"]
    assert places(document) == [("version", copy.names.events, partition, events[2].offset())]
    assert "version 4 of order order-3, follows version 2" in document["findings"][0]["text"]


@pytest.mark.parametrize("nth", range(5))
def test_a_flipped_byte_in_an_event_is_found_where_it_is(service, copy, nth):
    def flip(records):
        index = of_order(records, "order-5")[nth]
        partition, key, value, headers = records[index]
        at = value.index(b"order-5") - 2  # the last character of its id
        flipped = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
        return [*records[:index], (partition, key, flipped, headers), *records[index + 1 :]]

    copy_topics(service, copy, "events", flip)
    document = verified(copy, "--mirrored", code=1)
    event = [each for each in copy.read(copy.names.events) if each.key() == b"order-5"][nth]
    assert places(document) == [("chain", copy.names.events, copy.partition_of("order-5"), event.offset())]


def test_a_flipped_byte_in_the_table_is_found_where_it_is(service, copy):
    def flip(records):
        index = of_order(records, "order-5")[-1]
        partition, key, value, headers = records[index]
        flipped = value.replace(b"deliver-1-order-5", b"deliver-2-order-5")
        assert flipped != value
        return [*records[:index], (partition, key, flipped, headers), *records[index + 1 :]]

    copy_topics(service, copy, "table", flip)
    document = verified(copy, "--mirrored", code=1)
    entry = [each for each in copy.read(copy.names.table) if each.key() == b"order-5"][-1]
    assert places(document) == [("table", copy.names.table, copy.partition_of("order-5"), entry.offset())]


def test_a_topic_that_begins_late_is_one_finding_for_each_partition(service, copy):
    copy_topics(service, copy, "events", lambda records: [each for each in records if not _is_first(each)])
    document = verified(copy, "--mirrored", code=1)
    assert set(document["finding_counts"]) == {"lost_head"}
    assert document["finding_counts"]["lost_head"] == ORDERS, "few orders are named one by one"
    lines = CommandLine(copy.environment)("verify", "--mirrored", "--limit", 2, code=1).stdout.splitlines()
    assert [line.split()[:2] for line in lines[-4:-2]] == [["lost_head", copy.names.events]] * 2
    assert lines[-2] == f"{ORDERS - 2} more are not shown: see --limit"
    assert lines[-1].endswith(f"findings: {ORDERS} ({ORDERS} lost_head)")


def _is_first(record):
    return dict(record[3])["ce_type"].endswith(b"OrderCreated")


def test_the_page_shows_what_verify_prints(bootstrap_servers, tmp_path, copy, users):
    page = re.findall(r"```console\n\$ order-service (.+)\n((?:.+\n)+)```", PAGE.read_text())
    assert [words for words, _ in page] == ["verify", "verify --mirrored"]
    create_1 = but(create, order_id="order-1", actor="service:cli", discount=0, tax=0, shipping=0)
    pay_1 = but(pay, order_id="order-1", amount=3400)
    commands = [
        create_1,
        pay_1,
        but(pay_1, command_id="pay-2", payment_id="payment-2"),
        but(ship, order_id="order-1"),
        but(create_1, order_id="order-2", command_id="create-2", user_id="unknown-1"),
        but(create_1, order_id="order-3", command_id="create-3"),
        but(cancel, order_id="order-3", actor="service:cli"),
    ]
    with Service(bootstrap_servers, tmp_path, users) as made:
        decide(made, commands)
        copy_topics(made, copy, "events", lambda records: [_with_payment_0(each) for each in records])
        for shown, (words, expected) in zip((made, copy), page, strict=True):
            prefix = shown.environment["ORDERS_TOPIC_PREFIX"]
            printed = CommandLine(shown.environment)(*words.split(), code=shown is copy).stdout
            assert _normal(printed.replace(prefix, "")) == _normal(expected)


def _with_payment_0(record):
    partition, key, value, headers = record
    return partition, key, value.replace(b"payment-1", b"payment-0"), headers


def _normal(text):
    """Return the text without the time that it took, and with one space between columns."""
    return re.sub(r" +", " ", re.sub(r"in \d+\.\d s", "in 0.7 s", text))


def test_commands_that_no_worker_decides_are_found_after_their_time(bootstrap_servers, tmp_path, users):
    with Service(bootstrap_servers, tmp_path, users) as made:
        decide(made, histories(4))
        made.send(histories(1, first=1))
        made.send([but(cancel, order_id="order-1", command_id=f"cancel-{n}") for n in range(3)])
        assert verified(made, code=0)["ok"]
        document = verified(made, "--older-than", "0", code=1)
        commands = [each for each in made.read(made.names.commands) if each.key() == b"order-1"]
        assert places(document) == [
            ("undecided", made.names.commands, made.partition_of("order-1"), commands[5].offset())
        ]
        assert document["findings"][0]["text"].startswith("8 commands from this offset on have no outcome yet")


def test_a_running_service_has_no_findings(bootstrap_servers, tmp_path, users):
    with Service(bootstrap_servers, tmp_path, users) as made:
        made.start_worker().wait_lanes(4)
        commands = histories(400)
        with made.sending(commands, per_s=400) as sender:
            until(lambda: made.outcome_count() > 50, "orders are decided")
            looks = 0
            while sender.is_alive():
                document = verified(made, code=0)
                assert document["ok"]
                looks += 1
        assert looks > 1
        made.wait_outcomes(len(commands))
        assert verified(made, code=0)["totals"]["orders"] == {"delivered": 400}


def test_a_missing_topic_is_one_line_and_13(service):
    environment = service.environment | {"ORDERS_TOPIC_PREFIX": "missing."}
    result = CommandLine(environment)("verify", code=13)
    assert (result.stdout, len(result.stderr.splitlines())) == ("", 1)
    assert "missing.orders." in result.stderr


def test_a_kafka_that_goes_away_meanwhile_is_one_line(tmp_path, users, monkeypatch):
    monkeypatch.setattr("order_service.kafka.reader.STALLED_S", 3.0)
    with (
        running_broker(tmp_path / "kafka") as broker,
        Service(broker.bootstrap_servers, tmp_path, users, keep_topics=True) as made,
    ):
        made.send([create])

        async def verify_without_kafka():
            async with Reader(made.settings()) as reader:
                await verify(reader, Wanted(), Progress(lambda _: broker.kill(), lambda _: None))

        with pytest.raises(KafkaAwayError) as raised:
            asyncio.run(verify_without_kafka())
        assert len(str(raised.value).splitlines()) == 1


def test_a_batch_that_a_disk_has_damaged_is_found_and_the_other_partitions_are_verified(broker, tmp_path, users):
    with Service(broker.bootstrap_servers, tmp_path, users) as made:
        decide(made, histories(ORDERS))
        partition = made.partition_of("order-5")
        first = next(each for each in made.read(made.names.events) if each.key() == b"order-5")
        broker.stop()
        log = broker.directory / "data" / f"{made.names.events}-{partition}" / "00000000000000000000.log"
        data = bytearray(log.read_bytes())
        data[data.index(b"order-5")] ^= 1
        log.write_bytes(data)
        broker.start()
        document = verified(made, code=1)
        [finding] = document["findings"]
        assert (finding["kind"], finding["topic"], finding["partition"]) == (
            "unreadable",
            made.names.events,
            partition,
        )
        assert finding["offset"] <= first.offset()
        [line] = document["not_checked"]
        assert line.startswith(f"The topics of partition {partition} are not compared: {made.names.events} cannot be")
        elsewhere = sum(made.partition_of(f"order-{n}") != partition for n in range(1, ORDERS + 1))
        assert document["totals"]["orders"] == {"delivered": elsewhere}
